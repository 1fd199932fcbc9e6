"""Numbers of bytes in words."""

from __future__ import annotations

import pytest

from mergeops.checkpoint import lacking, size_text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4_200_000, "4.2 MB"), (3 * 10**12, "3.0 TB")],
)
def test_a_size_is_in_the_unit_that_fits_it(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


def test_what_is_lacking_never_reads_as_enough() -> None:
    assert lacking(4_200_000, 3_100_000) == "4.2 MB, but only 3.1 MB"
    assert lacking(4_200_001, 4_200_000) == "4200001 bytes, but only 4200000 bytes"
