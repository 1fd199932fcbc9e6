"""Family trees: merges of merges back to training runs and bases, holes named and no traceback."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from mlflow import MlflowClient
from support.tracking_case import Case, make_recipe, make_source, sha256

from mergeops.cli.lineage import print_tree
from mergeops.errors import ConfigError, TrackingError
from mergeops.lineage.ancestors import find_family
from mergeops.lineage.family import Member
from mergeops.lineage.picture import write_picture
from mergeops.store.connection import Tracking
from mergeops.tracking import register_trial


def by_name(root: Member) -> dict[str, Member]:
    return {member.name: member for member in root.walk()}


def grown(case: Case) -> tuple[Case, str, str]:
    """A merge of a merge; gives the second one's case and both runs."""
    run_id, _ = case.whole(name="first")
    first = make_source("first", uri="models:/skills/1", run_id=run_id, sha256=sha256("w"))
    named = {"math": {"uri": "runs:/math"}, "first": {"uri": "models:/skills/1"}}
    second = dataclasses.replace(
        case,
        recipe=make_recipe(case.tracking.spec, sources=named),
        sources={"math": case.sources["math"], "first": first},
        digest=sha256("second"),
    )
    with second.trial(name="second") as log:
        log.log_model(case.checkpoint, weights_sha256=sha256("second weights"))
        register_trial(log)
    return second, run_id, log.run_id


def test_a_merge_of_a_merge_leads_back_to_training_runs_and_base(case: Case) -> None:
    _, first_run, second_run = grown(case)
    case.tracking.client.set_registered_model_alias("skills", "champion", "2")
    root = find_family(case.tracking, "models:/skills@champion")
    assert (root.kind, root.name, root.run_id) == ("merge", "second", second_run)
    assert root.versions == ("skills/2 @champion",)
    assert [parent.name for parent in root.parents] == ["base", "math", "first"]
    first = root.parents[2]
    assert (first.kind, first.run_id, first.method) == ("merge", first_run, "task_arithmetic")
    assert [parent.name for parent in first.parents] == ["base", "math", "dates"]
    math = by_name(first)["math"]
    assert (math.kind, math.run_status, math.weight) == ("source", "FAILED", "0.5")
    # 10 of its 16 items are right.
    assert math.score == first.score
    assert math.score is not None and math.score.value == 0.625
    # Wilson's ends solve (p - q)^2 = z^2 q (1 - q) / n.
    for end in math.score.interval or ():
        assert (0.625 - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / 16, rel=1e-5)
    plain = math.to_dict()
    assert (plain["score"], tuple(plain["score_interval"])) == (0.625, math.score.interval)
    for uri in ("models:/skills/2", f"runs:/{second_run}", f"{root.model_id}"):
        assert find_family(case.tracking, uri).to_dict() == root.to_dict()


def test_deleted_parents_stay_in_the_tree_and_say_so(case: Case) -> None:
    _, first_run, second_run = grown(case)
    math_run = case.sources["math"].run_id
    assert math_run is not None
    for run_id in (math_run, first_run):
        case.tracking.client.delete_run(run_id)
    root = find_family(case.tracking, f"runs:/{second_run}")
    found = by_name(root)
    assert found["math"].run_status == found["first"].run_status == "deleted"
    assert found["math"].notes == ("its run is deleted in MLflow",)
    assert "dates" in found


def test_without_its_lock_file_the_tags_still_name_the_parents(case: Case, tmp_path: Path) -> None:
    run_id, _ = case.whole()
    shutil.rmtree(tmp_path / "store" / "mlartifacts" / "merges" / run_id / "artifacts")
    root = find_family(case.tracking, "models:/skills/1")
    assert root.notes == ("its lock.json is missing; parents as its tags name them",)
    assert [parent.name for parent in root.parents] == ["base", "math", "dates"]


def test_models_that_others_registered_are_shown_as_far_as_known(case: Case) -> None:
    client = case.tracking.client
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "s3://bucket/model")
    alone = find_family(case.tracking, "models:/foreign/1")
    assert (alone.kind, alone.uri) == ("model", "s3://bucket/model")
    assert alone.notes == ("registered without a run; not made by mergeops",)
    run = client.create_run(case.tracking.experiment_id, run_name="trained")
    client.log_param(run.info.run_id, "_name_or_path", "org/base")
    model = client.create_logged_model(
        case.tracking.experiment_id, name="theirs", source_run_id=run.info.run_id
    )
    client.create_model_version("foreign", f"models:/{model.model_id}", run.info.run_id)
    theirs = find_family(case.tracking, "models:/foreign/2")
    assert (theirs.kind, theirs.name) == ("model", "theirs")
    assert theirs.notes == ("not made by mergeops", "its upload is PENDING")
    assert [parent.uri for parent in theirs.parents] == ["org/base"]
    alone_again = client.create_logged_model(case.tracking.experiment_id, name="lost")
    client.create_model_version("foreign", f"models:/{alone_again.model_id}")
    client.delete_logged_model(alone_again.model_id)
    lost = find_family(case.tracking, "models:/foreign/3")
    assert lost.notes == ("its LoggedModel is gone from MLflow",)


GENERATIONS = 12
CALLS = (
    "get_run",
    "search_runs",
    "get_logged_model",
    "search_model_versions",
    "search_experiments",
    "download_artifacts",
)


def inbred(tracking: Tracking) -> str:
    """The run of a merge whose ancestors are, in each generation, the same two."""
    client, experiment = tracking.client, tracking.experiment_id
    parents = {
        f"0{letter}": client.create_run(experiment, run_name=f"0{letter}").info.run_id
        for letter in "ab"
    }
    for generation in range(1, GENERATIONS + 1):
        lock = {"parents": {n: {"run_id": r, "sha256": sha256(n)} for n, r in parents.items()}}
        parents = {}
        for name in (f"{generation}a", f"{generation}b"):
            tags = {"mergeops.role": "merge", "mergeops.method": "linear"}
            run = client.create_run(experiment, tags=tags, run_name=name)
            client.log_dict(run.info.run_id, lock, "lock.json")
            parents[name] = run.info.run_id
    return str(parents[f"{GENERATIONS}a"])


def test_ancestors_that_many_share_are_read_and_followed_once(
    tracking: Tracking,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = inbred(tracking)
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(MlflowClient, name)

        def call(*args: Any, **how: Any) -> Any:
            calls[name] += 1
            return real(*args, **how)

        return call

    for name in CALLS:
        monkeypatch.setattr(MlflowClient, name, counted(name))
    root = find_family(tracking, f"runs:/{run_id}")
    models = 1 + 2 * GENERATIONS
    assert calls["download_artifacts"] == models - 2
    # MLflow asks for a run once more, to find its artifacts.
    assert calls["get_run"] == models + calls["download_artifacts"]
    # A score that is not there is looked for under the name of its tag before 0.2, too.
    assert calls["search_runs"] <= 2 * models
    assert calls.total() <= 6 * models
    # Two of the root, and four of the two in each generation above it.
    edges = 2 + 4 * (GENERATIONS - 1)
    assert len(list(root.walk())) == 1 + edges
    monkeypatch.setenv("COLUMNS", "200")
    print_tree(root)
    # Of each generation that has parents, both once more.
    assert capsys.readouterr().out.count("(its parents are above)") == 2 * (GENERATIONS - 2)
    write_picture(root, tmp_path / "family.svg", "svg")
    markup = (tmp_path / "family.svg").read_text()
    assert markup.count('class="tip"') == edges
    places = {
        e.text: float(e.attrib["x"])
        for e in ElementTree.fromstring(markup).iter("{http://www.w3.org/2000/svg}text")
    }
    columns = [places[f"{generation}a"] for generation in range(GENERATIONS + 1)]
    assert columns == sorted(set(columns))
    assert [places[f"{n}b"] for n in range(GENERATIONS)] == columns[:-1]


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("skills", ConfigError, "'skills' names no model; write models:/NAME@ALIAS"),
        ("models:/skills/7", TrackingError, "skills has no version 7; its versions: 1"),
        ("models:/skills@best", TrackingError, "skills has no alias 'best'; its aliases: none"),
        ("models:/nothing/1", TrackingError, "there is no registered model 'nothing'"),
        (f"runs:/{'0' * 32}", TrackingError, f"there is no run {'0' * 32} at"),
        (f"m-{'0' * 32}", TrackingError, f"there is no LoggedModel m-{'0' * 32} at"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    case: Case, uri: str, error: type[Exception], message: str
) -> None:
    case.whole()
    with pytest.raises(error, match=message):
        find_family(case.tracking, uri)


def family() -> Member:
    base = Member("base", "base", "hf://org/base", sha256="b")
    math = Member("source", "[red]math", run_id="1" * 32, run_status="FAILED", parents=(base,))
    first = Member("merge", "first", run_id="2" * 32, run_status="deleted", parents=(base, math))
    return Member(
        "merge",
        "second",
        run_id="3" * 32,
        run_status="FINISHED",
        versions=("skills/2 @champion",),
        parents=(base, math, dataclasses.replace(first, notes=("its run is deleted in MLflow",))),
    )


def test_the_picture_shows_every_model_once_and_ancestors_to_the_left(tmp_path: Path) -> None:
    write_picture(family(), tmp_path / "family.svg", "svg")
    svg = ElementTree.parse(tmp_path / "family.svg").getroot()
    texts = {
        (e.text or ""): float(e.attrib["x"]) for e in svg.iter("{http://www.w3.org/2000/svg}text")
    }
    assert texts["base"] < texts["[red]math"] < texts["first"] < texts["second"]
    assert {"champion", "deleted", "FAILED"} <= set(texts)
    markup = (tmp_path / "family.svg").read_text()
    # base to math, first, second; math to first, second; first to second.
    assert markup.count('class="tip"') == 6
    write_picture(family(), tmp_path / "family.png", "png")
    assert (tmp_path / "family.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_picture(family(), tmp_path, "svg")


def test_the_terminal_shows_names_as_text_and_what_is_deleted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_tree(family())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "second  merge  models:/skills/2 @champion  run 33333333"
    assert lines[2] == "├── [red]math  source  of base  run 11111111 FAILED"
    assert lines[3] == "└── first  merge  run 22222222 deleted (its run is deleted in MLflow)"
    assert len(lines) == 6
