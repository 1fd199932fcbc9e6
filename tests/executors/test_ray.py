"""A real Ray cluster of two nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ray_cluster
from support.spread_merges import Spread
from support.spread_trials import SpreadTrials

from mergeops.errors import ConfigError
from mergeops.executors import open_executor
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
