"""mergekit-moe's YAML: dense models that become the experts of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError
from mergeops.recipe.mergekit.model_names import ModelName, read_reference
from mergeops.recipe.yaml_items import YamlItem, read_documents

GATE_MODES = ("hidden", "cheap_embed", "random")
ARCHITECTURES = ("mixtral", "qwen", "qwen3", "deepseek")
"""mergekit's words for what may be written."""
DTYPES = ("bfloat16", "float16", "float32")
_PROMPTS = ("positive_prompts", "negative_prompts")
_EXPERT = ("source_model", *_PROMPTS, "residual_scale", "noise_scale")
_KEYS = (
    "base_model",
    "gate_mode",
    "dtype",
    "experts_per_token",
    "experts",
    "shared_experts",
    "architecture",
)


@dataclass(frozen=True)
class Expert:
    """A dense model whose MLPs become one expert of each layer."""

    model: ModelName
    positive_prompts: tuple[str, ...] = ()
    """What it shall be asked."""
    negative_prompts: tuple[str, ...] = ()
    """What it shall not be asked."""
    residual_scale: float = 1.0
    """Factor on what it adds to a token."""


@dataclass(frozen=True, kw_only=True)
class MixtureSpec:
    """What the file says."""

    base: ModelName
    """Gives everything but the experts."""
    experts: tuple[Expert, ...]
    shared: Expert | None = None
    """The expert that sees every token."""
    gate_mode: str = "hidden"
    """How the routers' weights are found; one of ``GATE_MODES``."""
    dtype: str = "auto"
    """auto, as the base has each tensor, or one of ``DTYPES``."""
    experts_per_token: int = 2
    architecture: str | None = None
    """One of ``ARCHITECTURES``; None takes what fits the base."""

    @property
    def every(self) -> tuple[Expert, ...]:
        """The experts, and the shared one last."""
        return (*self.experts, *([self.shared] if self.shared else []))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def read_mixture(path: Path) -> MixtureSpec:
    """Read and check the file.

    Raises:
        ConfigError: with the line, the key and what is allowed.
    """
    try:
        items = read_documents(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if len(items) != 1:
        raise ConfigError(f"{path} has {len(items)} documents; it takes one, with experts")
    (item,) = items
    keys = item.mapping(_KEYS, "base_model, gate_mode and experts")
    for key in ("base_model", "experts"):
        if key not in keys:
            raise item.error(f"has no {key}")
    mode = keys["gate_mode"].choice(GATE_MODES) if "gate_mode" in keys else "hidden"
    experts = [_expert(one, mode) for one in keys["experts"].items("a list of experts")]
    if len(experts) < 2:
        raise keys["experts"].error(f"has {len(experts)} expert(s); a router chooses among two")
    shared: list[Expert] = []
    if "shared_experts" in keys:
        shared = [_expert(one, mode) for one in keys["shared_experts"].items("a list of experts")]
        if len(shared) > 1:
            raise keys["shared_experts"].error(f"has {len(shared)}; at most one is possible")
    return MixtureSpec(
        base=read_reference(keys["base_model"]),
        experts=tuple(experts),
        shared=shared[0] if shared else None,
        gate_mode=mode,
        dtype=keys["dtype"].choice(DTYPES) if "dtype" in keys else "auto",
        experts_per_token=_per_token(keys, len(experts)),
        architecture=keys["architecture"].choice(ARCHITECTURES) if "architecture" in keys else None,
    )


def _per_token(keys: Mapping[str, YamlItem], most: int) -> int:
    item = keys.get("experts_per_token")
    if item is None:
        return 2
    number = item.whole()
    if not 1 <= number <= most:
        raise item.error(f"is {number}; allowed: from 1 to the number of experts, {most}")
    return number


def _expert(item: YamlItem, mode: str) -> Expert:
    keys = item.mapping(_EXPERT, "source_model and positive_prompts")
    if "source_model" not in keys:
        raise item.error("has no source_model")
    prompts = {key: _prompts(keys[key]) if key in keys else () for key in _PROMPTS}
    if mode != "random" and not prompts["positive_prompts"]:
        raise item.error(
            f"has no positive_prompts, which gate_mode {mode} makes its gate of; write some, or "
            "gate_mode: random"
        )
    if "noise_scale" in keys and keys["noise_scale"].number():
        raise keys["noise_scale"].error(
            "adds noise to an expert's weights, which is not done here; leave it out"
        )
    scale = keys["residual_scale"].number() if "residual_scale" in keys else 1.0
    return Expert(read_reference(keys["source_model"]), **prompts, residual_scale=scale)


def _prompts(item: YamlItem) -> tuple[str, ...]:
    return tuple(prompt.text() for prompt in item.items("a list of texts"))
