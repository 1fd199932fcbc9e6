"""What a tool makes, as a trial: the same steps as those of a merge, from its parents to scores."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from mergeops.checkpoint import read_manifest
from mergeops.errors import ConfigError
from mergeops.pipeline import Made, TrialWork, check_questions, track
from mergeops.progress import Progress
from mergeops.recipe import Recipe, ToolSpec, compose
from mergeops.sources import Resolved, resolve_with_bar
from mergeops.tools import Tools
from mergeops.tracking import Trial

SETTINGS = ("evaluate", "name", "output", "path_map", "promote", "tracking", "trust_remote_code")
"""Keys of a recipe that hold for a tool, too."""


@dataclass(frozen=True, kw_only=True)
class ToolLog:
    """Whether and how what a tool makes becomes a trial."""

    is_wanted: bool = False
    overrides: Sequence[str] = ()
    """Of ``SETTINGS``."""
    config_dir: Path | None = None
    experiment: str | None = None
    """In place of ``tracking.experiment``."""
    register: str | None = None
    """In place of ``tracking.registered_model``; then what has no scores becomes a version, too."""


class Result(Protocol):
    """What a tool made."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""


Kind = TypeVar("Kind", bound=Result)


@dataclass(frozen=True)
class Derived(Generic[Kind]):
    """What a tool made, and its trial where it was logged."""

    result: Kind
    recipe: Recipe
    """What its trial has as such."""
    trial: Trial | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return self.result.to_dict() | ({"trial": self.trial.to_dict()} if self.trial else {})


class ToolTrial:
    """One call of a tool: its inputs, resolved, and what is logged of it.

    Args:
        tool: what decides the weights besides the inputs.
        inputs: base, base_adapter and sources, as a recipe has them.
        log: whether and how it becomes a trial.
        progress: where steps are shown.

    Raises:
        ConfigError: an override is none of a tool's, or an option says nothing without the log.
        MergeopsError: as ``check_questions`` and ``connect``, before any work.
    """

    def __init__(
        self, tool: ToolSpec, inputs: Mapping[str, Any], log: ToolLog, progress: Progress
    ) -> None:
        self.recipe = _recipe(tool, inputs, log)
        self._progress = progress
        self._tools: Tools | None = None
        if log.is_wanted:
            self._tools = Tools(self.recipe, progress)
            check_questions(self.recipe, self._tools)

    @property
    def cache_dir(self) -> Path:
        """Where downloads, digests and what tools make on their way are kept."""
        return Path(self.recipe.output.dir) / "cache"

    def resolve(self) -> Resolved:
        """Find and pin the inputs."""
        if self._tools is not None:
            return self._tools.resolve(self.recipe)
        return resolve_with_bar(self.recipe, self._progress, cache_dir=self.cache_dir)

    def ended(
        self,
        result: Kind,
        out: Path,
        *,
        measures: Mapping[str, float],
        plan: Mapping[str, Any] | None = None,
    ) -> Derived[Kind]:
        """Log what was made, where that is wanted, or find it logged.

        Args:
            result: of the tool.
            out: its directory.
            measures: numbers of its making.
            plan: what decided the bytes; None takes the recipe's part.

        Raises:
            MergeopsError: as a trial.
        """
        if self._tools is None:
            return Derived(result, self.recipe, None)
        manifest = read_manifest(out)
        assert manifest is not None, "a tool ends with the manifest"
        said = {k: v for k, v in result.to_dict().items() if k not in ("was_there", "warnings")}
        made = Made(out.absolute(), measures, said)
        work = TrialWork(
            name=self.recipe.name or f"{self.recipe.made_by} {out.absolute().name}",
            digest=str(manifest["plan_digest"]),
            plan=plan or self.recipe.weights_dict(),
            make=lambda: made,
        )
        return Derived(result, self.recipe, track(self.recipe, self._tools, work))


def _recipe(tool: ToolSpec, inputs: Mapping[str, Any], log: ToolLog) -> Recipe:
    for word in log.overrides:
        key = re.split(r"[.=/]", word.lstrip("+~"), maxsplit=1)[0]
        if key not in SETTINGS:
            raise ConfigError(
                f"{word!r} is no setting of `mergeops {tool.name}`; it takes overrides of "
                f"{', '.join(SETTINGS)}"
            )
        if key == "evaluate" and not log.is_wanted:
            raise ConfigError(f"{word!r} scores what is made, which takes --log")
    options = {"--experiment": log.experiment, "--register": log.register}
    for option, value in options.items():
        if value is not None and not log.is_wanted:
            raise ConfigError(f"{option} is {value!r}, which is for --log")
    given = compose(log.overrides, config_dir=log.config_dir, content={"method": "linear"})
    recipe = compose(content={"method": "linear", **inputs})
    tracking = given.tracking
    if log.experiment is not None:
        tracking = dataclasses.replace(tracking, experiment=log.experiment)
    if log.register is not None:
        tracking = dataclasses.replace(tracking, registered_model=log.register, register="unscored")
    taken = {key: getattr(given, key) for key in SETTINGS} | {"tracking": tracking}
    # What is made is what the tool makes.
    taken["output"] = dataclasses.replace(given.output, as_="model")
    return dataclasses.replace(recipe, tool=tool, **taken)
