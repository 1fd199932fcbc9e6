"""Routers of a mixture: which expert a token goes to, from prompts or by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergeops.architectures import in_silence
from mergeops.checkpoint import (
    TensorReader,
    TokenizerFile,
    file_sha256,
    read_range,
)
from mergeops.engine import choose_devices, open_input
from mergeops.errors import ConfigError, MergeError
from mergeops.evaluate import load_model, load_tokenizer
from mergeops.lazy_torch import Tensor, torch
from mergeops.planning import PlannedInput
from mergeops.progress import Progress
from mergeops.recipe import EvaluateSpec, Expert, MixtureSpec
from mergeops.sources import Source

FORMAT = 1
"""Raised when the same prompts give other gates."""
EMBEDDINGS = "model.embed_tokens.weight"
SPREAD = 0.02
"""Standard deviation of random gates where config.json has no initializer_range."""


@dataclass(frozen=True)
class GateInputs:
    """What gates are made of."""

    spec: MixtureSpec
    base: Source
    config: dict[str, Any]
    """The base's config.json."""
    seed: int
    device: str

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and entries of a token."""
        return self.config["num_hidden_layers"], self.config["hidden_size"]

    def content(self) -> list[Any]:
        """What decides the gates, as JSON types."""
        spec = self.spec
        prompts = [[e.positive_prompts, e.negative_prompts] for e in spec.every]
        tokenizer = self.base.path / TokenizerFile.TOKENIZER
        return [
            FORMAT,
            spec.gate_mode,
            bool(spec.shared),
            self.shape,
            [len(spec.experts), self.seed, self.config.get("initializer_range")]
            if spec.gate_mode == "random"
            else [prompts, self.base.sha256, tokenizer.is_file() and file_sha256(tokenizer)],
        ]


def gates_of(inputs: GateInputs, base: PlannedInput, progress: Progress) -> dict[str, Tensor]:
    """The gates: ``gate.LAYER`` ``[experts, hidden]`` and, with a shared expert,
    ``shared_gate.LAYER`` ``[1, hidden]``, float32.

    Args:
        inputs: what they are made of.
        base: the base.
        progress: where steps are shown.

    Raises:
        ConfigError: prompts make no gate, or there is no such device.
        EvaluationError: the base's model or tokenizer cannot be loaded.
        MergeError: the base is an adapter, and would have to be run.
    """
    if inputs.spec.gate_mode == "random":
        gates, shared = _random(inputs)
    else:
        reader = open_input(base, "F64")
        try:
            gates, shared = _of_prompts(inputs, reader, progress)
        finally:
            reader.close()
    tensors = {f"gate.{layer}": gate.contiguous() for layer, gate in enumerate(gates)}
    if shared is not None:
        tensors |= {f"shared_gate.{i}": gate.contiguous() for i, gate in enumerate(shared)}
    return tensors


def _random(inputs: GateInputs) -> tuple[Tensor, Tensor | None]:
    """Normal numbers, each layer's of its own stream; a shared gate of zeros: half, for all."""
    layers, hidden = inputs.shape
    count = len(inputs.spec.experts)
    spread = inputs.config.get("initializer_range") or SPREAD
    drawn = [
        np.random.Generator(np.random.Philox(key=[inputs.seed, layer])).standard_normal(
            (count, hidden), np.float32
        )
        for layer in range(layers)
    ]
    shared = torch.zeros(layers, 1, hidden) if inputs.spec.shared else None
    return torch.from_numpy(np.stack(drawn) * np.float32(spread)), shared


def _of_prompts(
    inputs: GateInputs, base: TensorReader, progress: Progress
) -> tuple[Tensor, Tensor | None]:
    """Each expert's direction: the mean over its prompts, less that over those against it.

    A router's logit is the product with what reaches it, so it is largest for what is alike.
    """
    spec = inputs.spec
    if inputs.base.is_adapter and spec.gate_mode == "hidden":
        raise MergeError(
            "gate_mode is hidden, which runs the base, and base_model is an adapter; merge it into "
            "its model first (mergeops merge), or take gate_mode: cheap_embed"
        )
    where = inputs.base.adapter_base or inputs.base.path
    tokenizer = load_tokenizer(where, trust_remote_code=False, chat=False)
    means = _EmbeddingMeans(base, inputs) if spec.gate_mode == "cheap_embed" else None
    run = means or _RouterInputs(where, inputs)
    total = sum(len(e.positive_prompts) + len(e.negative_prompts) for e in spec.every)
    rows, done = [], 0
    with progress.bar("reading prompts") as tick:
        for number, expert in enumerate(spec.every):
            sides = []
            for prompts in (expert.positive_prompts, expert.negative_prompts):
                states = []
                for prompt in prompts:
                    states.append(run(_tokens(tokenizer, prompt)))
                    done += 1
                    tick(done, total)
                sides.append(torch.stack(states).mean(dim=0) if states else torch.zeros(()))
            rows.append(_direction(sides[0] - sides[1], number, expert))
    gates = torch.stack(rows, dim=1)
    return (gates[:, :-1], gates[:, -1:]) if spec.shared else (gates, None)


def _tokens(tokenizer: Any, prompt: str) -> list[int]:
    ids: list[int] = tokenizer(prompt)["input_ids"]
    if not ids:
        raise ConfigError(f"prompt {prompt[:60]!r} has no token in the base's tokenizer")
    return ids


def _direction(state: Tensor, number: int, expert: Expert) -> Tensor:
    """``[layers, hidden]`` of length 1 each."""
    length = torch.linalg.norm(state, dim=-1, keepdim=True)
    if not bool((length > 0).all() and length.isfinite().all()):
        raise ConfigError(
            f"the prompts of expert {number} ({expert.model.uri}) make no direction: those for and "
            "those against it are alike, or the base gives no finite numbers for them"
        )
    direction: Tensor = (state / length).float()
    return direction


class _EmbeddingMeans:
    """Mean of a prompt's embeddings, the same for every layer.

    Args:
        base: reads the base.
        inputs: what gates are made of.
    """

    def __init__(self, base: TensorReader, inputs: GateInputs) -> None:
        self._base = base
        self._layers, self._hidden = inputs.shape

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """``[layers, hidden]`` float64."""
        width = self._hidden
        rows = [
            read_range(self._base, EMBEDDINGS, token * width, (token + 1) * width).double()
            for token in tokens
        ]
        mean: Tensor = torch.stack(rows).mean(dim=0)
        return mean.expand(self._layers, -1)


class _RouterInputs:
    """Mean over a prompt's tokens of what reaches each layer's MLP in the base, which is what its
    router will see.

    Args:
        path: the base's directory.
        inputs: what gates are made of.
    """

    def __init__(self, path: Path, inputs: GateInputs) -> None:
        self._device = torch.device(choose_devices(inputs.device)[0])
        with in_silence():
            self._model = load_model(path, EvaluateSpec(), self._device, trust_remote_code=False)
        self._seen: list[Tensor] = []
        for layer in self._model.model.layers:
            layer.mlp.register_forward_pre_hook(self._see)

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """``[layers, hidden]`` float64."""
        self._seen.clear()
        with torch.no_grad():
            self._model(torch.tensor([list(tokens)], device=self._device))
        return torch.stack(self._seen)

    def _see(self, _: Any, arguments: tuple[Tensor, ...]) -> None:
        self._seen.append(arguments[0][0].double().mean(dim=0).cpu())
