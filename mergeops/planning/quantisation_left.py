"""What a config.json still says of weights that were quantised once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUANTISATION = {"quantization_config", "compression_config"}


def without_quantisation(config: Mapping[str, Any], label: str) -> tuple[dict[str, Any], list[str]]:
    """The config without what is left over of a quantisation, over weights that have none."""
    left = {k: v for k, v in config.items() if k not in QUANTISATION}
    nested = {k: v for k, v in left.items() if isinstance(v, Mapping) and v.keys() & QUANTISATION}
    for key, value in nested.items():
        left[key] = {k: v for k, v in value.items() if k not in QUANTISATION}
    if left == config:
        return dict(config), []
    found = next(c for c in (config, *nested.values()) if c.keys() & QUANTISATION)
    said = next(value for key, value in found.items() if key in QUANTISATION)
    method = (
        f" ({said['quant_method']})" if isinstance(said, dict) and "quant_method" in said else ""
    )
    return left, [
        f"the config.json of {label} speaks of quantised weights{method}, and the weights are "
        "plain numbers: that is left out, or the merge would not load as it is"
    ]
