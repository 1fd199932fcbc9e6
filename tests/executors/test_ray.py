"""A real Ray cluster of two nodes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support import ray_cluster
from support.spread_merges import Spread
from support.spread_trials import SpreadTrials

from mergeops.errors import ConfigError
from mergeops.executors import Event, Finished, Lost, Unit, open_executor, results
from mergeops.recipe import ExecutorSpec
from mergeops.testing import ExecutorContract

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(not ray_cluster.is_installed(), reason="Ray is not installed"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ray_cluster.RayCluster]:
    # Ray's sockets lie in it, whose paths may have 107 characters.
    running = ray_cluster.RayCluster(tmp_path_factory.mktemp("r"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        running.start()
        yield running
        running.stop()


@pytest.fixture
def spec(cluster: ray_cluster.RayCluster) -> ExecutorSpec:
    parameters = {"address": cluster.address}
    return ExecutorSpec(name="ray", workers=2, threads=1, parameters=parameters)


class TestRay(ExecutorContract):
    executor = "ray"

    @pytest.fixture
    def spec(self, spec: ExecutorSpec) -> ExecutorSpec:
        return spec


def test_an_address_without_a_cluster_is_refused() -> None:
    nobody = ExecutorSpec(name="ray", parameters={"address": "127.0.0.2:9"})
    with pytest.raises(ConfigError, match=r"no Ray cluster at executor\.address=127\.0\.0\.2:9"):
        open_executor(nobody)


def test_rays_client_is_refused_with_a_way_out() -> None:
    client = ExecutorSpec(name="ray", parameters={"address": "ray://head:10001"})
    with pytest.raises(ConfigError, match="ray job submit"):
        open_executor(client)


def test_what_no_node_has_is_refused(spec: ExecutorSpec) -> None:
    greedy = ExecutorSpec(**{**vars(spec), "gpus_per_worker": 1.0})
    with pytest.raises(ConfigError, match=r"GPU 1 \(the most that one has is 0\)"):
        open_executor(greedy)


def test_where_ray_ends_the_process_that_is_connected_the_work_goes_on(spec: ExecutorSpec) -> None:
    units = [
        Unit.of("mergeops.testing.executor_units:double", {"i": i, "seconds": 1.0}, f"unit {i}")
        for i in range(6)
    ]
    lost: list[Lost] = []
    with open_executor(spec) as opened:

        def tell(event: Event) -> None:
            if isinstance(event, Lost):
                lost.append(event)
            elif isinstance(event, Finished) and not lost and not killed:
                [driver] = [
                    child
                    for child in psutil.Process().children()
                    if "mergeops.executors.ray_driver" in child.cmdline()
                ]
                driver.kill()
                killed.append(driver.pid)

        killed: list[int] = []
        ended = list(results(opened, units, tell=tell))
    assert sorted(event.result["twice"] for event in ended) == [0, 2, 4, 6, 8, 10]
    assert killed and lost


def test_a_process_that_uses_ray_itself_keeps_its_connection(
    spec: ExecutorSpec, cluster: ray_cluster.RayCluster
) -> None:
    """In a process of its own: Ray may end the one that is connected."""
    script = f"""
import ray
from mergeops.executors import Unit, open_executor, results
from mergeops.recipe import ExecutorSpec

ray.init(address={cluster.address!r}, log_to_driver=False)
held = ray.put("kept")
spec = ExecutorSpec(name="ray", workers=1, threads=1, parameters={{"address": {cluster.address!r}}})
unit = Unit.of("mergeops.testing.executor_units:double", {{"i": 4}}, "unit")
with open_executor(spec) as opened:
    [ended] = results(opened, [unit])
print(ended.result["twice"], ray.get(held))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout.split() == ["8", "kept"], ran.stderr


@pytest.mark.sweep
def test_a_sweep_and_a_search_are_the_same_when_a_worker_dies(
    spec: ExecutorSpec, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    SpreadTrials(tiny_llama, f"sqlite:///{tmp_path}/mlflow.db", tmp_path).check_on(spec)


def test_a_merge_is_the_same_when_a_worker_and_a_node_die(
    spec: ExecutorSpec,
    cluster: ray_cluster.RayCluster,
    tiny_llama: Callable[..., Path],
    tmp_path: Path,
) -> None:
    spread = Spread(tiny_llama, tmp_path)
    assert spread.merged_on(spec, "whole") == spread.merged_here
    assert spread.merged_on(spec, "killed", after=2, then=spread.kill_worker) == spread.merged_here
    dead = spread.merged_on(spec, "node", after=2, then=lambda: cluster.kill_node("other"))
    assert dead == spread.merged_here
