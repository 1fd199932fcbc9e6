"""A text of one's own is a task: no questions, no YAML, no data prepared."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support.scoring import score

from mergeops.errors import EvaluationError
from mergeops.evaluate import check_directions
from mergeops.evaluate.tasks import load_tasks
from mergeops.evaluate.text_files import FEWEST, PASSAGE, passages
from mergeops.recipe.settings import EvaluateSpec


def text(paragraphs: int, end: str = "\n\n") -> str:
    """Paragraphs of 600 characters, all of them different."""
    return end.join(f"{i:04d} " + "the hare ran on. " * 35 for i in range(paragraphs)) + "\n"


@pytest.fixture
def held(tmp_path: Path) -> Path:
    path = tmp_path / "held.txt"
    path.write_text(text(48))
    return path


def test_passages_are_whole_paragraphs_of_a_thousand_characters_or_more() -> None:
    found = passages(text(7))
    # Two paragraphs of 600 make one passage; the seventh, too short alone, joins the last.
    assert [sum(f"{i:04d} " in p for i in range(7)) for p in found] == [2, 2, 3]
    assert all(len(p) >= PASSAGE for p in found)
    assert [i for p in found for i in range(7) if f"{i:04d} " in p] == list(range(7))


def test_a_text_without_empty_lines_is_cut_at_lines() -> None:
    assert len(passages(text(8, "\n"))) == 4


def test_a_text_file_is_a_task_named_by_it(held: Path) -> None:
    loaded = load_tasks(EvaluateSpec(tasks=(str(held),))).tasks["held"]
    assert (loaded.metric, loaded.higher_is_better, len(loaded.docs)) == (
        "bits_per_byte",
        False,
        24,
    )
    assert sorted([*loaded.ids["dev"], *loaded.ids["confirm"]]) == list(range(24))


def test_a_text_may_lie_in_the_include_path(held: Path) -> None:
    spec = EvaluateSpec(tasks=("held.txt",), include_path=str(held.parent))
    assert list(load_tasks(spec).tasks) == ["held"]


def test_a_text_beside_a_task_of_which_higher_is_better_is_refused_at_once(
    held: Path, write_task: Callable[..., Path]
) -> None:
    spec = EvaluateSpec(tasks=("sums", str(held)), include_path=str(write_task().parent))
    message = "of sums higher is better, of held lower: no single number can choose by both"
    with pytest.raises(EvaluationError, match=message):
        check_directions(load_tasks(spec))
    check_directions(load_tasks(EvaluateSpec(tasks=(str(held),))))


def test_another_text_is_another_question(held: Path) -> None:
    spec = EvaluateSpec(tasks=(str(held),))
    before = load_tasks(spec).tasks["held"].digests["dev"]
    assert load_tasks(spec).tasks["held"].digests["dev"] == before
    held.write_text(text(48).replace("hare", "mare"))
    assert load_tasks(spec).tasks["held"].digests["dev"] != before


@pytest.mark.parametrize("template", ["{{ text }}", "[1, 2]", "{% if %}"])
def test_what_looks_like_a_template_is_text(held: Path, template: str) -> None:
    held.write_text(f"{template}\n\n{text(48)}")
    loaded = load_tasks(EvaluateSpec(tasks=(str(held),))).tasks["held"]
    assert loaded.task.doc_to_target(loaded.docs[0]).startswith(template)


def test_bits_per_byte_are_those_of_lm_evals_own_model(
    held: Path, llama: Path, tmp_path: Path
) -> None:
    """Minus the log-likelihood of the passage in bits, over its bytes in UTF-8."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    draw = random.Random(0)
    words = [" ".join(draw.choices([*text(1).split(), "häre"], k=300)) for _ in range(16)]
    held.write_text("\n\n".join(words))
    spec = EvaluateSpec(tasks=(str(held),), dtype="float32", device="cpu")
    task = score(llama, "w", spec, "dev", work_dir=tmp_path / "work").tasks["held"]
    passage = load_tasks(spec).tasks["held"].docs[task.items[0].doc_id]["text"]
    model = HFLM(pretrained=str(llama), dtype="float32", device="cpu", batch_size=4)
    request = Instance("loglikelihood_rolling", {}, (passage,), 0)
    [total] = model.loglikelihood_rolling([request], disable_tqdm=True)
    bits = -total / math.log(2) / len(passage.encode())
    first = task.items[0]
    assert first.value / first.weight == pytest.approx(bits, rel=1e-5)
    assert first.weight == len(passage.encode())


def test_what_cannot_be_a_held_text_is_refused(held: Path) -> None:
    spec = EvaluateSpec(tasks=(str(held),))
    held.write_text(text(6))
    with pytest.raises(EvaluationError, match=f"makes 3 different passages.* need {FEWEST}"):
        load_tasks(spec)
    held.write_text("The same again. " * 100 + "\n\n" + ("The same again. " * 100 + "\n\n") * 30)
    with pytest.raises(EvaluationError, match="makes 1 different passages"):
        load_tasks(spec)
    held.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvaluationError, match="cannot be read as UTF-8"):
        load_tasks(spec)
    held.unlink()
    with pytest.raises(EvaluationError, match=r"text file .*held.txt does not exist"):
        load_tasks(spec)
