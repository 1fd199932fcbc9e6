"""Ask models the questions of tasks, one model after the other on one device.

The first model is loaded, the next ones are given their weights where they have the same
configuration; the device is given back when all are done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate import answers
from mergeops.evaluate.catalogue import first_line
from mergeops.evaluate.devices import (
    free_memory,
    is_out_of_memory,
    seed_device,
    set_threads,
    use_threads_for,
)
from mergeops.evaluate.reuse import Known, joined, known_answers
from mergeops.evaluate.store import Journal
from mergeops.evaluate.tasks import LoadedTask, TaskSet

PIECE = 256
"""Items asked at once; what is asked after a crash begins at the piece that was lost."""
Tick = Callable[[str, int, int], None]
"""Called with (task, items done, items in all)."""


@dataclass(frozen=True)
class Candidate:
    """A model to score."""

    path: Path
    """A Hugging Face checkpoint directory."""
    weights_sha256: str
    """Names the weights in the store."""
    tokenizer: Path | None = None
    """Its directory; None is ``path``."""


@dataclass(frozen=True)
class Asked:
    """A model and what decides its answers beside the weights."""

    candidate: Candidate
    model_sha256: str
    tokenizer_sha256: str
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Task -> what its record is about."""

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's directory."""
        return self.candidate.tokenizer or self.candidate.path


@dataclass(frozen=True)
class Missing:
    """A task that a model has no whole record of."""

    loaded: LoadedTask
    journal: Journal
    """Of its answers while it is asked."""
    records: Sequence[Mapping[str, Any]]
    """Of the same model and task, asked in the same way, on other selections of the items."""


class Asker:
    """One device and the model on it.

    Args:
        tasks: with the prompts and token lists that all models share.
        part: dev or confirm.
        device: that the models are put on; None for a backend that takes what it finds.
        trust_remote_code: whether a checkpoint's own code may run.
        turn: held while the tasks' own objects are used, which all devices share.
    """

    def __init__(
        self, tasks: TaskSet, part: str, device: Any, *, trust_remote_code: bool, turn: Any = None
    ) -> None:
        self._tasks = tasks
        self._part = part
        self._device = device
        self._trust_remote_code = trust_remote_code
        self._turn = turn or threading.Lock()
        self._lm: Any = None
        self._loaded: tuple[str, str] | None = None
        self._threads: int | None = None

    def ask(
        self, asked: Asked, missing: Sequence[Missing], tick: Tick | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(task, record) of each task as it is done; items that are known are not asked, and where
        all are, and no prompt needs the tokenizer, the model is not loaded.

        Raises:
            EvaluationError: the model cannot be loaded, does not fit into memory, or answers with
                NaN; a prompt cannot be made, which is found before the model is loaded.
        """
        chat = self._tasks.spec.apply_chat_template
        found = [] if chat else [self._known(one, "", None) for one in missing]
        if any(len(known.answers) < len(instances) for instances, known in found) or chat:
            self._open(asked)
        if chat:
            template = self._lm.apply_chat_template
            found = [self._known(one, asked.tokenizer_sha256, template) for one in missing]
        for one, (instances, known) in zip(missing, found, strict=True):
            given = self._answers(one, instances, known, asked.candidate.path, tick)
            with self._turn:
                record = answers.results(one.loaded, instances, given)
            asked_now = len(known.answers) < len(instances)
            settings = joined([*known.settings, *([self._settings()] if asked_now else [])])
            yield one.loaded.name, {**record, "settings": settings, "version": one.loaded.version}

    def close(self) -> None:
        """Give the device back."""
        if self._threads is not None:
            set_threads(self._threads)
            self._threads = None
        if self._lm is not None:
            self._lm = self._loaded = None
            free_memory()

    def _open(self, asked: Asked) -> None:
        """Have the candidate's weights on the device."""
        spec, path = self._tasks.spec, asked.candidate.path
        if spec.backend == "vllm":
            from mergeops.evaluate.vllm import open_vllm

            self.close()
            self._lm = open_vllm(path, asked.tokenizer, spec, self._trust_remote_code)
            return
        from mergeops.evaluate import model as models
        from mergeops.evaluate.scoring_model import PlainModel, SharingModel

        same = (asked.model_sha256, asked.tokenizer_sha256)
        try:
            if (
                self._loaded == same
                and (spec.dtype != "auto" or models.says_dtype(path))
                and models.replace_weights(self._lm.model, path)
            ):
                return
        except BaseException:
            self.close()
            raise
        self.close()
        tokenizer = models.load_tokenizer(
            asked.tokenizer,
            trust_remote_code=self._trust_remote_code,
            chat=spec.apply_chat_template,
        )
        model = models.load_model(
            path, spec, self._device, trust_remote_code=self._trust_remote_code
        )
        encodings = self._tasks.encodings.setdefault(asked.tokenizer_sha256, {})
        kind = PlainModel if spec.backend == "hf" else SharingModel
        self._lm = kind(model, tokenizer, spec, encodings)
        self._loaded = same
        self._threads = use_threads_for(model)

    def _requests(self, loaded: LoadedTask, tokenizer: str, template: Any) -> list[Any]:
        key = (loaded.name, self._part, tokenizer)
        with self._turn:
            if key not in self._tasks.requests:
                self._tasks.requests[key] = answers.build_requests(
                    loaded, self._part, self._tasks.spec.seed, template
                )
            return self._tasks.requests[key]

    def _known(self, one: Missing, tokenizer: str, template: Any) -> tuple[list[Any], Known]:
        """The instances of a task, and the answers that records have already."""
        instances = self._requests(one.loaded, tokenizer, template)
        with self._turn:
            return instances, known_answers(one.loaded, instances, one.records)

    def _answers(
        self, one: Missing, instances: list[Any], known: Known, path: Path, tick: Tick | None
    ) -> list[list[Any]]:
        """The answers to all instances; those that are neither known nor in the journal are asked,
        piece by piece."""
        loaded, journal = one.loaded, one.journal
        asked = [instance for i, instance in enumerate(instances) if i not in known.answers]
        pieces = list(_pieces(asked))
        given = journal.read(known.rest)
        if [len(piece) for piece in given] != [len(piece) for piece in pieces[: len(given)]]:
            given = []
        items, done = len(loaded.ids[self._part]), known.items
        if tick and done:
            tick(loaded.name, done, items)
        for n, piece in enumerate(pieces):
            here = len({instance.doc_id for instance in piece})
            if n < len(given):
                if tick:
                    tick(loaded.name, done + here, items)
            else:
                from mergeops.evaluate.scoring_model import Ticker

                self._lm.asking = loaded.name
                self._lm.set_cache_hook(Ticker(_counter(loaded.name, piece, done, items, tick)))
                given.append(self._ask(loaded, piece, path, n))
                if n + 1 < len(pieces):
                    journal.write(given, known.rest)
            done += here
        fresh = iter([answer for piece in given for answer in piece])
        return [
            known.answers[i] if i in known.answers else next(fresh) for i in range(len(instances))
        ]

    def _ask(self, loaded: LoadedTask, piece: list[Any], path: Path, n: int) -> list[list[Any]]:
        spec = self._tasks.spec
        seed_device(self._device, spec.seed + n)  # for tasks that draw their answers
        try:
            given = answers.ask(piece, self._lm)
        except EvaluationError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise EvaluationError(
                    f"out of memory on {self._device} in task {loaded.name}, with "
                    f"evaluate.batch_size={spec.batch_size}; use a smaller one"
                ) from error
            raise EvaluationError(
                f"model {path} cannot be asked task {loaded.name}: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
        answers.check_finite(loaded, piece, given, str(path))
        return given

    def _settings(self) -> dict[str, str]:
        """How this model is asked, as far as the recipe does not say it."""
        settings = {
            "max_length": str(self._lm.max_length),
            "transformers": version("transformers"),
            "torch": version("torch"),
        }
        if self._tasks.spec.backend == "vllm":
            return settings | {"backend": f"vllm {version('vllm')}", "dtype": "", "device": "cuda"}
        model = self._lm.model
        shares = getattr(self._lm, "fallback", "") is None
        return settings | {
            "backend": "mergeops" if shares else "hf",
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        }


def _pieces(instances: Sequence[Any]) -> Iterator[list[Any]]:
    """Instances in runs of ``PIECE`` items, each item whole."""
    piece: list[Any] = []
    items: set[int] = set()
    for instance in instances:
        if instance.doc_id not in items and len(items) == PIECE:
            yield piece
            piece, items = [], set()
        piece.append(instance)
        items.add(instance.doc_id)
    if piece:
        yield piece


def _counter(
    task: str, piece: Sequence[Any], before: int, items: int, tick: Tick | None
) -> Callable[[int], None]:
    """Answers counted as items, one call an item.

    Args:
        before: items of the task that were done before this piece.
        items: of the task.
    """
    here = len({instance.doc_id for instance in piece})
    expected = sum(instance.repeats for instance in piece)
    last = 0

    def count(answered: int) -> None:
        nonlocal last
        done = min(here, answered * here // expected)
        if tick and done > last:
            last = done
            tick(task, before + done, items)

    return count
