"""The main job as a user runs it: the command line, in processes of their own, on tiny models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from support.user_place import command, ended, environment, mergeops

from mergeops.store import own_tags

pytestmark = pytest.mark.integration


def start(place: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=place,
        env=environment(place),
    )


def kill_when(process: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    """SIGKILL as soon as something is seen on disk; fails if the process ends before."""
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def runs(place: Path, role: str) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("mergeops")
    return list(client.search_runs([experiment.experiment_id], f"tags.`mergeops.role` = '{role}'"))


WITHOUT = """
import sys
from mergeops.store import own_tags
from mergeops.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "transformers", "lm_eval", "mlflow", "datasets", "numba", "scipy.stats"}
print("imported:", sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
RUN = ("run", "--config-dir", "conf", "recipe=three", "method=ties", "method.density=0.5")


def test_from_sources_to_a_promoted_champion_and_back(place: Path) -> None:
    first = json.loads(mergeops(place, *RUN, "--json"))
    assert first["registered"] == "merged/1"
    assert {row["name"] for row in first["leaderboard"]["rows"]} == {
        "base",
        "math",
        "dates",
        "units",
        "ties density=0.5",
    }

    again = json.loads(mergeops(place, *RUN, "--json"))
    assert again == first
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, *RUN, "--json"],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
    )
    assert json.loads(ran.stdout) == first
    assert "nothing to do" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "imported: []"
    assert len(runs(place, "merge")) == 1
    assert len(runs(place, "source")) == 3

    found = json.loads(mergeops(place, "search", "--config-dir", "conf", "recipe=three", "--json"))
    assert len(found["steps"]) == 3
    best_single = max(
        row["pooled"] for row in first["leaderboard"]["rows"] if row["kind"] == "source"
    )
    assert found["steps"][0]["dev"] == best_single
    assert len(found["trials"]) == 2
    (search,) = runs(place, "search")
    nested = [r for r in runs(place, "merge") if r.data.tags.get("mlflow.parentRunId")]
    assert {r.data.tags["mlflow.parentRunId"] for r in nested} == {search.info.run_id}

    board = json.loads(mergeops(place, "compare", "--json"))
    assert len(board["rows"]) == 7
    assert board["reference"] in ("math", "dates", "units")

    refused = json.loads(mergeops(place, "promote", "merged", "--version", "1", "--json", code=7))
    assert refused["promoted"] is False
    assert refused["verdict"]["decision"] in ("refuse", "inconclusive")
    mergeops(place, "promote", "merged", "--version", "1", "--force", "--reason", "a test")
    forced = mergeops(
        place, "promote", "merged", "--version", "2", "--force", "--reason", "b", "--json"
    )
    assert json.loads(forced)["change"]["from"] == 1
    assert json.loads(mergeops(place, "rollback", "merged", "--json"))["to"] == 1

    # The same candidate again is the same use; another one, and a champion to beat, is the next.
    past = json.loads(mergeops(place, "history", "merged", "--json"))
    assert (past["champion"], past["previous"]) == (1, 2)
    whats = [event["what"] for event in past["events"]]
    assert whats == [
        "confirm use 1",
        "refused by the gate",
        "promoted",
        "confirm use 2",
        "promoted",
        "rolled back",
    ]
    assert past["events"][0]["record"]["alpha"] / 2 == refused["verdict"]["level"] == 0.025
    expected, against_base = refused["verdict"]["beforehand"]
    assert expected["reference"].startswith("best_parent:")
    assert against_base["reference"] == "base"
    assert expected["dev"]["low"] < expected["dev"]["difference"] < expected["dev"]["high"]
    assert expected["detectable"] > 0

    contributions = json.loads(mergeops(place, "controls", "merged", "--version", "1", "--json"))
    rows = [(c["source"], c["kind"], c["note"]) for c in contributions["controls"]]
    assert rows == [(s, k, "") for s in ("math", "dates", "units")
                    for k in ("leave-one-out", "random")]  # fmt: skip
    assert all(c["gain"]["low"] <= c["gain"]["high"] for c in contributions["controls"])

    text = mergeops(place, "verify", "models:/merged@champion")
    assert "every file is as its manifest says" in text


@pytest.mark.sweep
def test_a_search_shows_its_curves_while_it_runs_and_has_each_point_once_after_a_kill(
    place: Path,
) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")

    def curve(name: str) -> list[tuple[int, float]]:
        if client.get_experiment_by_name("mergeops") is None:
            return []
        points = [
            point
            for found in runs(place, "search")
            for point in client.get_metric_history(found.info.run_id, name)
        ]
        return sorted((point.step, point.value) for point in points)

    words = ("search", "--config-dir", "conf", "recipe=three")
    kill_when(start(place, *words), lambda: len(curve("steps/best")) == 1)
    (killed,) = runs(place, "search")
    assert killed.info.status == "RUNNING"
    assert [step for step, _ in curve("steps/trial")] == [1]
    found = json.loads(mergeops(place, *words, "--json"))
    scores = [trial["dev_score"] for trial in found["trials"]]
    assert curve("steps/trial") == list(enumerate(scores, 1))
    assert curve("steps/best") == [(1, scores[0]), (2, max(scores))]
    (whole,) = runs(place, "search")
    assert (whole.info.run_id, whole.info.status) == (killed.info.run_id, "FINISHED")


@pytest.mark.sweep
def test_kill_in_the_middle_of_a_merge_leaves_nothing_that_looks_finished(place: Path) -> None:
    merges = place / "mergeops-work" / "merges"
    process = start(place, *RUN)
    kill_when(process, lambda: any(merges.glob(".*.partial/*.safetensors")))
    assert [p for p in merges.iterdir() if not p.name.startswith(".")] == []
    (killed,) = runs(place, "merge")
    assert killed.info.status == "RUNNING"
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
    assert client.search_registered_models() == []

    trial = json.loads(mergeops(place, *RUN, "--json"))
    (run,) = runs(place, "merge")
    assert run.info.run_id == killed.info.run_id == trial["run_id"]
    assert run.info.status == "FINISHED"
    assert own_tags(run.data.tags)["mergeops.resumed"] == "1"
    assert len(client.search_model_versions("name = 'merged'")) == 1
    assert [p.name for p in merges.iterdir()] == [trial["plan_digest"][:16]]


@pytest.mark.sweep
def test_kill_in_the_middle_of_scoring_redoes_nothing_that_was_finished(place: Path) -> None:
    scores = place / "mergeops-work" / "scores"
    process = start(place, *RUN)
    kill_when(process, lambda: len(list(scores.glob("*/*.json"))) >= 3)
    finished = {
        path: path.stat().st_mtime_ns
        for path in (place / "mergeops-work").rglob("*")
        if path.suffix in (".json", ".safetensors") and "cache" not in path.parts
        # How fast this machine is, which every command adds to.
        if path.name != "pace.json"
    }
    assert len([path for path in finished if "scores" in path.parts]) < 10

    mergeops(place, *RUN)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(runs(place, "merge")) == 1
    assert len(runs(place, "source")) == 3
    assert len(runs(place, "base")) == 1
    (run,) = runs(place, "merge")
    assert run.info.status == "FINISHED"
    history = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db").get_metric_history(
        run.info.run_id, "pooled"
    )
    assert len(history) == 1


def test_merge_writes_only_the_directory_that_it_is_asked_for(place: Path) -> None:
    recipe = place / "soup.yaml"
    recipe.write_text("method: linear\nsources: {a: {uri: math}, b: {uri: dates, weight: 3}}\n")
    mergeops(place, "merge", "soup.yaml", "out", "--seed", "1")
    assert "every file is as its manifest says" in mergeops(place, "verify", "out")
    before = (place / "mlflow.db").read_bytes()
    assert before == (place / "mlflow.db").read_bytes()
    weights = place / "out" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert "model.safetensors" in mergeops(place, "verify", "out", code=4)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["sources.math.uri=gone"], 3, "gone"),
        (["base=null"], 4, "ties merges task vectors and needs a base"),
        (["evaluate.tasks=[ad]"], 5, "ad"),
        (["tracking.uri=http://127.0.0.1:9"], 6, "cannot reach the MLflow server"),
        (["sources.math.uri=dates"], 4, "same"),
    ],
)
def test_bad_input_is_one_line_and_the_exit_code_of_its_kind(
    place: Path, words: list[str], code: int, message: str
) -> None:
    done = ended(place, *RUN, *words)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("mergeops: error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert not (place / "mergeops-work" / "merges").exists()


def test_a_trial_made_offline_is_logged_by_sync_without_merging_or_scoring(place: Path) -> None:
    told = mergeops(place, *RUN, "tracking.offline=true")
    assert "mergeops sync" in told
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
    assert client.get_experiment_by_name("mergeops") is None
    (kept,) = (place / "mergeops-work" / "pending").glob("*/trial.json")
    assert kept.stat().st_mode & 0o077 == 0
    (waiting,) = json.loads(mergeops(place, "sync", "--dry-run", "--json"))
    assert waiting["outcome"] == "waiting"
    assert client.get_experiment_by_name("mergeops") is None

    # What sync could merge or score with is gone.
    for name in ("base", "math", "dates", "units", "tasks"):
        (place / name).rename(place / f"{name}-gone")
    (logged,) = json.loads(mergeops(place, "sync", "--json"))
    assert logged["outcome"] == "logged"
    assert logged["registered"] == "merged/1"
    assert "nothing is kept" in mergeops(place, "sync")
    (run,) = runs(place, "merge")
    assert run.info.status == "FINISHED"
    # Score and standard error of two tasks; over all tasks the score and both ends of its interval.
    assert len(run.data.metrics) == 7
    assert {r.info.run_name for r in runs(place, "source")} == {"math", "dates", "units"}
    names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"recipe.yaml", "leaderboard.md", "lineage.svg", "model_card.md", "plots"} <= names
    assert {entry.path for entry in client.list_artifacts(run.info.run_id, "plots")} == {
        f"plots/{name}.png" for name in ("scores", "norms", "cosines", "sign_conflicts")
    }
    board = json.loads(mergeops(place, "compare", "--json"))
    assert len(board["rows"]) == 5
