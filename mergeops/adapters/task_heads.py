"""Heads for other tasks than the base's: classifiers that an adapter brings whole.

PEFT saves the head of a classifier beside the adapter (``modules_to_save``). The base is loaded
with as many labels as were trained, so a head of another size is the adapter's, and config.json
has labels as transformers names them: ``from_pretrained(BASE, num_labels=N)``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.architectures import read_fit
from mergeops.checkpoint import StoredTensor
from mergeops.errors import SourceError

Shape = tuple[int, ...]

LABEL_HEADS = ("score", "classifier", "classification_head")
"""What transformers calls the modules with a row for each label, behind the last layer."""
HEADS = (*LABEL_HEADS, "qa_outputs", "v_head")
"""Those, and of answers and TRL's values."""
UNSAID = 2
"""So many labels has a model whose config.json names none."""
CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
"""Task of adapter_config.json -> how transformers calls the classes for it."""


def labels_of(config: Mapping[str, Any]) -> int:
    """How many labels a config.json has."""
    named, said = config.get("id2label"), config.get("num_labels")
    if isinstance(named, Mapping):
        return len(named)
    return said if isinstance(said, int) else UNSAID


def with_labels(
    shown: str, config: Mapping[str, Any], numbers: Collection[int]
) -> tuple[dict[str, Any], list[str]]:
    """What config.json says of the labels of an adapter's head, and a note.

    Args:
        shown: the adapter.
        config: the base's.
        numbers: rows of the adapter's heads, where they are not the base's.

    Raises:
        SourceError: its heads have different numbers of labels.
    """
    if len(numbers) > 1:
        listed = ", ".join(map(str, sorted(numbers)))
        raise SourceError(
            f"{shown}: its heads have different numbers of labels ({listed}); a config.json has "
            "one: leave this source out"
        )
    told = [
        f"{shown} has a head of {number} labels and its base one of {labels_of(config)}: the merge "
        "has the adapter's, and config.json calls them LABEL_0, ..., as transformers does"
        for number in numbers
    ]
    return next((_labels(config, number) for number in numbers), {}), told


def _labels(config: Mapping[str, Any], number: int) -> dict[str, Any]:
    names = {str(i): f"LABEL_{i}" for i in range(number)}
    said = {"num_labels": number} if "num_labels" in config else {}
    return {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}, **said}


def is_of_labels(name: str, shape: Shape, expected: Shape, config: Mapping[str, Any]) -> bool:
    """Whether a tensor of an adapter is the base's of a classifier, but with other labels.

    Args:
        name: in memory.
        shape: the adapter's.
        expected: the base's.
        config: the base's config.json.
    """
    is_head = any(word in HEADS for word in name.split("."))
    is_other = shape != expected and shape[1:] == expected[1:]
    return is_head and is_other and expected[:1] == (labels_of(config),)


@dataclass(frozen=True)
class TrainedHead:
    """What an adapter says of the task that it was trained for."""

    task: str
    """``task_type`` of adapter_config.json; empty where it has none."""
    own: Mapping[str, StoredTensor]
    """The adapter's tensors."""

    def missing(self, tensor: str, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str:
        """What to do where the base lacks a tensor of a head that the adapter brings.

        Args:
            tensor: the name that was looked for.
            config: the base's config.json.
            shapes: the base's tensors.

        Returns:
            To follow what is wrong; empty where the tensor is of no head.
        """
        head = next((word for word in tensor.split(".") if word in HEADS), None)
        if head is None:
            return ""
        # Of a head of several layers, the last has a row for each label.
        of_head = [name for name in sorted(self.own) if f".{head}." in name]
        rows = self.own[of_head[-1]].shape[0] if of_head else UNSAID
        ending = CLASSES.get(self.task, "")
        told = f": {head} is the head of another task than the base's; "
        # Two rows of a head for answers are begin and end.
        labels = "" if self.task == "QUESTION_ANS" else f", num_labels={rows if ending else 'N'}"
        saved = (
            f"AutoModel{ending or CLASSES['SEQ_CLS']}.from_pretrained(BASE{labels})"
            ".save_pretrained(NEW_DIR)"
        )
        others = [
            name
            for name in _missing(rows, ending, config, shapes)
            if not any(f".{key}".endswith(f".{name}") for key in self.own)
        ]
        if others:
            return (
                f"{told}the training gave the base {', '.join(others)}, too, drawn at random and "
                "kept in no file: save the trained model while it is in memory, by "
                "merge_and_unload().save_pretrained(NEW_DIR), or train the adapter again on a "
                f"base with that head, {saved}"
            )
        own_class = "" if ending else " or the task's own class"
        return (
            f"{told}save the base once with that head, by {saved}{own_class}, and set the "
            "source's base to it"
        )


def _missing(
    rows: int, ending: str, config: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> tuple[str, ...]:
    """Parameters that a class for the task has and the base lacks."""
    named = config.get("architectures") or [""]
    stem = re.sub(r"(For[A-Z]\w*|LMHeadModel|Model)$", "", str(named[0]))
    if not stem or not ending:
        return ()
    asked = {**config, **_labels(config, rows), "architectures": [f"{stem}{ending}"]}
    try:
        fit = read_fit(asked, shapes)
    except SourceError:
        return ()
    return () if fit is None else fit.missing
