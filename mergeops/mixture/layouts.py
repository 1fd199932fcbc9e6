"""Architectures with experts that transformers has, and the dense ones that fit into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.errors import ConfigError, MergeError

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""The matrices of a dense model's MLP."""
OUTWARD = "down_proj"
"""The one whose outputs are added to a token."""
_PLAIN = {name: name for name in PROJECTIONS}


@dataclass(frozen=True)
class Layout:
    """One architecture with experts."""

    model_type: str
    model_class: str
    bases: tuple[str, ...]
    """model_type of the dense models whose attention, norms and embeddings are its own."""
    block: str
    """Where in a layer the experts are."""
    projections: Mapping[str, str] = field(default_factory=lambda: _PLAIN)
    """A dense model's matrix -> what it is called in an expert."""
    count: str = "num_experts"
    """Setting that says how many experts there are."""
    width: str = "moe_intermediate_size"
    """Setting that says how wide they are."""
    has_shared: bool = False
    """Whether it has an expert that sees every token; then it must be there."""
    has_window: bool = False
    """Whether a window of attention means in it what it means in its bases."""

    def expert(self, layer: int, expert: int, projection: str) -> str:
        """Name of an expert's matrix."""
        return (
            f"model.layers.{layer}.{self.block}.experts.{expert}."
            f"{self.projections[projection]}.weight"
        )

    def gate(self, layer: int) -> str:
        """Name of a router's weight."""
        return f"model.layers.{layer}.{self.block}.gate.weight"

    def shared(self, layer: int, projection: str) -> str:
        """Name of a matrix of the shared expert."""
        return f"model.layers.{layer}.{self.block}.shared_expert.{projection}.weight"

    def shared_gate(self, layer: int) -> str:
        """Name of the weight that says how much of the shared expert is added."""
        return f"model.layers.{layer}.{self.block}.shared_expert_gate.weight"

    def settings(
        self, base: Mapping[str, Any], count: int, per_token: int, width: int
    ) -> dict[str, Any]:
        """What config.json says besides, or instead of, what the base's does."""
        settings = {
            "model_type": self.model_type,
            "architectures": [self.model_class],
            self.count: count,
            self.width: width,
            "num_experts_per_tok": per_token,
            "output_router_logits": False,
        }
        if self is MIXTRAL:
            return settings
        settings |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
        if self.has_shared:
            is_qwen = base["model_type"] == "qwen2"
            settings |= {"shared_expert_intermediate_size": width, "qkv_bias": is_qwen}
        return settings


MIXTRAL = Layout(
    "mixtral",
    "MixtralForCausalLM",
    ("llama", "mistral"),
    "block_sparse_moe",
    {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    count="num_local_experts",
    width="intermediate_size",
    has_window=True,
)
QWEN2 = Layout(
    "qwen2_moe", "Qwen2MoeForCausalLM", ("qwen2", "llama", "mistral"), "mlp", has_shared=True
)
QWEN3 = Layout("qwen3_moe", "Qwen3MoeForCausalLM", ("qwen3",), "mlp")
LAYOUTS = {"mixtral": MIXTRAL, "qwen": QWEN2, "qwen3": QWEN3}
"""By mergekit's words."""


def choose_layout(config: Mapping[str, Any], wanted: str | None, *, has_shared: bool) -> Layout:
    """The architecture of a mixture.

    Args:
        config: the base's config.json.
        wanted: by mergekit's words; None takes the first that fits.
        has_shared: whether there is a shared expert.

    Raises:
        ConfigError: the wanted one does not fit the base or the experts.
        MergeError: none does.
    """
    kind = config.get("model_type")
    if wanted == "deepseek":
        raise ConfigError(
            "architecture is deepseek, whose first models with experts are code of their own that "
            "transformers 5 does not have; take mixtral, or with a shared expert qwen"
        )
    named = LAYOUTS if wanted is None else {wanted: LAYOUTS[wanted]}
    fitting = [one for one in named.values() if kind in one.bases]
    if not fitting:
        known = sorted({base for one in named.values() for base in one.bases})
        raise MergeError(
            f"base_model is of model_type {kind!r}, whose experts no architecture "
            f"{f'{wanted} ' if wanted else ''}holds; allowed: {', '.join(known)}"
        )
    layout = next((one for one in fitting if one.has_shared is has_shared), None)
    if layout is None:
        (first, *_) = fitting
        what = (
            f"{first.model_type} has one expert that sees every token; name it under shared_experts"
            if first.has_shared
            else f"{first.model_type} has none that sees every token; leave shared_experts out"
        )
        raise ConfigError(f"the base's model_type is {kind}, and {what}")
    window = config.get("sliding_window") if kind == "mistral" else config.get("use_sliding_window")
    if window and not layout.has_window:
        raise MergeError(
            f"the attention of base_model has a window, which {layout.model_type} would lay out "
            "over other layers; take a base without one"
        )
    if config.get("auto_map"):
        raise MergeError(
            "the config.json of base_model names code of its own (auto_map), and what that "
            "computes is not known; take a base that transformers has"
        )
    return layout
