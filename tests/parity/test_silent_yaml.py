"""What docs/mergekit.md lists as refused: mergekit takes it in silence, or ends while it merges."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.mergekit_oracle import TWO, Case, Pair, merge_ours

from mergeops.errors import MergeopsError

pytestmark = pytest.mark.parity

BELOW_ONE = """
merge_method: slerp
base_model: {a}
models:
  - {model: {a}}
  - {model: {b}, parameters: {t: 0.4}}
dtype: float32
"""
SILENT, MISSING = "ok", "RuntimeError: Missing required parameter"
BUFFER = "ValueError: Non-floating buffer"


def first(weight: str) -> str:
    """The config with another weight of the first model."""
    return TWO.replace("weight: 0.3", f"weight: {weight}")


CASES = {
    "unknown_parameter": (first("0.3, wieght: 1.0"), SILENT, "did you mean 'weight'"),
    "unknown_key": (f"{TWO}merge_methd: x", SILENT, "did you mean 'merge_method'"),
    "beside_the_model": (
        TWO.replace("parameters: {weight: 0.3}", "weight: 0.3"),
        MISSING,
        "stands beside the model; write it below parameters",
    ),
    "below_one_model": (BELOW_ONE, MISSING, "move it to the parameters of the slice"),
    "gradient_of_a_switch": (
        f"{TWO}parameters: {{normalize: [true, false]}}",
        SILENT,
        "one value for the whole merge",
    ),
    "filter_of_a_switch": (
        f"{TWO}parameters: {{normalize: [{{filter: mlp, value: true}}, {{value: false}}]}}",
        SILENT,
        "one value for the whole merge",
    ),
    "filter_of_nothing": (
        first("[{filter: mpl, value: 0.1}, {value: 0.3}]"),
        SILENT,
        "'mpl', which is in no tensor's name",
    ),
    "open_filter": (
        first("[{filter: mlp, value: 0.1}]"),
        MISSING,
        "has no value where no filter matches",
    ),
    "tokenizer_of_none": (
        f"{TWO}tokenizer_source: '{{c}}'",
        SILENT,
        "is no model of the merge",
    ),
    "whole_numbers": (
        TWO.replace("float32", "int64"),
        BUFFER,
        "dtype is 'int64'; allowed",
    ),
    "other_ids": (TWO, SILENT, "disagree on 91 token"),
}
PAIRS = [
    Case(name, config, models="permuted" if name == "other_ids" else "")
    for name, (config, _, _) in CASES.items()
]


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.name)
def test_what_is_taken_in_silence_or_fails_late_is_refused(
    case: Case, pairs: dict[Case, Pair], tmp_path: Path
) -> None:
    _, theirs, ours = CASES[case.name]
    assert pairs[case].status.strip().splitlines()[-1].startswith(theirs)
    with pytest.raises(MergeopsError, match=ours):
        merge_ours(pairs[case], tmp_path / "ours")
