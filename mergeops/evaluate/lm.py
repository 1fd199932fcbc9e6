"""An lm-eval model that computes what requests have in common once: ``--model mergeops``.

It is lm-eval's Hugging Face model in all but the arithmetic of log-likelihoods: requests that begin
alike are packed into one row (see ``tree``), the output head is applied only where an answer is
read, and every distinct request is run once. Prompts, tokens, truncation and generation stay
lm-eval's own code. Where a model does not give the same numbers so, lm-eval's own way is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from mergeops.evaluate.tree import ROW_TOKENS, Row, batches, pack

log = logging.getLogger(__name__)

_WINDOWED, _WHOLE = "sliding_attention", "full_attention"
# Logits of a batch, and those of them that are turned to log-probabilities at a time.
_BATCH_LOGITS, _LOGITS = 2**28, 2**24
# Difference to lm-eval's own logits, relative to their spread, that is only rounding: in float32
# sums come in another order, in 16 bits every operation rounds.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_TOLERANCE_16_BIT = 0.1

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[float, bool]
Kept = list[tuple[Tensor, Tensor]]


@register_model("mergeops")
class TreeLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's ``hf`` with shared computation; it takes the same arguments."""

    def __init__(self, pretrained: Any, **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.fallback: str | None = _unfit(self)
        """Why log-likelihoods are computed in lm-eval's own way; None where they are not."""
        self._checked = 0
        if self.fallback:
            self._tell()

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Answer]:
        """(log-likelihood, whether greedy decoding gives it) of each request's continuation."""
        requests = list(requests)
        if self.fallback is None:
            self._check_longest(requests)
        if self.fallback is not None:
            answers: list[Answer] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            return answers
        size = override_bs or self.batch_size
        found: list[Answer | None] = [None] * len(requests)
        for i, answer in self._answers(requests, size if isinstance(size, int) else 32):
            found[i] = answer
            if (texts := requests[i][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return [answer for answer in found if answer is not None]

    def _answers(self, requests: Sequence[Request], size: int) -> Iterator[tuple[int, Answer]]:
        reads = [len(continuation) for _, _, continuation in requests]
        limits = {
            "size": size,
            "most_reads": _BATCH_LOGITS // self.model.get_output_embeddings().weight.shape[0],
            # A CPU core is at its best from about 500 tokens on; fewer rows need less padding.
            "most_tokens": 1024 if self.device.type == "cpu" else 2**30,
        }
        config = self.model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None) or ROW_TOKENS
        inputs = [self._input(request) for request in requests]
        for group in pack(inputs, reads, _break_even(self.model), min(longest, ROW_TOKENS)):
            kept = self._keys_and_values(group.prefix)
            for batch in batches(group.rows, reads, **limits):
                yield from self._batch(batch, kept, requests)

    def _input(self, request: Request) -> list[int]:
        """What the model reads: lm-eval cuts from the left and never feeds the last token."""
        _, context, continuation = request
        return (context + continuation)[-(self.max_length + 1) :][:-1]

    def _batch(
        self, rows: Sequence[Row], kept: Kept, requests: Sequence[Request]
    ) -> Iterator[tuple[int, Answer]]:
        width = len(rows[0])
        members: list[tuple[int, list[int]]] = []
        slots: dict[int, int] = {}
        for r, row in enumerate(rows):
            for member, path in zip(row.members, row.paths, strict=True):
                read = path[-len(requests[member][2]) :] + r * width
                members.append((member, [slots.setdefault(p, len(slots)) for p in read.tolist()]))
        logits = self._logits(rows, kept, list(slots))
        targets = [requests[member][2] for member, _ in members]
        places = torch.tensor([slot for _, path in members for slot in path])
        wanted = torch.tensor([token for target in targets for token in target])
        scores, greedy = _read(logits, places, wanted, self.softmax_dtype)
        sizes = [len(target) for target in targets]
        each = torch.split(scores, sizes), torch.split(greedy, sizes)
        for (member, _), score, hits in zip(members, *each, strict=True):
            yield member, (float(score.sum()), bool(hits.all()))

    def _logits(self, rows: Sequence[Row], kept: Kept, places: list[int]) -> Tensor:
        """``[len(places), vocabulary]``: logits at flat positions of the padded rows.

        Args:
            rows: longest first.
            kept: keys and values of what is before the rows.
            places: row number times length of the longest row, plus place in the row.
        """
        width = len(rows[0])
        tokens = torch.zeros((len(rows), width), dtype=torch.long)
        for r, row in enumerate(rows):
            tokens[r, : len(row)] = torch.tensor(row.tokens)
        options: dict[str, Any] = {"use_cache": False}
        if kept or not all(row.is_chain for row in rows):
            depths = torch.zeros_like(tokens)
            for r, row in enumerate(rows):
                depths[r, : len(row)] = torch.tensor(row.depths)
            options["position_ids"] = depths.to(self.device)
            options["attention_mask"] = self._mask(rows, depths)
        if kept:
            options["past_key_values"] = cache = DynamicCache()
            options["use_cache"] = True
            for layer, (keys, values) in enumerate(kept):
                shape = (len(rows), -1, -1, -1)
                cache.update(keys.expand(shape), values.expand(shape), layer)
        return self._forward(tokens, places, **options)

    def _keys_and_values(self, prefix: Sequence[int]) -> Kept:
        """Of each layer, keys and values ``[1, heads, len(prefix), size]``."""
        if not prefix:
            return []
        cache = DynamicCache()
        last = len(prefix) - 1
        self._forward(torch.tensor([list(prefix)]), [last], past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _forward(self, tokens: Tensor, places: list[int], **options: Any) -> Tensor:
        with (
            _only_at(self.model, torch.tensor(places)) as calls,
            torch.no_grad(),
            torch.autocast(
                device_type=self.device.type,
                dtype=self.mixed_precision_dtype,
                enabled=self.mixed_precision_dtype is not None,
            ),
        ):
            logits: Tensor = self.model(tokens.to(self.device), **options).logits
        if len(calls) != 1 or logits.shape[:2] != (1, len(places)):
            raise RuntimeError("the output head was not applied once to the last hidden states")
        return logits[0]

    def _mask(self, rows: Sequence[Row], depths: Tensor) -> Any:
        """``[rows, 1, t, start + t]`` to add to attention scores; one for each kind of layer."""
        start, width = rows[0].start, len(rows[0])
        sees = torch.zeros((len(rows), width, start + width), dtype=torch.bool)
        sees[:, :, start:] = torch.eye(width, dtype=torch.bool)  # padding sees itself
        for r, row in enumerate(rows):
            sees[r, : len(row), : start + len(row)] = torch.from_numpy(row.attends())
        kinds, window = _layers(self.model)
        near = sees
        if window is not None:
            before = torch.arange(start).expand(len(rows), -1)
            positions = torch.cat([before, depths], dim=1)
            near = sees & (depths[:, :, None] - positions[:, None, :] < window)
        masks = {_WHOLE: sees, _WINDOWED: near}
        if len(kinds) == 1:
            return self._additive(masks[kinds.copy().pop()])
        return {kind: self._additive(masks[kind]) for kind in kinds}

    def _additive(self, sees: Tensor) -> Tensor:
        dtype = self.mixed_precision_dtype or self.model.dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=self.device)
        mask.masked_fill_(~sees.to(self.device), torch.finfo(dtype).min)
        return mask[:, None]

    def _check_longest(self, requests: Sequence[Request]) -> None:
        """Run the longest request both ways, whenever it is longer than any before.

        The longest, since what a model does differently (windows, chunks, scaled positions) begins
        at some length. A twin that leaves it half way makes a tree of it, first as one row, then
        behind a prefix.
        """
        longest = max(map(self._input, requests), key=len, default=[])
        if len(longest) <= self._checked:
            return
        half = len(longest) // 2
        twin = [*longest[:half], *reversed(longest[half:])]
        theirs = self._model_call(torch.tensor([longest, twin], device=self.device))
        for start in dict.fromkeys((0, half // 2)):
            row = Row(start)
            row.add(0, longest[start:], 0)
            row.add(1, twin[start:], half - start)
            try:
                kept = self._keys_and_values(longest[:start])
                mine = self._logits([row], kept, list(range(len(row))))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self.fallback = f"it takes no packed rows ({type(error).__name__})"
                break
            off = max(
                _difference(mine[path], alone[start:])
                for path, alone in zip(row.paths, theirs, strict=True)
            )
            if not off <= _TOLERANCE.get(mine.dtype, _TOLERANCE_16_BIT):
                self.fallback = f"packed, its logits change by {off:.1e} of their spread"
                break
        if self.fallback:
            self._tell()
        else:
            self._checked = len(longest)

    def _tell(self) -> None:
        log.warning(
            "%s is scored in lm-eval's own way, without sharing what requests have in common: %s",
            self.model.config.model_type,
            self.fallback,
        )


def _unfit(lm: TreeLM) -> str | None:
    """Why a model cannot be packed, as far as can be seen without running it."""
    model = lm.model
    if lm.backend != "causal":
        return "it has an encoder"
    if lm.world_size > 1:
        return "several processes share its requests"
    if model.get_output_embeddings() is None:
        return "it has no output head of its own"
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return f"attention {model.config._attn_implementation!r} takes no masks of ours"
    if others := _layers(model)[0] - {_WHOLE, _WINDOWED}:
        return f"it has layers of kind {', '.join(sorted(others))}"
    return None


def _layers(model: Any) -> tuple[set[str], int | None]:
    """The kinds of attention layers, and the window of the sliding ones."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    return kinds or {_WINDOWED if window else _WHOLE}, window


def _break_even(model: Any) -> float:
    """Row length at which attention costs as much time as the rest of the layers; see ``pack``.

    From the counts of multiplications; measured on two cores it is 3,300 for SmolLM2-135M, 3,070
    by this formula.
    """
    config = model.config.get_text_config()
    tables = {model.get_input_embeddings(), model.get_output_embeddings()}
    body = model.num_parameters() - sum({id(t.weight): t.weight.numel() for t in tables}.values())
    return float(body / (2 * config.num_hidden_layers * config.hidden_size))


@contextmanager
def _only_at(model: Any, places: Tensor) -> Iterator[list[int]]:
    """In the block the output head sees only these positions of the flattened hidden states."""
    calls: list[int] = []

    def select(_module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = arguments
        calls.append(hidden.shape[1])
        flat = hidden.reshape(-1, hidden.shape[-1])
        return (flat[places.to(flat.device)][None], *others)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield calls
    finally:
        handle.remove()


def _difference(a: Tensor, b: Tensor) -> float:
    """Of two sets of logits ``[n, vocabulary]``, relative to their spread at each position."""
    difference = (a.float() - b.float()).norm(dim=-1)
    spread = (b.float() - b.float().mean(-1, keepdim=True)).norm(dim=-1)
    return float((difference / spread).max())


def _read(
    logits: Tensor, places: Tensor, wanted: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each wanted token at its place, and whether it is the likeliest.

    Args:
        logits: ``[n, vocabulary]``.
        places: ``[k]`` rows of ``logits``.
        wanted: ``[k]`` token ids.
        dtype: of the softmax; None takes that of the logits.
    """
    scores = torch.empty(len(places), dtype=dtype or logits.dtype)
    greedy = torch.empty(len(places), dtype=torch.bool)
    step = max(1, _LOGITS // logits.shape[1])
    for start in range(0, len(logits), step):
        part = functional.log_softmax(logits[start : start + step], dim=-1, dtype=dtype)
        here = (places >= start) & (places < start + step)
        rows = (places[here] - start).to(part.device)
        tokens = wanted[here].to(part.device)
        scores[here] = part[rows, tokens].to("cpu")
        greedy[here] = (part.argmax(-1)[rows] == tokens).to("cpu")
    return scores, greedy
