"""One merge over several processes: the same bytes, whoever writes what and whoever dies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.spread_merges import Spread

from benchmarks.shapes import Shape, write
from mergeops.cli.main import cli
from mergeops.engine.memory_budget import held, tuning_for
from mergeops.engine.stream import TensorStream
from mergeops.engine.work_plan import plan_work
from mergeops.errors import ConfigError, MergeError, SourceError
from mergeops.planning.plan import Plan, TensorTask
from mergeops.planning.planner import make_plan
from mergeops.recipe import ExecutorSpec, Recipe
from mergeops.sources.source import Source

MB = 10**6


@pytest.fixture(scope="module")
def spread(tiny_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Spread:
    return Spread(tiny_llama, tmp_path_factory.mktemp("spread"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_files_are_the_same_for_any_number_of_workers(spread: Spread, workers: int) -> None:
    on = ExecutorSpec(workers=workers, threads=1)
    assert spread.merged_on(on, f"by-{workers}") == spread.merged_here
    assert len(spread.merged_here) > 10


@pytest.mark.slow
def test_files_are_the_same_when_workers_read_copies(
    spread: Spread, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A variable of the worker's.
    monkeypatch.setenv("OWN_DISK", str(spread.place("disk")))
    on = ExecutorSpec(workers=2, threads=1, stage="$OWN_DISK/stage")
    assert spread.merged_on(on, "staged") == spread.merged_here
    # Of the base and three sources, one file each.
    assert len(list(spread.place("disk/stage").glob("*.safetensors"))) == 4


@pytest.mark.slow
def test_files_are_the_same_when_a_worker_is_killed(spread: Spread) -> None:
    on = ExecutorSpec(workers=2, threads=1)
    merged = spread.merged_on(on, "killed", after=2, then=spread.kill_worker)
    assert merged == spread.merged_here


@pytest.mark.slow
def test_what_was_written_before_the_driver_died_is_kept(
    spread: Spread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    on = ExecutorSpec(workers=2, threads=1)
    with pytest.raises(KeyboardInterrupt):
        spread.merged_on(on, "stopped", after=4, then=interrupt)
    lines = (spread.place(".stopped.partial") / "journal.jsonl").read_text().splitlines()[1:]
    done = {json.loads(line)["tensor"] for line in lines}
    assert len(done) >= 4
    computed = []
    results = TensorStream.results

    def watched(stream: TensorStream, tasks: Iterable[TensorTask]) -> Any:
        tasks = list(tasks)
        computed.extend(task.name for task in tasks)
        return results(stream, tasks)

    monkeypatch.setattr(TensorStream, "results", watched)
    # Here it goes on in this process: both know each other's journals.
    assert spread.merged_on(ExecutorSpec(), "stopped") == spread.merged_here
    assert computed and not done & set(computed)


@pytest.mark.slow
def test_a_source_that_changed_is_refused_as_by_one_process(spread: Spread) -> None:
    with pytest.raises(SourceError, match="changed"):
        spread.merged_on(ExecutorSpec(workers=2), "changed", after=1, then=spread.touch_source)


def test_too_little_memory_is_refused_before_any_work(spread: Spread) -> None:
    little = ExecutorSpec(workers=2, memory="100MB")
    with pytest.raises(MergeError, match=r"executor\.memory is 100\.0 MB, but the largest slice"):
        spread.merged_on(little, "little")
    assert not spread.place(".little.partial").exists()


def test_less_memory_makes_shorter_chunks_and_fewer_lanes(
    plan_of: Callable[..., Plan], tiny_llama: Callable[..., Path]
) -> None:
    base = tiny_llama()
    plan = plan_of({"name": "ties"}, base, {"a": tiny_llama(like=base, seed=1)})
    wide, narrow = tuning_for(plan, 10**12, 4), tuning_for(plan, 330 * MB, 4)
    assert wide.lanes == 4 and narrow.lanes is not None and narrow.chunk is not None
    assert (narrow.lanes, narrow.chunk) < (4, wide.chunk)
    assert held(plan, narrow.lanes, narrow.chunk) <= 330 * MB


@pytest.mark.slow
def test_a_tensor_larger_than_the_memory_is_cut_and_a_matrix_that_is_too_large_refused(
    tmp_path: Path,
) -> None:
    # Headers of embeddings of 537 MB; the files are holes.
    for name in ("base", "a", "b"):
        write(tmp_path / name, Shape(1024, 1024, 1, 8, 8, vocabulary=1 << 18))
    found = {n: Source(n, f"file:{n}", tmp_path / n, "") for n in ("base", "a", "b")}
    base = found.pop("base")

    def planned(method: str) -> Plan:
        sources = {name: {"uri": f"file:{name}"} for name in found}
        raw = {"base": "file:base", "sources": sources, "method": {"name": method}}
        return make_plan(Recipe.from_dict(raw), base, found)

    plan = planned("ties")
    assert max(task.nbytes for task in plan.tasks) > 500 * MB
    tuning = tuning_for(plan, 400 * MB, 1)
    assert tuning.lanes == 1 and tuning.chunk is not None
    assert held(plan, tuning.lanes, tuning.chunk) <= 400 * MB
    # Embeddings are merged entry by entry by this method, too; matrices of layers are not.
    message = r"the largest slice of model\.layers\.0\.\S+ takes 484\.\d MB with one thread"
    with pytest.raises(MergeError, match=message):
        tuning_for(planned("tsv_m"), 400 * MB, 1)


def test_the_plan_of_the_work_adds_up(
    plan_of: Callable[..., Plan], tiny_llama: Callable[..., Path]
) -> None:
    base = tiny_llama()
    sources = {n: tiny_llama(like=base, seed=i) for i, n in enumerate("ab", 1)}
    plan = plan_of({"name": "ties"}, base, sources, output={"shard_size": "20KB"})
    for workers in (1, 3):
        found = plan_work(plan, ExecutorSpec(workers=workers), bandwidth=1e6)
        files = [name for share in found.shares for name in share.files]
        assert sorted(files) == sorted(shard.name for shard in plan.shards)
        assert sum(share.writes for share in found.shares) == plan.bytes_to_write
        # Base and both sources are read whole.
        weights = sum(task.nbytes for task in plan.tasks)
        assert sum(share.reads for share in found.shares) == 3 * weights
        longest = max(share.reads + share.writes for share in found.shares)
        assert found.seconds == pytest.approx(longest / 1e6)


def test_the_plan_is_printed_and_nothing_is_written(spread: Spread, tmp_path: Path) -> None:
    recipe = spread.recipe_file(tmp_path)
    words = ["merge", str(recipe), str(tmp_path / "out"), "--executor", "local", "--workers", "2"]
    words += ["--plan", "--bandwidth", "1GB", f"output.dir={tmp_path / 'work'}"]
    shown = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    planned = json.loads(shown.stdout)
    assert [share["worker"] for share in planned["shares"]] == [1, 2]
    assert planned["bandwidth"] == 1e9
    text = CliRunner().invoke(cli, words, catch_exceptions=False).stdout
    assert "by 2 workers" in text and "holds" in text
    assert not (tmp_path / "out").exists()


def test_an_executor_that_is_none_is_refused(spread: Spread, tmp_path: Path) -> None:
    words = ["merge", str(spread.recipe_file(tmp_path)), str(tmp_path / "out")]
    refused = CliRunner().invoke(cli, [*words, "--executor", "rey"])
    assert isinstance(refused.exception, ConfigError)
    assert "executor is 'rey'; did you mean 'ray'? there are: local, ray, slurm" in str(
        refused.exception
    )
