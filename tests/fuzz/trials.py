"""Mutated files, each read by a process of its own with limits of time and memory.

The processes are forked from one that has imported everything, so that each takes milliseconds.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import resource
import select
import shutil
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from fuzz.mutations import ELSEWHERE, mutate_file
from fuzz.places import KINDS, AcceptedError, FuzzKind, build

SECONDS = 10
"""Of processor time; the machine may be busy with others."""
PATIENCE = 60
WAYS = 6
"""Seeds by which each kind is read as it was made, beforehand."""
MEMORY = 2 << 30
"""Bytes above what the process has when it begins."""
BAD = ("traceback", "hang", "memory", "wrong result", "elsewhere")
ALLOWED = {"in", "out", "merged", "cut", "kept", "mergeops-work", "recipe.yaml", "mergekit.yml"}
ALLOWED |= {"answers", "notes", "s3"}


@dataclass(frozen=True)
class FuzzTrial:
    """How one mutation ended."""

    kind: str
    seed: int
    end: str
    """accepted, refused, or one of ``BAD``."""
    said: str

    @property
    def where(self) -> str:
        """What tells one finding from another: the last line of the traceback in mergeops."""
        lines = [line.strip() for line in self.said.splitlines() if "/mergeops/" in line]
        last = self.said.strip().splitlines()[-1:]
        return " | ".join([*lines[-1:], *last])[:300]


class Fuzzer:
    """Makes mutations of the kinds in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template = folder / "template"
        self.template.mkdir(parents=True)
        build(self.template)
        os.chdir(folder)
        # What is imported now is not imported by each process.
        import mergeops.adoption.facts
        import mergeops.engine.execute
        import mergeops.inspection.inspection
        import mergeops.planning.planner
        import mergeops.store.client
        import mergeops.tracking

        mergeops.store.client.quiet()
        self._read_whole()

    def _read_whole(self) -> None:
        """Read each kind as it was made, here: mutations of what is refused show nothing.

        What this imports and composes, no process does again.
        """
        import torch

        # A process that is forked beside threads of this one would wait for them.
        torch.set_num_threads(1)
        for kind, seed in itertools.product(KINDS, range(WAYS)):
            place = self.folder / "whole"
            kind.copy(self.template, place)
            with contextlib.chdir(place), mock.patch.dict(os.environ):
                kind.act(random.Random(seed))
            shutil.rmtree(place)
        gc.collect()
        gc.freeze()

    def attempt(self, kind: FuzzKind, seed: int) -> FuzzTrial:
        """Mutate a file of this kind, and read it."""
        root = self.folder / f"{kind.name.replace(' ', '-')}-{seed}"
        place = root / "place"
        kind.copy(self.template, place)
        (root / "outside").mkdir()
        (root / "report").touch()
        source = random.Random(f"{kind.name} {seed}")
        mutate_file(source.choice(kind.paths(place)), source)
        child = os.fork()
        if child == 0:
            _child(kind, place, source)
        status = _wait(child)
        said = (root / "report").read_text(errors="replace")
        end = _ending(status, said)
        if end not in BAD and (strays := _strays(root)):
            end, said = "elsewhere", f"{strays}\n{said}"
        if end not in BAD:
            shutil.rmtree(root)
        return FuzzTrial(kind.name, seed, end, said)


def _child(kind: FuzzKind, place: Path, source: random.Random) -> None:
    from mergeops.errors import MergeopsError

    report = place.parent / "report"
    code, said = 3, ""
    try:
        os.chdir(place)
        os.environ["TMPDIR"] = str(place.parent / "outside")
        own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, own + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        kind.act(source)
        code = 0
    except MergeopsError as error:
        code, said = 1, str(error)[:5000]
    except MemoryError:
        code, said = 4, traceback.format_exc()
    except AcceptedError as error:
        code, said = 5, str(error)
    except BaseException:
        said = traceback.format_exc()
        code = 4 if "can't allocate" in said or "Cannot allocate" in said else 3
    finally:
        with open(report, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(said)
        os._exit(code)


def _wait(child: int) -> int:
    handle = os.pidfd_open(child)
    ends, _, _ = select.select([handle], [], [], PATIENCE)
    os.close(handle)
    if not ends:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _ending(status: int, said: str) -> str:
    if status in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM):
        return "hang"
    known = {0: "accepted", 1: "refused", 4: "memory", 5: "wrong result"}
    return known.get(status, "traceback")


def _strays(root: Path) -> list[str]:
    """What was written where nothing may be."""
    names = {path.name for path in root.iterdir()} - {"place", "outside", "report"}
    names |= {ELSEWHERE} if os.path.lexists(ELSEWHERE) else set()
    inside = {path.name for path in (root / "place").iterdir()}
    names |= {
        name for name in inside - ALLOWED if not name.startswith((".cut.", ".out.", ".merged."))
    }
    return sorted(names)


def kinds_by_weight(source: random.Random) -> FuzzKind:
    """The kind that is next."""
    return source.choices(KINDS, [kind.weight for kind in KINDS])[0]
