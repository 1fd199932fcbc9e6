"""What a worker finds around it: versions, files and directories, held against the driver's."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from mergeops.executors.units import Needs
from mergeops.version import __version__

VERSIONS = ("torch", "transformers", "lm_eval")
"""Packages whose other versions may give other numbers."""


@cache
def versions() -> dict[str, str]:
    """Versions of what decides a unit's result, by name."""
    found = {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "mergeops": f"{__version__} ({_code()[:8]})",
    }
    for package in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _code() -> str:
    """Digest of the package's own files: a checkout may differ and have the same version."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def questions(needs: Needs, probes: Mapping[str, str]) -> dict[str, Any]:
    """What a worker is asked before it is given work, as JSON types.

    Args:
        needs: what units need.
        probes: directory -> name of the file that the driver put there.
    """
    return {
        "versions": versions(),
        "directory": os.getcwd(),
        "files": dict(needs.files),
        "digests": dict(needs.digests),
        "probes": dict(probes),
    }


def problems(asked: Mapping[str, Any], host: str) -> list[str]:
    """What here is not as the driver has it, one sentence each; the worst first."""
    return [
        *_other_versions(asked["versions"], host),
        *_unshared(asked["probes"], host),
        *_other_files(asked["files"], asked["digests"], host),
    ]


def _other_versions(wanted: Mapping[str, str], host: str) -> list[str]:
    here = versions()
    differing = [name for name in sorted({*wanted, *here}) if wanted.get(name) != here.get(name)]
    if not differing:
        return []
    told = ", ".join(
        f"{name} {here.get(name, 'not installed')} (here {wanted.get(name, 'not installed')})"
        for name in differing
    )
    return [
        f"{host} has other versions: {told}; results could differ: install the same on all machines"
    ]


def _unshared(probes: Mapping[str, str], host: str) -> list[str]:
    return [
        f"{host} does not see what is written to {directory} here; workers and this machine have "
        "to share it: put it on storage that all mount under this name"
        for directory, name in probes.items()
        if not Path(directory, name).is_file()
    ]


def _other_files(sizes: Mapping[str, int], digests: Mapping[str, str], host: str) -> list[str]:
    found = []
    for path, size in sizes.items():
        try:
            there = os.stat(path).st_size
        except OSError as error:
            found.append(
                f"{host} cannot read {Path(path).parent}: {Path(path).name}: {error.strerror}; put "
                "the directory on storage that all workers mount under this name"
            )
            continue
        if there != size:
            found.append(
                f"{host} has another {path}: it has {there} bytes, and {size} here; workers have "
                "to see the same files under the same names"
            )
    for path, digest in digests.items():
        try:
            same = hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
        except OSError as error:
            found.append(f"{host} cannot read {path}: {error.strerror}")
            continue
        if not same:
            found.append(f"{host} has another {path}; it has to say the same on all machines")
    return found


class Probes:
    """Files that the driver puts into directories, so that workers can tell whether they see them.

    Args:
        directories: that exist here.

    Raises:
        OSError: one cannot be written.
    """

    def __init__(self, directories: tuple[str, ...]) -> None:
        self.names: dict[str, str] = {}
        for directory in directories:
            name = f".mergeops-probe-{secrets.token_hex(8)}"
            Path(directory, name).touch()
            self.names[directory] = name

    def remove(self) -> None:
        """Take them away."""
        for directory, name in self.names.items():
            with suppress(OSError):
                Path(directory, name).unlink()
