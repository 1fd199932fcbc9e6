"""What ``mergeops doctor`` checks: versions, devices, tracking server, disk; with what to do."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click

from mergeops.checkpoint import size_text
from mergeops.cli.console import console, echo, table
from mergeops.cli.options import AS_JSON, CONFIG_DIR, OVERRIDES, Call, options
from mergeops.errors import MergeopsError
from mergeops.executors import examine_executor, script_of
from mergeops.recipe import Recipe
from mergeops.store import (
    Tracking,
    access,
    account,
    connect_to_server,
    reach,
    try_artifacts,
)
from mergeops.version import __version__

PACKAGES = ("torch", "transformers", "safetensors", "mlflow", "lm_eval", "hydra-core")
LITTLE_DISK = 10 * 10**9


@dataclass(frozen=True)
class HealthCheck:
    """One finding."""

    name: str
    status: str
    """ok, warn or fail."""
    detail: str
    fix: str = ""
    """What to do about it; empty when ok."""


def examine(recipe: Recipe) -> list[HealthCheck]:
    """Run every check; none of them raises."""
    checks: list[Callable[[], list[HealthCheck]]] = [
        _versions,
        _devices,
        lambda: _tracking(recipe),
        lambda: _disk(Path(recipe.output.dir)),
        _hub,
        lambda: _executor(recipe),
    ]
    return [finding for check in checks for finding in check()]


def print_checks(checks: list[HealthCheck]) -> None:
    """Print the findings as a table on stdout."""
    from rich.text import Text

    colour = {"ok": "green", "warn": "yellow", "fail": "red"}
    rows = [
        (check.name, Text(check.status, colour[check.status]), check.detail, check.fix)
        for check in checks
    ]
    console().print(table(("check", "", "found", "what to do"), rows, ruled=False))


def _versions() -> list[HealthCheck]:
    findings = [
        HealthCheck("mergeops", "ok", f"{__version__}, Python {platform.python_version()}"),
    ]
    for package in PACKAGES:
        try:
            findings.append(HealthCheck(package, "ok", metadata.version(package)))
        except metadata.PackageNotFoundError:
            fix = "install mergeops again: pip install mergeops"
            findings.append(HealthCheck(package, "fail", "not installed", fix))
    return findings


def _devices() -> list[HealthCheck]:
    import psutil
    import torch

    memory = psutil.virtual_memory().total / 2**30
    findings = [HealthCheck("cpu", "ok", f"{psutil.cpu_count()} cores, {memory:.0f} GiB memory")]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(i)
            detail = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
            findings.append(HealthCheck(f"cuda:{i}", "ok", detail))
    elif shutil.which("nvidia-smi"):
        findings.append(
            HealthCheck(
                "cuda",
                "warn",
                f"a driver is here, but torch {torch.__version__} cannot use it",
                "install a CUDA build of torch",
            )
        )
    else:
        findings.append(HealthCheck("cuda", "ok", "none; merges and scores run on the CPU"))
    return findings


def _tracking(recipe: Recipe) -> list[HealthCheck]:
    spec = recipe.tracking
    if spec.offline:
        return [HealthCheck("tracking", "ok", "offline; trials are kept until `mergeops sync`")]
    try:
        shown = reach(spec)
        let_in = access(spec)
    except MergeopsError as error:
        fix = "start the server, or set tracking.uri or MLFLOW_TRACKING_URI"
        if "denies access" in str(error):
            fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; see docs/servers.md"
        return [HealthCheck("tracking", "fail", str(error), fix)]
    findings = [HealthCheck("tracking", "ok", f"{shown}, experiment {spec.experiment}")]
    if let_in is not None:
        status = "warn" if let_in.advice else "ok"
        findings.append(HealthCheck("access", status, let_in.detail, let_in.advice))
    try:
        findings += _account(connect_to_server(spec)) if shown.startswith("http") else []
    except MergeopsError as error:
        findings.append(HealthCheck("account", "fail", str(error), "see docs/servers.md"))
    try:
        place = try_artifacts(spec)
    except MergeopsError as error:
        fix = "check the artifact store and its credentials; see docs/servers.md"
        return [*findings, HealthCheck("artifacts", "fail", str(error), fix)]
    return [*findings, HealthCheck("artifacts", "ok", place)]


def _account(tracking: Tracking) -> list[HealthCheck]:
    """The workspace, and who asks there and may do what."""
    workspace = tracking.workspace or "none chosen: the server's default"
    findings = [HealthCheck("workspace", "ok", workspace)]
    asking = account(tracking)
    if asking is None:
        return findings
    if asking.is_admin:
        return [*findings, HealthCheck("account", "ok", f"{asking.name}, an administrator")]
    may = [what for what, is_allowed, _ in asking.rights if is_allowed]
    lacks = {what: permission for what, is_allowed, permission in asking.rights if not is_allowed}
    detail = f"{asking.name} may {'; '.join(may) or 'only read'}"
    if not lacks:
        return [*findings, HealthCheck("account", "ok", detail)]
    advice = "; ".join(f"to {what} takes {permission}" for what, permission in lacks.items())
    detail += f"; may not {'; '.join(lacks)}"
    return [*findings, HealthCheck("account", "warn", detail, advice)]


def _disk(work_dir: Path) -> list[HealthCheck]:
    place = work_dir.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{size_text(free)} free for {work_dir}"
    if free < LITTLE_DISK:
        return [HealthCheck("disk", "warn", detail, "free some space, or set output.dir elsewhere")]
    return [HealthCheck("disk", "ok", detail)]


def _hub() -> list[HealthCheck]:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return [HealthCheck("hub", "ok", "HF_HUB_OFFLINE is set; hf:// reads only the local cache")]
    return [HealthCheck("hub", "ok", "hf:// sources are downloaded when a recipe names them")]


def _executor(recipe: Recipe) -> list[HealthCheck]:
    if recipe.executor.is_here:
        return []
    try:
        return [HealthCheck("executor", "ok", examine_executor(recipe.executor))]
    except MergeopsError as error:
        return [HealthCheck("executor", "fail", str(error), "see docs/clusters.md")]


@click.command()
@OVERRIDES
@options(CONFIG_DIR, AS_JSON)
def doctor(call: Call) -> None:
    """Check versions, devices, the tracking server and disk space, and say what to fix."""
    recipe = call.recipe()
    checks = examine(recipe)
    call.show(checks, print_checks)
    if not call.as_json and (script := script_of(recipe.executor)) is not None:
        echo(f"\n{script}", nl=False)
    if any(check.status == "fail" for check in checks):
        sys.exit(1)
