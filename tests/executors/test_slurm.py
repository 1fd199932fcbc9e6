"""A real Slurm of two nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import slurm_cluster
from support.spread_merges import Spread
from support.spread_trials import SpreadTrials

from mergeops.errors import ConfigError
from mergeops.executors import Advanced, Event, Finished, Lost, Started, Unit, open_executor
from mergeops.executors.slurm import SlurmParameters, sbatch_options, sbatch_time
from mergeops.recipe import ExecutorSpec
from mergeops.testing import ExecutorContract

real = pytest.mark.skipif(not slurm_cluster.is_installed(), reason="Slurm is not installed")
needs_submitit = pytest.importorskip("submitit", reason="submitit is not installed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.SlurmCluster]:
    running = slurm_cluster.SlurmCluster(tmp_path_factory.mktemp("slurm"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        running.start()
        yield running
        running.stop()


@pytest.fixture
def spec(cluster: slurm_cluster.SlurmCluster, tmp_path: Path) -> ExecutorSpec:
    parameters = {"folder": str(cluster.folder / "jobs"), "driver": "127.0.0.1", "time": "10min"}
    return ExecutorSpec(name="slurm", workers=2, threads=1, parameters=parameters)


@real
@pytest.mark.integration
@pytest.mark.slow
class TestSlurm(ExecutorContract):
    executor = "slurm"

    @pytest.fixture
    def spec(self, spec: ExecutorSpec) -> ExecutorSpec:
        return spec


@real
@pytest.mark.integration
def test_a_partition_that_does_not_exist_is_refused(spec: ExecutorSpec) -> None:
    wrong = ExecutorSpec(**{**vars(spec), "parameters": {"partition": "gpu"}})
    with pytest.raises(ConfigError, match=r"executor\.partition is 'gpu'; there are: cpu, urgent"):
        open_executor(wrong)


@real
@pytest.mark.integration
def test_the_number_of_jobs_has_to_be_said(spec: ExecutorSpec) -> None:
    with pytest.raises(ConfigError, match="say how many jobs"):
        open_executor(ExecutorSpec(**{**vars(spec), "workers": "auto"}))


@real
@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.sweep
def test_a_sweep_and_a_search_are_the_same_when_a_worker_dies(
    spec: ExecutorSpec, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    SpreadTrials(tiny_llama, f"sqlite:///{tmp_path}/mlflow.db", tmp_path).check_on(spec)


@real
@pytest.mark.integration
@pytest.mark.slow
def test_a_merge_is_the_same_when_a_worker_and_a_node_die(
    spec: ExecutorSpec,
    cluster: slurm_cluster.SlurmCluster,
    tiny_llama: Callable[..., Path],
    tmp_path: Path,
) -> None:
    spread = Spread(tiny_llama, tmp_path)
    assert spread.merged_on(spec, "whole") == spread.merged_here
    assert spread.merged_on(spec, "killed", after=2, then=spread.kill_worker) == spread.merged_here
    dead = spread.merged_on(spec, "node", after=2, then=lambda: cluster.kill_node("n2"))
    assert dead == spread.merged_here


@real
@pytest.mark.integration
@pytest.mark.slow
def test_a_unit_goes_on_when_an_urgent_partition_takes_its_node(
    spec: ExecutorSpec, cluster: slurm_cluster.SlurmCluster
) -> None:
    unit = Unit.of("mergeops.testing.executor_units:double", {"i": 4, "seconds": 8})
    told: list[Event] = []
    with open_executor(dataclasses.replace(spec, workers=1)) as executor:
        executor.submit(unit)
        for event in executor.events():
            told.append(event)
            if isinstance(event, Started) and len(told) == 1:
                node = event.worker.split()[-1]
                urgent = ["--partition=urgent", f"--nodelist={node}", "--exclusive"]
                said = cluster.says("sbatch", *urgent, "--output=/dev/null", "--wrap=sleep 3")
                assert "Submitted" in said
    kinds = [type(event) for event in told if not isinstance(event, Advanced)]
    assert kinds == [Started, Lost, Started, Finished]
    assert isinstance(told[-1], Finished) and told[-1].result == {"twice": 8}


@pytest.mark.parametrize(
    ("text", "said"),
    [("2h", "2:00:00"), ("30min", "0:30:00"), ("90s", "0:02:00"), ("1-12:00:00", "1-12:00:00")],
)
def test_times_are_written_as_sbatch_reads_them(text: str, said: str) -> None:
    assert sbatch_time(text) == said


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"executor\.time is 'soon'"):
        SlurmParameters(time="soon")


def test_no_gpu_is_asked_for_unless_a_unit_scores() -> None:
    spec = ExecutorSpec(name="slurm", workers=2)
    assert sbatch_options(spec, SlurmParameters(), None) == {"cpus-per-task": 1}
    more = ExecutorSpec(name="slurm", gpus_per_worker=1.0, threads=8)
    parameters = SlurmParameters(partition="gpu", options={"account": "lab"})
    assert sbatch_options(more, parameters, 8 * 10**9) == {
        "partition": "gpu",
        "cpus-per-task": 8,
        "mem": "10000M",
        "gpus-per-node": 1,
        "account": "lab",
    }
