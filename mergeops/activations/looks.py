"""What is measured while a model reads a prompt, weight by weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mergeops.activations.sums import Sums
from mergeops.architectures import read_fit
from mergeops.checkpoint import CONFIG, open_checkpoint, read_json
from mergeops.errors import SourceError
from mergeops.lazy_torch import Tensor, torch

HELD = 1 << 29
"""Bytes of inputs that are held before their products are added: each time, all sums are gone
through."""


@dataclass
class Weight:
    """A weight of a model in memory, and what is known of its numbers."""

    parameter: Any
    module: Any
    """The linear layer that it is the weight of, or None; embeddings and heads are none."""
    inputs_first: bool
    """Whether it is ``[inputs, outputs]``."""
    tokens: int = 0
    key: str = ""
    """The tensor of the file that holds its numbers."""


def weights_of(model: Any, directory: Path) -> dict[str, Weight]:
    """The weights that lie on the disk as they are in memory but for their name, by that name.

    What loading puts together, as experts, is left out.

    Raises:
        SourceError: transformers makes another model of config.json.
    """
    from transformers.pytorch_utils import Conv1D

    shapes = {name: t.shape for name, t in open_checkpoint(directory).tensors.items()}
    fit = read_fit(read_json(directory / CONFIG), shapes)
    if fit is None or fit.model_class != type(model).__name__:
        raise SourceError(
            f"{directory} is of {fit.model_class if fit else 'a kind that is not known'}, which is "
            "no causal language model; its activations cannot be measured"
        )
    linear = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    found = {}
    for name, parameter in model.named_parameters():
        on_disk = fit.on_disk(name)
        if name in fit.converted or len(on_disk) != 1:
            continue
        module = None if name in fit.vocabulary else linear.get(name)
        found[on_disk[0]] = Weight(parameter, module, isinstance(module, Conv1D), key=on_disk[0])
    return found


class Look(Protocol):
    """One kind of measurement."""

    shapes: Mapping[str, Sequence[int]]
    """Of the numbers, once ``prepare`` was called."""

    def prepare(self, prompts: Sequence[Tensor]) -> None:
        """Learn what must be known before the first prompt."""

    def see(self, ids: Tensor, number: int, sums: Sums) -> None:
        """Add what a prompt ``[t]`` shows; ``number`` is its place among the prompts."""

    def finish(self, sums: Sums) -> None:
        """Add what is left when all prompts were seen."""

    @property
    def layers(self) -> dict[str, dict[str, Any]]:
        """As ``kept_activations.Measured.layers``."""


class _OfWeights:
    def __init__(self, model: Any, weights: Mapping[str, Weight]) -> None:
        self._model = model
        self._weights = weights
        self.shapes: Mapping[str, Sequence[int]] = {}

    def finish(self, sums: Sums) -> None:
        """Nothing is left."""

    @property
    def layers(self) -> dict[str, dict[str, Any]]:
        """As ``kept_activations.Measured.layers``."""
        return {
            name: {"key": w.key, "tokens": w.tokens, "inputs_first": w.inputs_first}
            for name, w in self._weights.items()
        }


class Grams(_OfWeights):
    """``X^T X`` of the inputs X ``[tokens, inputs]`` of each linear layer.

    Layers that are given the very same tensor (queries, keys and values) share one matrix.
    """

    def __init__(self, model: Any, weights: Mapping[str, Weight]) -> None:
        super().__init__(model, {n: w for n, w in weights.items() if w.module is not None})
        self._rows: dict[str, list[Tensor]] = {}
        self._held = 0

    def prepare(self, prompts: Sequence[Tensor]) -> None:
        """See which layers have the same inputs."""
        before: list[tuple[str, Tensor]] = []

        def look(name: str, weight: Weight, inputs: Tensor) -> None:
            if before and before[-1][1] is inputs:
                weight.key = before[-1][0]
            else:
                before[:] = [(name, inputs)]

        self._run(prompts[0], look)
        self.shapes = {
            name: (_inputs(weight), _inputs(weight))
            for name, weight in self._weights.items()
            if weight.key == name
        }

    def see(self, ids: Tensor, number: int, sums: Sums) -> None:
        """Run the prompt once."""
        before: list[Tensor] = []

        def look(name: str, weight: Weight, inputs: Tensor) -> None:
            rows = inputs.detach().reshape(-1, inputs.shape[-1])
            weight.tokens += len(rows)
            if weight.key == name:
                # A copy, since the model may overwrite what it has used.
                self._rows.setdefault(name, []).append(rows.clone())
                self._held += rows.nbytes
                before[:] = [inputs]
            elif not before or before[0] is not inputs:
                raise SourceError(
                    f"{name} and {weight.key} have the same inputs in one prompt only"
                )

        self._run(ids, look)
        if self._held > HELD:
            self.finish(sums)

    def finish(self, sums: Sums) -> None:
        """Add the products of the inputs that are held."""
        for name, parts in self._rows.items():
            rows = torch.cat(parts).double()
            parts.clear()
            sums.add(name, rows.T @ rows)
        self._rows, self._held = {}, 0

    def _run(self, ids: Tensor, look: Callable[[str, Weight, Tensor], None]) -> None:
        def hook(name: str, weight: Weight) -> Callable[[Any, tuple[Tensor, ...]], None]:
            return lambda _module, inputs: look(name, weight, inputs[0])

        hooks = [w.module.register_forward_pre_hook(hook(n, w)) for n, w in self._weights.items()]
        try:
            with torch.no_grad():
                self._model(input_ids=ids[None].to(self._model.device), use_cache=False)
        finally:
            for one in hooks:
                one.remove()


class Fishers(_OfWeights):
    """Mean over the prompts of the squared gradients of the log-likelihood, one gradient a prompt.

    The next tokens are drawn from the model's own predictions, by a generator that depends on the
    prompt's number alone: Matena and Raffel 2022, https://arxiv.org/abs/2111.09832, equation 3.
    """

    def prepare(self, prompts: Sequence[Tensor]) -> None:
        """The numbers have the weights' shapes; no other gradient is computed."""
        self._model.requires_grad_(False)
        for weight in self._weights.values():
            weight.parameter.requires_grad_(True)
        self._count = len(prompts)
        self.shapes = {name: tuple(w.parameter.shape) for name, w in self._weights.items()}

    def see(self, ids: Tensor, number: int, sums: Sums) -> None:
        """Run the prompt forth and back; each gradient is dropped as soon as it is added."""

        def hook(name: str, weight: Weight) -> Callable[[Tensor], None]:
            def add(parameter: Tensor) -> None:
                assert parameter.grad is not None
                sums.add(name, parameter.grad.double().square() / self._count)
                parameter.grad = None
                weight.tokens += len(ids)

            return add

        hooks = [
            w.parameter.register_post_accumulate_grad_hook(hook(n, w))
            for n, w in self._weights.items()
        ]
        try:
            logits = self._model(input_ids=ids[None].to(self._model.device), use_cache=False).logits
            likelihoods = torch.log_softmax(logits[0].float(), dim=-1)
            generator = torch.Generator().manual_seed(number)
            chances = likelihoods.detach().exp().cpu()
            drawn = torch.multinomial(chances, 1, generator=generator).to(likelihoods.device)
            torch.autograd.backward(likelihoods.gather(1, drawn).sum())
        finally:
            for one in hooks:
                one.remove()
            self._model.zero_grad(set_to_none=True)


LOOKS: Mapping[str, Callable[[Any, Mapping[str, Weight]], Look]] = {
    "gram": Grams,
    "fisher": Fishers,
}
"""By the names of ``kept_activations.KINDS``."""


def _inputs(weight: Weight) -> int:
    size: int = weight.parameter.shape[0 if weight.inputs_first else 1]
    return size
