"""Where work is done: what every executor has, and room for each one's own keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mergeops.errors import ConfigError
from mergeops.recipe.settings import parse_size
from mergeops.schema import build, check_range, convert, unknown_key

EXECUTOR_PLUG_INS = "mergeops.executors"
"""The entry point group of modules that register executors when they are imported."""


@dataclass(frozen=True, kw_only=True)
class ExecutorSpec:
    """Where units of work are done; never what comes out."""

    name: str = "local"
    """local, ray, slurm, or what a plug-in registers."""
    workers: int | str = "auto"
    """How many work at a time; auto is one a device, for ray one a node."""
    threads: int | None = None
    """Processor threads of a worker; null shares out those that there are."""
    gpus_per_worker: float = 0.0
    """GPUs that ray and slurm are asked for, for each worker; a merge needs none."""
    memory: str | None = None
    """What a worker may hold in memory of its own, as output.shard_size is written; one that holds
    more is ended. Null sets no limit."""
    stage: str | None = None
    """A directory on a worker's own disk, where the weight files of sources are copied once and
    then read; $NAME is a variable of the worker's. Null reads them where they are."""
    patience_s: float = 60.0
    """Seconds of silence after which a worker is taken for gone."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The executor's own, written beside its name; it alone knows which there are."""

    def __post_init__(self) -> None:
        workers = self.workers
        if workers != "auto" and (not isinstance(workers, int) or workers < 1):
            raise ConfigError(f"executor.workers is {workers!r}; allowed: auto, or at least 1")
        if self.threads is not None:
            check_range("executor.threads", self.threads, 1, None)
        check_range("executor.gpus_per_worker", self.gpus_per_worker, 0.0, None)
        check_range("executor.patience_s", self.patience_s, 1.0, None)
        if self.memory is not None:
            parse_size("executor.memory", self.memory)

    @classmethod
    def from_dict(cls, raw: Any) -> ExecutorSpec:
        """Read what all executors have; the executor checks the rest with ``read``.

        Raises:
            ConfigError: no mapping, or a value that does not fit.
        """
        named = {"name": raw} if isinstance(raw, str) else raw or {}
        given = convert("executor", named, Mapping[str, Any])
        shared = {f.name for f in fields(cls)} - {"parameters"}
        rest = {key: value for key, value in given.items() if key not in shared}
        common = {key: value for key, value in given.items() if key in shared}
        spec: ExecutorSpec = build(cls, common, "executor.", given={"parameters": rest})
        return spec

    def to_dict(self) -> dict[str, Any]:
        """In the shape that ``from_dict`` reads."""
        plain = asdict(self)
        own: dict[str, Any] = plain.pop("parameters")
        return plain | own

    def read(self, parameters: type[Any]) -> Any:
        """The parameters as the dataclass of the executor.

        Raises:
            ConfigError: an unknown key, or a value that the dataclass refuses.
        """
        known = [f.name for f in fields(parameters)]
        for key in self.parameters:
            if key not in known:
                shared = [f.name for f in fields(self) if f.name != "parameters"]
                raise unknown_key("executor.", key, (*shared, *known), method=self.name)
        return build(parameters, self.parameters, "executor.")

    @property
    def is_here(self) -> bool:
        """Whether nothing was asked for but this very process."""
        return self == ExecutorSpec()
