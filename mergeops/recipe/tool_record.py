"""What a trial's recipe says of a model that a tool made: extract, moe or transplant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.schema import check_choice

EXTRACT, MOE, TRANSPLANT = TOOLS = ("extract", "moe", "transplant")
"""Commands whose results may be trials."""


@dataclass(frozen=True)
class ToolSpec:
    """The command that made a model of a recipe's base and sources, in place of its method."""

    name: str
    """One of ``TOOLS``."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """All else that decides the weights, as JSON types."""

    def __post_init__(self) -> None:
        check_choice("tool.name", self.name, TOOLS)
