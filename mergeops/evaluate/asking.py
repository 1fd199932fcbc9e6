"""Ask models the questions of tasks, one model after the other on one device.

The first model is loaded, the next ones are given their weights where they have the same
configuration; the device is given back when all are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate import answers
from mergeops.evaluate.catalogue import first_line
from mergeops.evaluate.kept import ScoreRecord, ScoreStore, Subject
from mergeops.evaluate.model import Model
from mergeops.evaluate.reuse import Known, joined, known_answers
from mergeops.evaluate.seat import Seat
from mergeops.evaluate.tasks import TaskSet
from mergeops.evaluate.workers import is_out_of_memory, seed_device

PIECE = 256
"""Items asked at once; what is asked after a crash begins at the piece that was lost."""
TaskTick = Callable[[str, int, int], None]
"""Called with (task, items done, items in all)."""


@dataclass(frozen=True)
class Missing:
    """A model and the tasks that have no whole record of it."""

    model: Model
    subjects: Sequence[Subject]
    """One for each of the tasks; at least one."""

    @property
    def digests(self) -> tuple[str, str]:
        """What decides the answers beside the weights: configuration and tokenizer."""
        return self.subjects[0].model_sha256, self.subjects[0].tokenizer_sha256


@dataclass(eq=False)
class Asker:
    """One device and the model on it."""

    seat: Seat
    """The device, and what models are opened on."""
    _: KW_ONLY
    tasks: TaskSet
    """With the prompts and token lists that all models share."""
    part: str
    """dev or confirm."""
    store: ScoreStore
    tick: TaskTick
    turn: Any
    """A lock, held while the tasks' own objects are used, which all devices share."""
    is_lent: bool = False
    """Whether the seat stays open for others."""
    begin: Callable[[Model], object] | None = None
    """Called with each model before it is asked."""
    count: Callable[[int], object] | None = None
    """Called with the number of items whenever some were asked."""

    def work(self, missing: Missing) -> None:
        """Ask a model what is missing of it; each task's record is kept as soon as it is made.

        Items that are known are not asked, and where all are, and no prompt needs the tokenizer,
        the model is not loaded.

        Raises:
            EvaluationError: the model cannot be loaded, does not fit into memory, or answers with
                NaN; a prompt cannot be made, which is found before the model is loaded.
        """
        model, subjects = missing.model, missing.subjects
        if self.begin is not None:
            self.begin(model)
        alike = self.store.alike(subjects)
        chat = self.tasks.spec.apply_chat_template
        if chat:  # the prompts need the tokenizer
            self._open(missing)
        questions = [self._questions(subject, alike[subject.task]) for subject in subjects]
        if not chat and any(len(known.answers) < len(every) for every, known in questions):
            self._open(missing)
        finished: list[Subject] = []
        try:
            for subject, (instances, known) in zip(subjects, questions, strict=True):
                loaded = self.tasks.tasks[subject.task]
                responses = self._answers(subject, instances, known, model.path)
                with self.turn:
                    record = answers.score_answers(loaded, instances, responses)
                settings = list(known.settings)
                if len(known.answers) < len(instances):
                    settings.append(self._settings())
                record |= {"settings": joined(settings), "version": loaded.version}
                self.store.keep(subject, record)
                finished.append(subject)
        finally:
            self.store.share(finished)

    def close(self) -> None:
        """Give the device back, but for a seat that is lent."""
        if not self.is_lent:
            self.seat.close()

    def _open(self, missing: Missing) -> None:
        self.seat.open(missing.model, missing.digests, self.tasks)

    @property
    def _lm(self) -> Any:
        return self.seat.lm

    def _questions(
        self, subject: Subject, records: Iterable[ScoreRecord]
    ) -> tuple[list[Any], Known]:
        """The instances of a task, and the answers that records have already."""
        loaded, spec = self.tasks.tasks[subject.task], self.tasks.spec
        tokenizer = template = None
        if spec.apply_chat_template:
            tokenizer, template = subject.tokenizer_sha256, self._lm.apply_chat_template
        key = (subject.task, self.part, tokenizer)
        with self.turn:
            if template is not None:
                self._lm.asking = subject.task
            if key not in self.tasks.requests:
                self.tasks.requests[key] = answers.build_requests(loaded, self.part, spec, template)
            instances = self.tasks.requests[key]
            return instances, known_answers(loaded, instances, records)

    def _answers(
        self, subject: Subject, instances: list[Any], known: Known, path: Path
    ) -> list[list[Any]]:
        """The answers to all instances; those that are neither known nor in the journal are asked,
        piece by piece."""
        task, journal = subject.task, self.store.journal(subject)
        pieces = list(_pieces(x for i, x in enumerate(instances) if i not in known.answers))
        answered = journal.read(known.rest)
        if [len(piece) for piece in answered] != [len(piece) for piece in pieces[: len(answered)]]:
            answered = []
        total, done = len(self.tasks.tasks[task].ids[self.part]), known.items

        def tell(items: int) -> None:
            self.tick(task, items, total)

        if done:
            tell(done)
        for number, piece in enumerate(pieces):
            if number >= len(answered):
                self._lm.asking = task
                self._lm.set_cache_hook(_ItemCounter(piece, done, tell))
                answered.append(self._ask(task, piece, path, number))
                if self.count is not None:
                    self.count(_items(piece))
                if number + 1 < len(pieces):
                    journal.write(answered, known.rest)
                done += _items(piece)
            else:
                done += _items(piece)
                tell(done)
        if pieces and hasattr(self._lm, "tell_of_cut"):
            self._lm.tell_of_cut()
        new = iter([responses for piece in answered for responses in piece])
        return [
            known.answers[i] if i in known.answers else next(new) for i in range(len(instances))
        ]

    def _ask(self, task: str, piece: list[Any], path: Path, number: int) -> list[list[Any]]:
        spec = self.tasks.spec
        seed_device(self.seat.device, spec.seed + number)  # for tasks that draw their answers
        try:
            responses = answers.ask(piece, self._lm)
        except EvaluationError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise EvaluationError(
                    f"out of memory on {self.seat.device} in task {task}, with "
                    f"evaluate.batch_size={spec.batch_size}; use a smaller one"
                ) from error
            raise EvaluationError(
                f"model {path} cannot be asked task {task}: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
        answers.check_finite(task, piece, responses, path)
        return responses

    def _settings(self) -> dict[str, str]:
        """How this model is asked, as far as the recipe does not say it."""
        settings = {
            "max_length": str(self._lm.max_length),
            "transformers": version("transformers"),
            "torch": version("torch"),
        }
        if self.tasks.spec.backend == "vllm":
            return settings | {"backend": f"vllm {version('vllm')}", "dtype": "", "device": "cuda"}
        model = self._lm.model
        shares = getattr(self._lm, "fallback", "") is None
        return settings | {
            "backend": "mergeops" if shares else "hf",
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        }


class _ItemCounter:
    """Counts answers as items, one call an item; lm-eval tells its cache hook of every answer.

    Args:
        piece: the instances that are asked.
        before: items of the task that were done before this piece.
        tell: called with the items of the task that are done.
    """

    def __init__(self, piece: Sequence[Any], before: int, tell: Callable[[int], None]) -> None:
        self._items, self._before, self._tell = _items(piece), before, tell
        self._expected = sum(instance.repeats for instance in piece)
        self._answered = self._counted = 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Count one answer; nothing is cached."""
        self._answered += 1
        counted = min(self._items, self._answered * self._items // self._expected)
        if counted > self._counted:
            self._counted = counted
            self._tell(self._before + counted)


def _items(instances: Iterable[Any]) -> int:
    """How many items instances belong to."""
    return len({instance.doc_id for instance in instances})


def _pieces(instances: Iterable[Any]) -> Iterator[list[Any]]:
    """Instances in runs of ``PIECE`` items, each item whole."""
    items = [list(item) for _, item in groupby(instances, key=lambda instance: instance.doc_id)]
    for start in range(0, len(items), PIECE):
        yield [instance for item in items[start : start + PIECE] for instance in item]
