"""Where and with what was measured."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.jobs import MERGEKIT, REPOSITORY, processors

OURS = ("torch", "numpy", "numba", "safetensors")
THEIRS = ("mergekit", "torch", "numpy", "safetensors", "transformers")


def describe() -> dict[str, str]:
    """What results are compared by: processor, memory, system, versions."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": f"{processor()}, {processors()} processors usable",
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "mergeops": ", ".join(
            [f"commit {commit_of(REPOSITORY)}", *(f"{n} {version(n)}" for n in OURS)]
        ),
        "mergekit": _theirs(),
    }


def processor() -> str:
    """Its model name, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def slug() -> str:
    """The processor's name and how many are usable, for names of files."""
    words = re.findall("[a-z0-9]+", processor().lower())
    return "-".join([*words, f"x{processors()}"])


def commit_of(checkout: Path) -> str:
    """What git calls the commit, and whether files differ from it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _theirs() -> str:
    code = (
        "from importlib.metadata import version;"
        f"print(', '.join(f'{{n}} {{version(n)}}' for n in {THEIRS}))"
    )
    command = [str(MERGEKIT / "python"), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
