"""A model with experts from dense ones (Komatsuzaki et al. 2022, https://arxiv.org/abs/2212.05055).

Attention, norms and embeddings are the base's; in place of each MLP are those of all experts.

It is made by a plan, as merges are: streamed, resumable, and named by its digest.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint import (
    BY_WORD,
    StoredTensor,
)
from mergeops.engine import assemble, made_input
from mergeops.errors import MergeError
from mergeops.mixture.gates import GateInputs, gates_of
from mergeops.mixture.layouts import OUTWARD, PROJECTIONS, Layout, choose_layout
from mergeops.planning import (
    Plan,
    PlannedInput,
    TensorPart,
    TensorTask,
    check_tokenizers,
    config_of,
    read_inputs,
)
from mergeops.progress import Progress
from mergeops.recipe import MixtureSpec
from mergeops.redact import redact
from mergeops.sources import Source, short_name


@dataclass(frozen=True)
class Mixture:
    """A model with experts that was made."""

    checkpoint: Path
    model_type: str
    experts: int
    experts_per_token: int
    plan: Plan = dataclasses.field(repr=False)
    was_there: bool

    def measures(self) -> dict[str, float]:
        """What the run of a trial has as metrics."""
        return {
            "moe/experts": float(self.experts),
            "moe/experts_per_token": float(self.experts_per_token),
            "moe/bytes": float(self.plan.bytes_to_write),
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "checkpoint": str(self.checkpoint),
            "model_type": self.model_type,
            "experts": self.experts,
            "experts_per_token": self.experts_per_token,
            "plan_digest": self.plan.digest,
            "was_there": self.was_there,
            "warnings": list(self.plan.warnings),
        }


def make_mixture(
    spec: MixtureSpec,
    base: Source,
    experts: Sequence[Source],
    out: Path,
    *,
    cache_dir: Path,
    seed: int = 0,
    device: str = "auto",
    progress: Progress,
) -> Mixture:
    """Write the model with experts.

    Args:
        spec: what is wanted.
        base: the resolved base.
        experts: those of ``spec.every``, in its order; one may be there several times.
        out: a new directory, or one that holds this very model.
        cache_dir: where gates are kept.
        seed: of random gates.
        device: of the arithmetic, and of the base where it is run.
        progress: where steps are shown.

    Raises:
        ConfigError: as ``choose_layout`` and ``gates_of``.
        EvaluationError: the base cannot be run for its hidden states.
        SourceError: an input's files are missing, corrupt or of an unsupported kind.
        MergeError: the experts do not fit the base or each other, or ``out`` holds something else.
    """
    distinct = list(dict.fromkeys([base, *experts]))
    inputs, headers, notes = read_inputs(distinct)
    numbers = [distinct.index(source) for source in experts]
    tensors = [headers[planned.name] for planned in inputs]
    config = config_of(inputs[0])
    layout = choose_layout(config, spec.architecture, has_shared=spec.shared is not None)
    for planned in inputs[1:]:
        notes += _check_alike(layout, config, inputs[0], planned)
    layers = config["num_hidden_layers"]
    width = _check_shapes(tensors, numbers, inputs, layers, config["hidden_size"])
    wanted = GateInputs(spec, base, config, seed, device)
    gates = made_input(
        "gates",
        f"gates:{spec.gate_mode}",
        cache_dir,
        wanted.content(),
        lambda: gates_of(wanted, inputs[0], progress),
    )
    plan, was_there = assemble(
        _tasks(spec, layout, tensors, numbers, layers),
        inputs,
        gates,
        small_files=inputs[:1],
        home=inputs[0],
        settings=layout.settings(config, len(spec.experts), spec.experts_per_token, width),
        recipe={"mixture": spec.to_dict()},
        notes=notes,
        label="base_model",
        card=lambda plan: _card(spec, layout, plan),
        out=out,
        cache_dir=cache_dir,
        seed=seed,
        device=device,
        progress=progress,
    )
    return Mixture(
        out, layout.model_type, len(spec.experts), spec.experts_per_token, plan, was_there
    )


def _check_alike(
    layout: Layout, config: Mapping[str, Any], base: PlannedInput, expert: PlannedInput
) -> list[str]:
    """Refuse an expert of another architecture; what differs in its tokens is said."""
    theirs = config_of(expert)
    if not theirs:
        raise MergeError(f"{expert.uri} has no config.json, which says what its MLPs compute")
    if theirs.get("model_type") not in layout.bases:
        raise MergeError(
            f"{expert.uri} is of model_type {theirs.get('model_type')!r}; experts of "
            f"{layout.model_type} are of {', '.join(layout.bases)}"
        )
    for key in ("hidden_act", "num_hidden_layers", "hidden_size"):
        if theirs.get(key) != config.get(key):
            raise MergeError(
                f"{key} is {config.get(key)!r} in {base.uri} and {theirs.get(key)!r} in "
                f"{expert.uri}; an expert has the base's"
            )
    try:
        return check_tokenizers(base, [base, expert])
    except MergeError as error:
        return [f"the mixture has the tokens of {base.uri}, and an expert was trained on: {error}"]


def _check_shapes(
    tensors: Sequence[Mapping[str, StoredTensor]],
    numbers: Sequence[int],
    inputs: Sequence[PlannedInput],
    layers: int,
    hidden: int,
) -> int:
    """Refuse MLPs of other shapes; how wide those of the experts are."""
    width = None
    for number in dict.fromkeys(numbers):
        uri = inputs[number].uri
        for layer in range(layers):
            for projection in PROJECTIONS:
                name = dense(layer, projection)
                stored = tensors[number].get(name)
                if stored is None:
                    raise MergeError(f"{uri} has no {name}, which an expert is made of")
                if width is None:
                    width = stored.shape[0]
                wanted = (hidden, width) if projection == OUTWARD else (width, hidden)
                if stored.shape != wanted:
                    raise MergeError(
                        f"{name} of {uri} is {list(stored.shape)}, and experts of one model are "
                        f"all of one shape, here {list(wanted)}"
                    )
                if f"{name.removesuffix('.weight')}.bias" in tensors[number]:
                    raise MergeError(f"{uri} has a bias beside {name}, which no expert has")
    assert width is not None, "there are at least two experts"
    return width


def dense(layer: int, projection: str) -> str:
    """Name of a matrix of a dense model's MLP."""
    return f"model.layers.{layer}.mlp.{projection}.weight"


def _tasks(
    spec: MixtureSpec,
    layout: Layout,
    tensors: Sequence[Mapping[str, StoredTensor]],
    numbers: Sequence[int],
    layers: int,
) -> list[TensorTask]:
    """The tensors of the result: the base's in its order, with the experts in place of its MLPs."""
    gates, hidden = len(tensors), tensors[0][dense(0, OUTWARD)].shape[0]

    def task(name: str, shape: tuple[int, ...], dtype: str, part: TensorPart) -> TensorTask:
        dtype = BY_WORD.get(spec.dtype, dtype)
        return TensorTask(
            name=name,
            shape=shape,
            dtype=dtype,
            kind="take",
            shared={},
            per_source={},
            sources=(part,),
        )

    def scaled(made: TensorTask, scale: float, projection: str) -> TensorTask:
        if scale == 1.0 or projection != OUTWARD:
            return made
        return dataclasses.replace(made, kind="merge", per_source={"scale": (scale,)})

    tasks = [
        task(name, stored.shape, stored.dtype, TensorPart(0, name))
        for name, stored in tensors[0].items()
        if ".mlp." not in name
    ]
    for layer in range(layers):
        dtype = tensors[0][dense(layer, OUTWARD)].dtype
        count = len(spec.experts)
        gate = TensorPart(gates, f"gate.{layer}")
        tasks.append(task(layout.gate(layer), (count, hidden), dtype, gate))
        for e, (expert, number) in enumerate(zip(spec.every, numbers, strict=True)):
            for projection in PROJECTIONS:
                name = dense(layer, projection)
                if e == count:
                    to = layout.shared(layer, projection)
                else:
                    to = layout.expert(layer, e, projection)
                shape = tensors[number][name].shape
                made = task(to, shape, dtype, TensorPart(number, name))
                tasks.append(scaled(made, expert.residual_scale, projection))
        if spec.shared is not None:
            part = TensorPart(gates, f"shared_gate.{layer}")
            tasks.append(task(layout.shared_gate(layer), (1, hidden), dtype, part))
    return tasks


def _card(spec: MixtureSpec, layout: Layout, plan: Plan) -> str:
    """README.md with the metadata that model hubs read."""
    inputs = plan.sources[:-1]
    uris = [str(redact(planned.uri)) for planned in inputs]
    metadata = {
        "base_model": [(short_name(uri) or uri).split("@")[0] for uri in uris],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "moe", "mergeops"],
    }
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())
    rows = "\n".join(
        f"| `{uri}` | `{planned.sha256[:16]}` |" for uri, planned in zip(uris, inputs, strict=True)
    )
    return (
        f"---\n{head}\n---\n\n# {len(spec.experts)} experts as {layout.model_type}\n\n"
        f"Gates: {spec.gate_mode}; {spec.experts_per_token} experts a token.\n\n"
        f"| model | sha256 of the weights |\n|---|---|\n{rows}\n\n"
        f"```json\n{json.dumps(redact(spec.to_dict()), indent=2)}\n```\n"
    )
