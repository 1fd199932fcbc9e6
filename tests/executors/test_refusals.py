"""What is wrong is said in one line before any work: engines, versions, storage, strangers."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any

import pytest

from mergeops.errors import ConfigError, MergeError
from mergeops.executors import (
    Event,
    Executor,
    Invitation,
    Launcher,
    Lost,
    Needs,
    Unit,
    engines,
    open_executor,
    results,
)
from mergeops.executors.line import connect
from mergeops.executors.local_processes import LocalWorkers
from mergeops.executors.surroundings import problems, questions
from mergeops.recipe import ExecutorSpec, Recipe, compose

RECIPE = {"sources": {"a": "/a", "b": "/b"}, "method": "linear"}


def unit(function: str, **payload: Any) -> Unit:
    return Unit.of(f"mergeops.testing.executor_units:{function}", payload, function)


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("ray", "ray", r"executor=ray needs Ray, .*pip install 'mergeops\[ray\]'"),
        ("slurm", "submitit", r"executor=slurm needs submitit, .*pip install 'mergeops\[slurm\]'"),
    ],
)
def test_an_engine_that_is_not_installed_says_the_extra(
    name: str, module: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=said):
        open_executor(ExecutorSpec(name=name, workers=2))


def test_slurm_is_used_on_its_own_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="there is no sbatch here"):
        open_executor(ExecutorSpec(name="slurm", workers=2))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"workers": 0}, r"executor\.workers is 0; allowed: auto, or at least 1"),
        ({"workers": "many"}, r"executor\.workers is 'many'"),
        ({"memory": "much"}, r"executor\.memory is 'much'; write a number with one of"),
        ({"threads": 0}, r"executor\.threads is 0; allowed: at least 1"),
        ({"patience_s": 0.1}, r"executor\.patience_s is 0\.1; allowed: at least 1"),
    ],
)
def test_a_wrong_value_is_refused_with_the_recipe(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Recipe.from_dict({**RECIPE, "executor": raw})


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"executor\.name is 'dask'; allowed: local, ray, slurm"):
        open_executor(ExecutorSpec(name="dask"))


def test_where_work_is_done_is_no_part_of_a_recipes_digest() -> None:
    words = ["sources.a=/a", "sources.b=/b"]
    here, there = compose(words), compose([*words, "executor=ray", "executor.address=h:1"])
    assert there.executor == ExecutorSpec(
        name="ray", parameters={"address": "h:1"}, gpus_per_worker=0.0
    )
    assert here.sha256() == there.sha256()
    assert Recipe.from_dict(there.to_dict()) == there
    assert here.executor.is_here and not there.executor.is_here


def test_other_versions_are_named() -> None:
    asked = questions(Needs(), {})
    assert problems(asked, "worker 1 on n1") == []
    asked["versions"] = {**asked["versions"], "torch": "1.0", "extra": "2"}
    [said] = problems(asked, "worker 1 on n1")
    assert said.startswith("worker 1 on n1 has other versions: extra not installed (here 2), torch")
    assert "(here 1.0); results could differ" in said


def test_files_that_say_something_else_are_named(tmp_path: Path) -> None:
    weights, task = tmp_path / "a.safetensors", tmp_path / "task.yaml"
    weights.write_bytes(b"12345")
    task.write_text("task: mine")
    right = hashlib.sha256(b"task: mine").hexdigest()
    fitting = Needs(files={str(weights): 5}, digests={str(task): right})
    assert problems(questions(fitting, {}), "w") == []
    other = Needs(files={str(weights): 6}, digests={str(task): "0" * 64})
    sizes, says = problems(questions(other, {}), "w")
    assert sizes.startswith(f"w has another {weights}: it has 5 bytes, and 6 here")
    assert says == f"w has another {task}; it has to say the same on all machines"


def test_a_directory_that_is_not_shared_is_named(tmp_path: Path) -> None:
    [said] = problems(questions(Needs(), {str(tmp_path): ".probe"}), "worker 1 on n1")
    assert f"worker 1 on n1 does not see what is written to {tmp_path} here" in said


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="missing.* cannot be written"):
        open_executor(ExecutorSpec(workers=1), Needs(shared=(str(tmp_path / "missing"),)))


def test_a_stranger_is_not_let_in() -> None:
    with open_executor(ExecutorSpec(workers=1, threads=1)) as executor:
        stranger = Invitation(1, executor.address, "00" * 32)
        with pytest.raises((AuthenticationError, EOFError)):
            connect(stranger)
        # Nor does one that says nothing keep others out.
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(executor.address)
            [event] = results(executor, [unit("double", i=4)])
    assert event.result == {"twice": 8}


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced() -> None:
    told: list[Event] = []

    def stop(event: Event) -> None:
        told.append(event)
        if len(told) == 1:
            [process] = workers._processes.values()
            os.kill(process.pid, signal.SIGSTOP)

    workers = LocalWorkers(1, 1)
    with Executor(workers, patience_s=6.0) as executor:
        list(results(executor, [unit("double", i=0)]))
        [event] = results(executor, [unit("double", i=1, seconds=0.5)], tell=stop)
    assert event.result == {"twice": 2}
    [lost] = [event for event in told if isinstance(event, Lost)]
    assert lost.reason == "it said nothing for 6 s"


def test_workers_that_cannot_begin_are_an_error_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        open_executor(ExecutorSpec(workers=1)) as executor,
        pytest.raises(ConfigError, match=r"workers end before they begin, .* exit code 1"),
    ):
        list(results(executor, [unit("double", i=1)]))


@dataclass(frozen=True)
class ToyParameters:
    """Parameters of an executor that exists in these tests only."""

    colour: str = "red"
    """Any."""


def test_another_package_brings_an_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    def launcher(spec: ExecutorSpec, parameters: ToyParameters, memory: int | None) -> Launcher:
        made.append((parameters, memory))
        return LocalWorkers(2, 1)

    monkeypatch.setattr(engines, "_REGISTRY", dict(engines._REGISTRY))
    plug_in = EntryPoint("toy", "nowhere.at_all", "mergeops.executors")
    monkeypatch.setattr(engines, "entry_points", lambda group: [plug_in])
    with pytest.raises(ConfigError, match=r"the plug-in nowhere\.at_all cannot be imported"):
        open_executor(ExecutorSpec(name="toy"))
    engines.executor("toy", ToyParameters)(launcher)
    with open_executor(ExecutorSpec(name="toy", memory="1GB", parameters={"colour": "blue"})):
        assert made == [(ToyParameters("blue"), 10**9)]
