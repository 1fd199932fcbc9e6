"""What an operator says about the service: a YAML file whose keys are these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeops.errors import ConfigError
from mergeops.schema import build, check_choice, check_range, read_yaml

VIEWER, OPERATOR, APPROVER = ROLES = ("viewer", "operator", "approver")
"""Who looks, who submits jobs and watches, who decides on proposals."""
EVERYBODY = "*"
MLFLOW = "mlflow"


@dataclass(frozen=True)
class ServiceConfig:
    """What jobs may do, and where. ``mergeops serve --config FILE`` and ``mergeops worker`` read
    it; without a file the defaults hold."""

    roots: tuple[str, ...] = (".",)
    """Directories that paths of a job must lie in; relative ones are relative to where the server
    or worker was started."""
    schemes: tuple[str, ...] = ("runs", "models", "hf", "merge")
    """What URIs of sources may begin with, beside directories inside ``roots``."""
    task_dirs: tuple[str, ...] = ()
    """Directories whose task YAML files a job may use; such a file may run Python code."""
    config_dir: str | None = None
    """The config directory that jobs are composed with; it is trusted, as on the command line."""
    trust_remote_code: bool = False
    """Whether a job may ask for code that a model carries."""
    hooks: bool = False
    """Whether a job may name hooks of a promotion."""
    commands: tuple[str, ...] = ()
    """Only these commands; none allows all that a job may be."""
    tracking_uris: tuple[str, ...] = ()
    """MLflow servers that a job may name, beside the service's own."""
    hosts: tuple[str, ...] = ()
    """Names under which browsers reach the server, beside those of this machine."""
    accounts: str = "none"
    """``mlflow``: accounts of the MLflow server get in by name and password, beside the token."""
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {VIEWER: (EVERYBODY,)})
    """viewer (looks), operator (submits jobs and watches), approver (decides on proposals): which
    accounts; ``*`` is every one. An administrator of the MLflow server has all."""
    requests_per_minute: int = 1200
    """Of one account."""
    max_body_kb: int = 256
    """Of a request."""
    max_queued: int = 10_000
    """Jobs that may wait at once."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More of it, for the jobs' processes."""

    def __post_init__(self) -> None:
        check_choice("accounts", self.accounts, ("none", MLFLOW))
        for role in self.roles:
            check_choice("a key of roles", role, ROLES)
        check_range("requests_per_minute", self.requests_per_minute, 60, None)
        check_range("max_body_kb", self.max_body_kb, 1, 65536)
        check_range("max_queued", self.max_queued, 1, None)


def read_config(path: Path | None) -> ServiceConfig:
    """Read an operator's file.

    Raises:
        ConfigError: it cannot be read, or has a key or a value that is not allowed.
    """
    if path is None:
        return ServiceConfig()
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} cannot be read: {error}") from error
    except ValueError as error:
        raise ConfigError(f"--config {path} is no YAML: {error}") from error
    try:
        config: ServiceConfig = build(ServiceConfig, raw, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config
