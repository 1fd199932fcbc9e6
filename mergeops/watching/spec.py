"""What a watch is told: where runs come from, how merges are tried, and what it may use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError
from mergeops.recipe import packaged_conf, parse_size
from mergeops.schema import build, check_range, read_yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")


@dataclass(frozen=True)
class WatchBudget:
    """What one watch may use."""

    minutes: float = 120.0
    """Of one round; what is left waits for the next."""
    trials: int = 8
    """Merges that are made and scored in one round, at most."""
    search: int = 8
    """Candidates that the small search around a better merge proposes, raced on dev items; 0
    searches nothing."""
    bytes: str | None = None
    """Of the checkpoints that one round writes, e.g. 200GB: when nothing new is begun; null sets no
    end."""
    confirm_uses: int = 2
    """Times a month that the confirm part may be opened."""

    def __post_init__(self) -> None:
        check_range("budget.minutes", self.minutes, 0.1, None)
        check_range("budget.trials", self.trials, 1, 1000)
        check_range("budget.search", self.search, 0, 1000)
        check_range("budget.confirm_uses", self.confirm_uses, 0, None)
        if self.bytes is not None:
            parse_size("budget.bytes", self.bytes)


@dataclass(frozen=True)
class WatchSpec:
    """A watch."""

    name: str
    experiments: tuple[str, ...]
    """MLflow experiments whose ended runs are tried."""
    filter: str | None = None
    """MLflow's filter over runs, e.g. ``tags.team = 'nlp'``."""
    overrides: tuple[str, ...] = ()
    """What the trials' recipe is composed of, as words of ``mergeops run``: base, evaluate.tasks,
    tracking.registered_model, method."""
    every_s: float = 300.0
    """Seconds between two looks at the experiments."""
    batch: int = 1
    """New candidates that are waited for before any is tried."""
    silent_after_s: float = 3600.0
    """A RUNNING run that has logged nothing for so long counts as ended."""
    dev_confidence: float = 0.99
    """A merge is proposed when its gain over the champion on dev is above zero with this one-sided
    confidence; below it, it is kept for more to be added."""
    budget: WatchBudget = field(default_factory=WatchBudget)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"name is {self.name[:80]!r}; a watch's name is letters, digits, '.', '_' and '-'"
            )
        if not self.experiments:
            raise ConfigError("experiments is empty; name the experiments of your training runs")
        check_range("every_s", self.every_s, 1.0, None)
        check_range("batch", self.batch, 1, 1000)
        check_range("silent_after_s", self.silent_after_s, 60.0, None)
        check_range("dev_confidence", self.dev_confidence, 0.5, 0.999)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        raw = asdict(self)
        return raw | {"experiments": list(self.experiments), "overrides": list(self.overrides)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> WatchSpec:
        """What a file or a request says, over ``conf/watch/default.yaml``.

        Raises:
            ConfigError: an unknown key, a wrong type or a value out of range.
        """
        default = read_yaml((packaged_conf() / "watch" / "default.yaml").read_bytes())
        merged = {**default, **raw}
        budget = raw.get("budget")
        if isinstance(budget, Mapping):
            merged["budget"] = {**default["budget"], **budget}
        spec: WatchSpec = build(cls, merged, "")
        return spec


def read_watch_file(path: Path) -> dict[str, Any]:
    """A watch's file; its name is the file's, where it says none.

    Raises:
        ConfigError: it cannot be read, or is no watch.
    """
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} holds no mapping; a watch has the keys of conf/watch/default.yaml"
        )
    raw = {"name": path.stem, **raw}
    try:
        WatchSpec.from_dict(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return raw
