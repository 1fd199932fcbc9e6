"""LoRA's factors A and B: whose weight they change, how they lie to it, and how it is scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mergeops.adapters.adapter_config import AdapterConfig
from mergeops.adapters.adapter_tensors import ModuleTensors
from mergeops.adapters.base_names import BaseNames
from mergeops.adapters.module_patterns import of_pattern
from mergeops.adapters.weight_changes import LowRank
from mergeops.checkpoint import FLOATS, Checkpoint, StoredTensor
from mergeops.errors import SourceError

PLAIN_PARTS = ({"lora_A.weight", "lora_B.weight"}, {"lora_embedding_A", "lora_embedding_B"})
OF_CONV1D = ("c_attn", "c_fc", "c_proj", "q_attn")
"""How models call layers whose weight may be [inputs, outputs]."""
TWICE = 2.0
"""PEFT up to 0.21 adds the change of a MultiheadAttention's out_proj twice, in training too:
findings/peft-adds-the-output-of-attention-twice.sh."""


class LoraFactors:
    """The factors of one adapter.

    Args:
        config: the adapter's.
        own: the adapter's headers.
        names: the base.
    """

    def __init__(self, config: AdapterConfig, own: Checkpoint, names: BaseNames) -> None:
        self._config = config
        self._own = own
        self._names = names

    def changes(self, group: ModuleTensors) -> dict[str, LowRank]:
        """What a module's factors add to which tensors on disk.

        Raises:
            SourceError: a factor is missing, or factors, config and base do not fit.
        """
        attention = self._attention(group)
        is_embedding = any(part.startswith("lora_embedding") for part in group.parts)
        keys = {
            part[-8 if part.endswith("weight") else -1]: key for part, key in group.parts.items()
        }
        tensor = self._parameter(group)
        for part in "AB":
            if part not in keys:
                raise SourceError(
                    f"{self._config.shown}: {tensor} has no lora_{part}: the save was not whole; "
                    "take another checkpoint of this training"
                )
        a, b = (self._own.tensors[keys[part]] for part in "AB")
        pieces = self._names.pieces(tensor, a.name)
        first = self._names.tensors[pieces[0].tensor]
        if len(a.shape) > 2 and len(b.shape) == len(a.shape) == len(first.shape):
            return {pieces[0].tensor: self._of_convolution(group.module, a, b, first)}
        for stored in (a, b, first):
            if stored.dtype not in FLOATS or len(stored.shape) != (
                len(first.shape) if stored is first and len(first.shape) == 3 else 2
            ):
                raise SourceError(
                    f"{self._config.shown}: {stored.name} is {stored.dtype} {list(stored.shape)}; "
                    "LoRA is supported on matrices of real numbers"
                )
        module = tensor if group.depth or self._of_parameters(group.module) else group.module
        rank, scale = self._rank_and_scale(attention or module)
        if attention is not None and group.depth:
            scale *= TWICE
        experts = first.shape[0] if len(first.shape) == 3 else 1
        if pieces[0].expert is not None:
            experts = 1 + max(piece.expert or 0 for piece in pieces)
        turned = is_embedding or self._is_turned(group.module, a, b, first, pieces[0].expert)
        changes = {}
        for piece in pieces:
            shape = self._names.tensors[piece.tensor].shape
            inputs, outputs = (shape[-2], shape[-1]) if turned else (shape[-1], shape[-2])
            check_shape(self._config, a.name, a.shape, (experts * rank, inputs))
            if piece.expert is not None:
                outputs = self._shape(tensor, a.name)[-2]
            check_shape(self._config, b.name, b.shape, (outputs, experts * rank))
            changes[piece.tensor] = LowRank(
                a.name, b.name, scale, turned, experts, piece.expert, piece.row
            )
        return changes

    def _of_convolution(
        self, module: str, a: StoredTensor, b: StoredTensor, weight: StoredTensor
    ) -> LowRank:
        """A convolution with B's of width 1 after A's: the product of both as matrices."""
        rank, scale = self._rank_and_scale(module)
        if weight.dtype not in FLOATS or b.shape[2:] != (1,) * (len(b.shape) - 2):
            raise SourceError(
                f"{self._config.shown}: {b.name} is {b.dtype} {list(b.shape)} for a convolution "
                f"{weight.dtype} {list(weight.shape)}, which is no LoRA that PEFT writes; leave "
                "this source out"
            )
        if a.shape[1:] != weight.shape[1:]:
            raise SourceError(
                f"{self._config.shown}: {a.name} has shape {list(a.shape)}, and the convolution "
                f"has {list(weight.shape)}: its channels are in groups, and LoRA of those is not "
                "merged exactly; leave this source out"
            )
        check_shape(self._config, a.name, a.shape, (rank, *weight.shape[1:]))
        check_shape(self._config, b.name, b.shape, (weight.shape[0], rank, *b.shape[2:]))
        return LowRank(a.name, b.name, scale, is_convolution=True)

    def _attention(self, group: ModuleTensors) -> str | None:
        """The torch.nn.MultiheadAttention that a module is, or is the output of; PEFT adapts its
        projections together, with one rank and scale."""
        module = group.module.removesuffix(".out_proj") if group.depth else group.module
        if not self._names.is_attention(module):
            return None
        if self._config.content.get("fan_in_fan_out"):
            raise SourceError(
                f"{self._config.shown}: fan_in_fan_out is true, with which PEFT turns the change "
                f"of one half of {module}, a torch.nn.MultiheadAttention; leave this source out"
            )
        return module

    def _parameter(self, group: ModuleTensors) -> str:
        """The adapted parameter of a module: its weight, or one of ``target_parameters``."""
        if not group.depth and self._names.is_attention(group.module):
            return f"{group.module}.in_proj_weight"
        named = self._of_parameters(group.module)
        if not named:
            return f"{group.module}.weight"
        a = next((key for part, key in group.parts.items() if "lora_A" in part), None)
        b = next((key for part, key in group.parts.items() if "lora_B" in part), None)
        if a is None or b is None:
            return named[0]
        sizes = {self._own.tensors[a].shape[-1], self._own.tensors[b].shape[0]}
        fitting = [name for name in named if set(self._shape(name, a)[-2:]) == sizes]
        if len(fitting) != 1:
            raise SourceError(
                f"{self._config.shown}: {a} and {b} fit {len(fitting)} of {', '.join(named)} by "
                "their shapes, which says whose they are; the adapter was trained on another model"
            )
        return fitting[0]

    def _shape(self, name: str, key: str) -> tuple[int, ...]:
        fit = self._names.fit
        parameter = None if fit is None else fit.parameter(name)
        if fit is not None and parameter is not None:
            return tuple(fit.parameters[parameter])
        return self._names.tensors[self._names.on_disk(name, key)].shape

    def _of_parameters(self, module: str) -> list[str]:
        """The module's parameters that target_parameters names."""
        # Two names may end alike: 0.mlp.experts.down_proj and 1.mlp.experts.down_proj.
        named = [
            (f"{module}.{name.rpartition('.')[2]}", name)
            for name in self._config.setting("target_parameters", [])
        ]
        found = [one for one, name in named if one == name or one.endswith(f".{name}")]
        return [parameter for parameter in dict.fromkeys(found) if self._names.has(parameter)]

    def _is_turned(
        self,
        module: str,
        a: StoredTensor,
        b: StoredTensor,
        weight: StoredTensor,
        expert: int | None,
    ) -> bool:
        if expert is not None:
            return False
        inputs, outputs = a.shape[1], b.shape[0]
        if inputs != outputs:
            return weight.shape[-2:] == (inputs, outputs)
        said = bool(self._config.content.get("fan_in_fan_out"))
        if not said and len(weight.shape) == 2 and not module.endswith(OF_CONV1D):
            # What transformers knows is asked only where it may matter: importing it takes seconds.
            return False
        kind = self._names.layer(module)
        if kind is None and self._names.fit is None:
            return said
        return kind in ("conv1d", "transposed_experts")

    def _rank_and_scale(self, module: str) -> tuple[int, float]:
        content = self._config.content
        where = f"{self._config.shown}: "
        ranks, alphas = (content.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
        rank = of_pattern(f"{where}rank_pattern", ranks, module, content.get("r"))
        alpha = of_pattern(f"{where}alpha_pattern", alphas, module, content.get("lora_alpha"))
        for key, value in (("r", rank), ("lora_alpha", alpha)):
            if value is None:
                raise SourceError(f"{where}{key} is missing; it takes a positive number")
        scale = float(alpha) / (math.sqrt(rank) if content.get("use_rslora") else rank)
        return rank, scale


def check_shape(
    config: AdapterConfig, key: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Refuse a tensor of another shape.

    Raises:
        SourceError: names the tensor and both shapes.
    """
    if shape != expected:
        raise SourceError(
            f"{config.shown}: {key} has shape {list(shape)}, but its base and rank ask for "
            f"{list(expected)}; set the source's base to the model that was trained, or take the "
            "adapter_config.json that was saved with these weights"
        )


def check_parts(config: AdapterConfig, module: str, parts: Mapping[str, str]) -> None:
    """What the config says of every module is in the file, and nothing else.

    Args:
        config: the adapter's.
        module: for messages.
        parts: what the file has of the module -> its key there.

    Raises:
        SourceError: names the part that is missing or unknown.
    """
    expected = {
        "lora_magnitude_vector": "use_dora",
        "lora_B.bias": "lora_bias",
        "lora_diag": "kasa_config",
    }
    for part, key in expected.items():
        is_wanted, is_there = bool(config.content.get(key)), part in parts
        if is_wanted is not is_there:
            raise SourceError(
                f"{config.shown}: {key} is {config.content.get(key)!r}, but {module} has "
                f"{'a' if is_there else 'no'} {part}"
            )
    odd = parts.keys() - {*PLAIN_PARTS[0], *PLAIN_PARTS[1], *expected}
    if odd:
        raise SourceError(
            f"{config.shown}: adapter tensor {parts[min(odd)]} is of a kind that mergeops does "
            "not know; leave this source out"
        )
