"""What ``mergeops doctor`` checks: versions, devices, tracking server, disk; with what to do."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mergeops import __version__
from mergeops.errors import MergeopsError
from mergeops.recipe import Recipe

PACKAGES = ("torch", "transformers", "safetensors", "mlflow", "lm_eval", "hydra-core")
LITTLE_DISK = 10 * 10**9


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    status: str
    """ok, warn or fail."""
    detail: str
    fix: str = ""
    """What to do about it; empty when ok."""

    def to_dict(self) -> dict[str, str]:
        """As JSON types."""
        return dataclasses.asdict(self)


def examine(recipe: Recipe) -> list[Check]:
    """Run every check; none of them raises."""
    checks: list[Callable[[], list[Check]]] = [
        _versions,
        _devices,
        lambda: _tracking(recipe),
        lambda: _disk(Path(recipe.output.dir)),
        _hub,
    ]
    return [finding for check in checks for finding in check()]


def print_checks(checks: list[Check]) -> None:
    """Print the findings as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    colour = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, pad_edge=False)
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        status = f"[{colour[check.status]}]{check.status}[/]"
        table.add_row(check.name, status, check.detail, check.fix)
    Console().print(table)


def _versions() -> list[Check]:
    findings = [
        Check("mergeops", "ok", f"{__version__}, Python {platform.python_version()}"),
    ]
    for package in PACKAGES:
        try:
            findings.append(Check(package, "ok", metadata.version(package)))
        except metadata.PackageNotFoundError:
            fix = "install mergeops again: pip install mergeops"
            findings.append(Check(package, "fail", "not installed", fix))
    return findings


def _devices() -> list[Check]:
    import psutil
    import torch

    memory = psutil.virtual_memory().total / 2**30
    findings = [Check("cpu", "ok", f"{psutil.cpu_count()} cores, {memory:.0f} GiB memory")]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(i)
            detail = f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
            findings.append(Check(f"cuda:{i}", "ok", detail))
    elif shutil.which("nvidia-smi"):
        findings.append(
            Check(
                "cuda",
                "warn",
                f"a driver is here, but torch {torch.__version__} cannot use it",
                "install a CUDA build of torch",
            )
        )
    else:
        findings.append(Check("cuda", "ok", "none; merges and scores run on the CPU"))
    return findings


def _tracking(recipe: Recipe) -> list[Check]:
    from mergeops.tracking.connection import reach
    from mergeops.tracking.probe import access, try_artifacts

    spec = recipe.tracking
    if spec.offline:
        return [Check("tracking", "ok", "offline; trials are kept until `mergeops sync`")]
    try:
        shown = reach(spec)
        let_in = access(spec)
    except MergeopsError as error:
        fix = "start the server, or set tracking.uri or MLFLOW_TRACKING_URI"
        if "denies access" in str(error):
            fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; see docs/servers.md"
        return [Check("tracking", "fail", str(error), fix)]
    findings = [Check("tracking", "ok", f"{shown}, experiment {spec.experiment}")]
    if let_in is not None:
        status = "warn" if let_in.advice else "ok"
        findings.append(Check("access", status, let_in.detail, let_in.advice))
    try:
        place = try_artifacts(spec)
    except MergeopsError as error:
        fix = "check the artifact store and its credentials; see docs/servers.md"
        return [*findings, Check("artifacts", "fail", str(error), fix)]
    return [*findings, Check("artifacts", "ok", place)]


def _disk(work_dir: Path) -> list[Check]:
    place = work_dir.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{free / 10**9:.0f} GB free for {work_dir}"
    if free < LITTLE_DISK:
        return [Check("disk", "warn", detail, "free some space, or set output.dir elsewhere")]
    return [Check("disk", "ok", detail)]


def _hub() -> list[Check]:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return [Check("hub", "ok", "HF_HUB_OFFLINE is set; hf:// reads only the local cache")]
    return [Check("hub", "ok", "hf:// sources are downloaded when a recipe names them")]
