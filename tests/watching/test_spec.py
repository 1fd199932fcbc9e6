"""A watch's config, what it knows as JSON, and its digest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mergeops.errors import ConfigError
from mergeops.watching import WatchSpec, WatchState, digest_text, read_watch_file
from mergeops.watching.state import Best, Proposed, RoundRecord, SeenRun


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiments: []", "experiments is empty; name the experiments"),
        ("name: 'a b'\nexperiments: [x]", "name is 'a b'; a watch's name is letters"),
        ("experiments: [x]\nevery: 3", "unknown key every; did you mean 'every_s'?"),
        ("experiments: [x]\nevery_s: 0", "every_s is 0.0; allowed: at least 1"),
        ("experiments: [x]\nbudget: {trials: 0}", "budget.trials is 0; allowed: from 1 to 1000"),
        ("experiments: [x]\nbudget: {trails: 1}", "unknown key budget.trails; did you mean"),
        ("experiments: [x]\ndev_confidence: 1", "dev_confidence is 1.0; allowed: from 0.5"),
        ("experiments: x", "experiments is 'x'; it takes a list"),
        ("[1]", "holds no mapping"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_wrong_watch_is_refused_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "nightly.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_watch_file(file)


def test_a_watch_is_called_as_its_file_and_keeps_the_defaults_of_what_it_does_not_say(
    tmp_path: Path,
) -> None:
    file = tmp_path / "nightly.yaml"
    file.write_text("experiments: [finetunes]\nbudget: {trials: 3}\n")
    spec = WatchSpec.from_dict(read_watch_file(file))
    assert (spec.name, spec.budget.trials, spec.budget.confirm_uses) == ("nightly", 3, 2)
    assert WatchSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_what_a_watch_knows_survives_as_json_and_is_told_in_words() -> None:
    run = SeenRun("r1", "math | lr", "finetunes", "FAILED", "kept", "skills/3", gain=0.0312)
    proposed = Proposed(
        "d" * 64, "skills/3", "2026-01-02T03:04:05", "proposed", 0.025, True, ("so",)
    )
    state = WatchState(
        cursors={"finetunes": 5},
        runs={"r1": run},
        best=Best({"math": "runs:/r1"}, None, 2, "skills/3", "d" * 64, 0.81),
        proposed=(proposed,),
        rounds=(RoundRecord(1, "2026", 1, 1, 2, 60.0, "note"),),
    )
    assert WatchState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    spec = WatchSpec.from_dict({"name": "nightly", "experiments": ["finetunes"]})
    text = digest_text(spec, state)
    assert "1 run(s) seen: 1 kept." in text and "1 round(s), 2 trial(s), 1.0 minutes." in text
    assert "| math \\| lr | FAILED | kept | +0.031 | skills/3 |" in text
    assert "| 2026-01-02T03:04 | skills/3 | proposed | 0.025 |" in text
    assert "Said beforehand: so" in text
