"""Which devices and lanes do the work."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from mergeops.engine import devices
from mergeops.engine.devices import choose_devices, lane_count
from mergeops.engine.lanes import Lane, Lanes, SingleThreads
from mergeops.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("auto", 0, ["cpu"]),
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("cuda", 2, ["cuda:0", "cuda:1"]),
        ("cuda:1", 2, ["cuda:1"]),
        ("cpu", 2, ["cpu"]),
    ],
)
def test_all_gpus_work_unless_one_is_named(
    name: str, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert list(choose_devices(name)) == expected


def test_a_gpu_that_torch_cannot_use_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """E.g. for an older driver, which still lists its devices."""
    monkeypatch.setattr(devices, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_devices("auto") == ("cpu",)
    with pytest.raises(ConfigError, match="'cuda', but torch sees 0 CUDA"):
        choose_devices("cuda")


def test_without_a_driver_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_driver", lambda: False)
    for question in ("is_available", "device_count"):
        monkeypatch.setattr(torch.cuda, question, lambda: pytest.fail("torch was asked"))
    assert choose_devices("auto") == ("cpu",)
    with pytest.raises(ConfigError, match=r"'cuda:0', but torch sees 0 CUDA device\(s\); try cpu"):
        choose_devices("cuda:0")


def test_lanes_take_turns_with_the_devices() -> None:
    devices = ["cuda:0", "cuda:1"]
    made: list[str] = []

    def make(device: str, single: SingleThreads) -> Lane:
        made.append(device)
        return Lane([], 1, 16, "F32", "cpu", single)

    # No lane goes on before all have begun, so each thread makes its own.
    together = threading.Barrier(4, timeout=30)
    jobs = [lambda lane, i=i: together.wait() and i for i in range(4)]
    with Lanes(make, devices, 4) as lanes:
        order = list(lanes.run(jobs))
    assert len(order) == 4
    assert sorted(made) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]


@pytest.mark.parametrize(
    ("wanted", "expected"), [("", 8), ("3", 3), ("64", 8), ("0", 8), ("2,4", 2), ("many", 8)]
)
def test_there_are_as_many_lanes_as_processors_or_as_omp_num_threads_says(
    wanted: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert lane_count(["cpu"]) == expected
