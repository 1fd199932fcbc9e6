"""Merges by mergekit 0.1.5, in an environment of its own, beside ours: ``make parity``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.mergekit_oracle import (
    PYTHON,
    Case,
    Pair,
    filled,
    merge_ours,
    run_mergekit,
    tensors_of,
    token_ids,
)
from support.tiny_models import save_family

REASON = f"mergekit is not installed in {PYTHON.parent.parent.name}; `make parity` installs it"
ROWS_OF_TOKENS = {"model.embed_tokens.weight", "lm_head.weight"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("parity") and not PYTHON.is_file():
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def family(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[..., Any]
) -> Callable[[str, str, str], dict[str, Path]]:
    """Models by (architecture, dtype, variation); made once."""
    made: dict[tuple[str, str, str], dict[str, Path]] = {}

    def get(architecture: str, dtype: str, variation: str) -> dict[str, Path]:
        from support.parity_variations import VARIATIONS

        key = (architecture, dtype, variation)
        if key not in made:
            folder = tmp_path_factory.mktemp(architecture)
            plain = save_family(architecture, folder, tiny_tokenizer(), dtype=dtype)
            made[key] = VARIATIONS[variation](plain, tiny_tokenizer) if variation else plain
        return made[key]

    return get


@pytest.fixture(scope="session")
def pairs(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    family: Callable[[str, str, str], dict[str, Path]],
) -> dict[Case, Pair]:
    """What mergekit makes of every case of this session, all in one process."""
    cases: list[Case] = []
    for item in request.session.items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")  # type: ignore[attr-defined]
        if isinstance(case, Case) and case not in cases:
            cases.append(case)
    folder = tmp_path_factory.mktemp("mergekit")
    jobs = []
    for number, case in enumerate(cases):
        config = folder / f"{number}.yml"
        places = family(case.architecture, case.dtype, case.models)
        config.write_text(filled(case, places))
        jobs.append(Pair(case, folder / f"out-{number}", "", config))
    done = run_mergekit(jobs, [case.seed for case in cases], folder)
    return {pair.case: pair for pair in done}


@pytest.fixture
def pair(pairs: dict[Case, Pair], case: Case) -> Pair:
    """mergekit's side of this test's case, which must have worked."""
    found = pairs[case]
    assert found.status == "ok", found.status
    return found


@pytest.fixture
def merged(pair: Pair, tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors that mergeops makes of this test's case, and those that mergekit makes.

    Rows of mergekit's are put where our tokenizer has their tokens: a union's new tokens have
    another order with each run of mergekit.
    """
    ours = merge_ours(pair, tmp_path / "ours")
    theirs = tensors_of(pair.mergekit)
    ids, their_ids = token_ids(ours), token_ids(pair.mergekit)
    if ids.keys() == their_ids.keys() and ids != their_ids:
        for name in ROWS_OF_TOKENS & theirs.keys():
            rows = theirs[name].clone()
            for token, place in ids.items():
                rows[place] = theirs[name][their_ids[token]]
            theirs[name] = rows
    return tensors_of(ours), theirs
