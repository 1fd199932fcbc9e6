"""How often a merge would go on as its parents would: their next tokens on a text of one's own.

It needs no questions and no right answers, so it says how far a merge is from each parent, and
nothing of which of them is better: no choice and no gate reads it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergeops.checkpoint import replace_with
from mergeops.errors import EvaluationError
from mergeops.evaluate.identity import model_digest, tokenizer_digest
from mergeops.evaluate.model import Model, load_model, load_tokenizer
from mergeops.evaluate.silence import quiet
from mergeops.evaluate.text_files import read_passages
from mergeops.evaluate.workers import free_memory, pick_devices
from mergeops.lazy_torch import torch
from mergeops.progress import Tick
from mergeops.recipe import EvaluateSpec

MOST_PASSAGES = 64
MOST_TOKENS = 512
"""Of a passage."""

Choices = list[list[int]]
"""For each passage ``[t - 1]`` the greedy next token after each of its tokens but the last."""


@dataclass(frozen=True)
class Agreement:
    """A merge beside one of its parents."""

    parent: str
    tokens: int
    """Next tokens that were compared."""
    same: float
    """Share of them that both would choose."""
    probability: float
    """Mean probability that the merge gives to what the parent would choose."""

    def __str__(self) -> str:
        return f"{self.parent} {self.same:.1%} (probability {self.probability:.3f})"

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def agreement(
    merge: Model,
    parents: Mapping[str, Model],
    text: Path,
    spec: EvaluateSpec,
    *,
    work_dir: Path,
    trust_remote_code: bool = False,
    progress: Tick | None = None,
) -> tuple[list[Agreement], list[str]]:
    """Compare a merge's next tokens with each parent's on the first passages of a text.

    Args:
        parents: by name.
        text: UTF-8; none that a parent was trained on, or memory is compared.
        spec: its ``dtype``, ``device`` and ``max_length`` hold.
        work_dir: what a parent would choose is kept below it.
        progress: called with (models done, models in all).

    Returns:
        One for each parent with the merge's tokenizer, and the names of the others.

    Raises:
        EvaluationError: the text cannot be read or is too short; a model cannot be loaded.
    """
    found = read_passages(text)[:MOST_PASSAGES]
    tokens_of = tokenizer_digest(merge.tokenizer_path, trust_remote_code=trust_remote_code)
    alike, others = {}, []
    for name, model in parents.items():
        own = tokenizer_digest(model.tokenizer_path, trust_remote_code=trust_remote_code)
        if own == tokens_of:
            alike[name] = model
        else:
            others.append(name)
    if not alike:
        return [], others
    [device, *_] = pick_devices(spec.device)
    tell = progress or (lambda done, total: None)
    with quiet():
        tokenizer = load_tokenizer(
            merge.tokenizer_path, trust_remote_code=trust_remote_code, chat=False
        )
        longest = min(spec.max_length or MOST_TOKENS, MOST_TOKENS)
        ids = [tokenizer(passage)["input_ids"][:longest] for passage in found]
        ids = [each for each in ids if len(each) > 1]
        if not ids:
            raise EvaluationError(f"text file {text}: no passage has two tokens")

        def ask(model: Model, references: Sequence[Choices]) -> tuple[Choices, list[list[float]]]:
            loaded = load_model(model.path, spec, device, trust_remote_code=trust_remote_code)
            try:
                return _ask(loaded, ids, references)
            finally:
                del loaded
                free_memory()

        def choices_of(model: Model) -> Choices:
            return ask(model, [])[0]

        chosen: dict[str, Choices] = {}
        for done, (name, model) in enumerate(alike.items()):
            tell(done, len(alike) + 1)
            about = [
                model.weights_sha256,
                model_digest(model.path, trust_remote_code=trust_remote_code),
                spec.dtype,
                version("transformers"),
                version("torch"),
                ids,
            ]
            chosen[name] = _kept(work_dir, about, functools.partial(choices_of, model))
        tell(len(alike), len(alike) + 1)
        own_choices, given = ask(merge, list(chosen.values()))
        tell(len(alike) + 1, len(alike) + 1)
    rows = []
    for (name, theirs), probabilities in zip(chosen.items(), given, strict=True):
        pairs = [
            (mine, other)
            for passage in zip(own_choices, theirs, strict=True)
            for mine, other in zip(*passage, strict=True)
        ]
        same = sum(mine == other for mine, other in pairs) / len(pairs)
        rows.append(Agreement(name, len(pairs), same, sum(probabilities) / len(probabilities)))
    return rows, others


def _ask(
    model: Any, ids: Sequence[list[int]], references: Sequence[Choices]
) -> tuple[Choices, list[list[float]]]:
    """The greedy next tokens, and for each reference the probabilities of what it chose."""
    choices: Choices = []
    given: list[list[float]] = [[] for _ in references]
    for number, passage in enumerate(ids):
        with torch.inference_mode():
            tokens = torch.tensor([passage], device=model.device)
            # [t - 1, vocabulary]: after the last token there is nothing to compare.
            probabilities = model(tokens).logits[0, :-1].float().softmax(-1)
        choices.append(probabilities.argmax(-1).tolist())
        for reference, into in zip(references, given, strict=True):
            theirs = torch.tensor(reference[number], device=model.device)[:, None]
            into += probabilities.gather(1, theirs)[:, 0].tolist()
    return choices, given


def _kept(work_dir: Path, about: Any, ask: Callable[[], Choices]) -> Choices:
    """What a model would choose, from the disk or by asking it."""
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    file = work_dir / "scores" / "agreement" / f"{key[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            choices: Choices = kept["choices"]
            return choices
    choices = ask()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replace_with(file) as partial:
            partial.write_text(json.dumps({"key": key, "choices": choices}), encoding="utf-8")
    return choices
