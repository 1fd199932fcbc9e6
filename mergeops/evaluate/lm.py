"""An lm-eval model that computes what requests have in common once: ``--model mergeops``.

It is lm-eval's Hugging Face model in all but the arithmetic of log-likelihoods: requests that begin
alike are packed into one row (see ``tree``), the output head is applied only where an answer is
read, and every distinct request is run once. Prompts, tokens, truncation and generation stay
lm-eval's own code. Where a model does not give the same numbers so, lm-eval's own way is taken.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import DynamicCache

from mergeops.evaluate.kept_packing import KeptPacking
from mergeops.evaluate.log_probabilities import log_softmax, read_tokens
from mergeops.evaluate.tree import ROW_TOKENS, PrefixGroup, TokenRow, batches, pack
from mergeops.evaluate.workers import is_out_of_memory

log = logging.getLogger(__name__)

_WINDOWED, _WHOLE = "sliding_attention", "full_attention"
# Logits of a batch.
_BATCH_LOGITS = 2**28
# Largest difference to lm-eval's log-probabilities that is only sums in another order.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
# In 16 bits every operation rounds: so many times what lm-eval's own change by in a batch of two,
# or one rounding unit of the range of the logits, as two runs may happen to be equal.
_TIMES_OWN_NOISE = 3
# Places compared at either end of a branch.
_COMPARED = 32

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[float, bool]
PrefixCache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer; empty without a prefix."""


@register_model("mergeops")
class TreeLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's ``hf`` with shared computation; it takes the same arguments."""

    def __init__(self, pretrained: Any, **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.fallback: str | None = _unfit(self)
        """Why log-likelihoods are computed in lm-eval's own way; None where they are not."""
        self._kept = KeptPacking(self.model, self.mixed_precision_dtype)
        self._checked = self._kept.sizes()
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
        groups = self.pack(requests) if self.fallback is None else []
        self.check(groups, requests)
        if self.fallback is not None:
            answers: list[Answer] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            return answers
        size = override_bs or self.batch_size
        by_request: dict[int, Answer] = {}
        for i, answer in self._answers(groups, requests, size if isinstance(size, int) else 32):
            by_request[i] = answer
            if (texts := requests[i][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return [by_request[i] for i in range(len(requests))]

    def pack(self, requests: Sequence[Request]) -> list[PrefixGroup]:
        """The rows that requests are laid out in."""
        config = self.model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None) or ROW_TOKENS
        return pack(
            [self._input(request) for request in requests],
            [len(continuation) for _, _, continuation in requests],
            _break_even(self.model),
            min(longest, ROW_TOKENS),
        )

    def _answers(
        self, groups: Sequence[PrefixGroup], requests: Sequence[Request], size: int
    ) -> Iterator[tuple[int, Answer]]:
        reads = [len(continuation) for _, _, continuation in requests]
        limits = {
            "size": size,
            "most_reads": _BATCH_LOGITS // self.model.get_output_embeddings().weight.shape[0],
            # A CPU core is at its best from about 500 tokens on; fewer rows need less padding.
            "most_tokens": 1024 if self.device.type == "cpu" else 2**30,
        }
        for group in groups:
            prefix = self._keys_and_values(group.prefix)
            for batch in batches(group.rows, reads, **limits):
                yield from self._batch(batch, prefix, requests)

    def _input(self, request: Request) -> list[int]:
        """What the model reads: lm-eval cuts from the left and never feeds the last token."""
        _, context, continuation = request
        return (context + continuation)[-(self.max_length + 1) :][:-1]

    def _batch(
        self, rows: Sequence[TokenRow], prefix: PrefixCache, requests: Sequence[Request]
    ) -> Iterator[tuple[int, Answer]]:
        width = len(rows[0])
        members = [member for row in rows for member in row.members]
        targets = [requests[member][2] for member in members]
        # Flat positions whose output predicts a token of a target; requests may share some.
        read: list[int] = []
        for r, row in enumerate(rows):
            for member, path in zip(row.members, row.paths, strict=True):
                read += (path[-len(requests[member][2]) :] + r * width).tolist()
        slots = {place: slot for slot, place in enumerate(dict.fromkeys(read))}
        logits = self._logits(rows, prefix, list(slots))
        places = torch.tensor([slots[place] for place in read])
        wanted = torch.tensor([token for target in targets for token in target])
        scores, greedy = read_tokens(logits, places, wanted, self.softmax_dtype)
        # A request's log-likelihood is the sum over its target's tokens.
        sizes = [len(target) for target in targets]
        by_member = torch.split(scores, sizes), torch.split(greedy, sizes)
        for member, own_scores, own_greedy in zip(members, *by_member, strict=True):
            yield member, (float(own_scores.sum()), bool(own_greedy.all()))

    def _logits(self, rows: Sequence[TokenRow], prefix: PrefixCache, places: list[int]) -> Tensor:
        """``[len(places), vocabulary]``: logits at flat positions of the padded rows.

        Args:
            rows: longest first.
            prefix: keys and values of what is before the rows.
            places: row number times length of the longest row, plus place in the row.
        """
        width = len(rows[0])
        tokens = torch.zeros((len(rows), width), dtype=torch.long)
        for r, row in enumerate(rows):
            tokens[r, : len(row)] = torch.tensor(row.tokens)
        options: dict[str, Any] = {}
        if prefix or not all(row.is_chain for row in rows):
            depths = torch.zeros_like(tokens)
            for r, row in enumerate(rows):
                depths[r, : len(row)] = torch.tensor(row.depths)
            options["position_ids"] = depths.to(self.device)
            options["attention_mask"] = self._mask(rows, depths)
        if prefix:
            cache = options["cache"] = DynamicCache()
            for layer, (keys, values) in enumerate(prefix):
                shape = (len(rows), -1, -1, -1)
                cache.update(keys.expand(shape), values.expand(shape), layer)
        return self._forward(tokens, places, **options)

    def _keys_and_values(self, prefix: Sequence[int]) -> PrefixCache:
        """Of each layer, keys and values ``[1, heads, len(prefix), size]``."""
        if not prefix:
            return []
        cache = DynamicCache()
        last = len(prefix) - 1
        self._forward(torch.tensor([list(prefix)]), [last], cache=cache)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _forward(
        self,
        tokens: Tensor,
        places: list[int],
        *,
        cache: DynamicCache | None = None,
        **options: Any,
    ) -> Tensor:
        if cache is not None:
            # transformers 5.24 renames it.
            names = inspect.signature(self.model.forward).parameters
            options["cache" if "cache" in names else "past_key_values"] = cache
        options["use_cache"] = cache is not None
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

    def _mask(self, rows: Sequence[TokenRow], depths: Tensor) -> Any:
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
        masks = {kind: self._additive(near if kind == _WINDOWED else sees) for kind in kinds}
        return masks if len(masks) > 1 else masks.popitem()[1]

    def _additive(self, sees: Tensor) -> Tensor:
        dtype = self.mixed_precision_dtype or self.model.dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=self.device)
        mask.masked_fill_(~sees.to(self.device), torch.finfo(dtype).min)
        return mask[:, None]

    def check(self, groups: Sequence[PrefixGroup], requests: Sequence[Request]) -> None:
        """Compare with lm-eval's way, whenever a request is longer or a row wider than any before.

        What a model does differently (windows, chunks, scaled positions) begins at some depth, or
        at some place in the row. So the longest request and a twin that leaves it on the way are
        laid out as wide as the widest row, the twin last, first as one row, then behind a prefix.
        What agreed once is kept for models of the same kind; see ``kept_packing``.
        """
        longest = max(map(self._input, requests), key=len, default=[])
        width = max((len(g.prefix) + len(row) for g in groups for row in g.rows), default=0)
        if self.fallback or (len(longest) <= self._checked[0] and width <= self._checked[1]):
            return
        try:
            self.fallback = self._packed_differs(longest, width)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.fallback = f"it takes no packed rows ({type(error).__name__})"
        if self.fallback:
            self._tell()
            return
        self._checked = (max(len(longest), self._checked[0]), max(width, self._checked[1]))
        self._kept.keep(self._checked)

    def _packed_differs(self, longest: list[int], width: int) -> str | None:
        """How far packed numbers are from lm-eval's, if they are not the same."""
        length, half = len(longest), len(longest) // 2
        branch = min(max(width - length, 2 * _COMPARED), length - half)
        twin = [*longest[:-branch], *reversed(longest[-branch:])]
        read = np.unique([*range(branch)[:_COMPARED], *range(branch)[-_COMPARED:]])
        read += length - branch

        def plain(*rows: list[int]) -> Tensor:
            places = [r * length + i for r in range(len(rows)) for i in read]
            return log_softmax(self._forward(torch.tensor(rows), places))

        theirs = torch.cat([plain(longest), plain(twin)])
        tolerance = _TOLERANCE.get(self.model.dtype)
        if tolerance is None or self.mixed_precision_dtype is not None:
            noise = float((plain(longest, twin) - theirs).abs().max())
            dtype = self.mixed_precision_dtype or self.model.dtype
            unit = torch.finfo(dtype).eps * float(theirs.max() - theirs.min())
            tolerance = _TIMES_OWN_NOISE * max(noise, unit)
        for start in dict.fromkeys((0, half // 2)):
            row = TokenRow(start)
            row.add(0, longest[start:], 0)
            while (room := width - branch - start - len(row)) > 0:
                row.add(1, longest[start : half + room], half - start)
            row.add(2, twin[start:], length - branch - start)
            places = [int(i) for path in (row.paths[0], row.paths[-1]) for i in path[read - start]]
            prefix = self._keys_and_values(longest[:start])
            mine = log_softmax(self._logits([row], prefix, places))
            off = float((mine - theirs).abs().max())
            if not off <= tolerance:
                return f"packed, its log-probabilities change by {off:.1e}"
        return None

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
