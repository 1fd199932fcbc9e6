"""Which devices score, and candidates shared out among them: one worker a device, first come."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol, TypeVar

from mergeops.errors import ConfigError, EvaluationError
from mergeops.lazy_torch import torch

# Parameters up to which one thread is as fast as several.
_SMALL = 20_000_000

Item = TypeVar("Item", contravariant=True)
Device = TypeVar("Device")


class Worker(Protocol[Item]):
    """What works on one device."""

    def work(self, item: Item) -> None:
        """Do one piece."""

    def close(self) -> None:
        """Give back what is held on the device."""


def pick_devices(wanted: str) -> list[torch.device]:
    """The devices that ``evaluate.device`` stands for: every GPU, or one device.

    Raises:
        ConfigError: no device name.
        EvaluationError: no such device here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    every = [torch.device("cuda", i) for i in range(count)]
    if wanted == "auto":
        return every or [torch.device("cpu")]
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"evaluate.device is {wanted!r}; allowed: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise EvaluationError(
            f"evaluate.device is {wanted!r}, but this machine has {count} CUDA devices"
        )
    return every if device.type == "cuda" and device.index is None else [device]


def share_out(
    items: Iterable[Item], devices: Sequence[Device], open_worker: Callable[[Device], Worker[Item]]
) -> None:
    """Have every item worked on, by whichever device is free next.

    Workers run in threads, one alone in the caller's. After an error, or Ctrl-C, no new item is
    begun; each device is given back, and the first error is raised.

    Args:
        devices: no more are used than there are items.
        open_worker: called in the worker's thread.
    """
    items = list(items)
    waiting = iter(items)  # of all devices together, so that each item goes to one
    errors: list[BaseException] = []

    def run(device: Device) -> None:
        try:
            with closing(open_worker(device)) as worker:
                for item in waiting:
                    if errors:
                        return
                    worker.work(item)
        except BaseException as error:
            errors.append(error)

    used = list(devices)[: len(items)]
    if len(used) == 1:
        run(used[0])
    elif used:
        with ThreadPoolExecutor(len(used)) as threads:
            try:
                list(threads.map(run, used))
            except KeyboardInterrupt as interrupt:
                errors.append(interrupt)
    if errors:
        raise errors[0]


def use_threads_for(model: Any) -> int:
    """Give a small model on the CPU one thread; return the thread count to set back afterwards.

    Its operations take microseconds, less than the threads' barrier when another process wants a
    core: five tasks of 200 items on 2 M parameters took 24 s with two threads beside a training
    run, 2 s with one. The same count on every machine also keeps the last digits.
    """
    before = torch.get_num_threads()
    if model.device.type == "cpu" and model.num_parameters() <= _SMALL:
        torch.set_num_threads(1)
    return before


def seed_device(device: torch.device | None, seed: int) -> None:
    """Seed what is drawn on a device, and on no other GPU, where another model may be drawing.

    Args:
        device: None for a backend that takes what it finds: all are seeded.
    """
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def free_memory() -> None:
    """Give back what a dropped model held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine had no memory left; for the latter torch has no error class."""
    message = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or "out of memory" in message
        or "can't allocate memory" in message
    )
