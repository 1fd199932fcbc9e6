"""What a config.json says of quantised weights, in a merge, whose weights are plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeops.checkpoint import said_of, without_quantisation


def plain_config(config: Mapping[str, Any], label: str) -> tuple[dict[str, Any], list[str]]:
    """The config as it is for plain weights, and a note where that is another one.

    Args:
        label: the input that it is of.
    """
    plain = without_quantisation(config)
    if plain == config or not said_of(config):
        return plain, []
    return plain, [
        f"the config.json of {label} has a quantization_config; the merge is written in plain "
        "numbers, and its config.json has none"
    ]
