"""Chat models: prompts, answers and numbers are those of lm-eval's own ``hf`` model, whose one-call
evaluation is asked the same with the same settings."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.scoring import score

from mergeops.errors import ConfigError, EvaluationError
from mergeops.evaluate.tasks import load_tasks
from mergeops.recipe import Recipe
from mergeops.recipe.settings import EvaluateSpec
from mergeops.scores import Scores
from mergeops.scores.pairing import pair

Write = Callable[..., Path]

TURNS = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% if not loop.last or add_generation_prompt %}</{{ m['role'] }}>{% endif %}{% endfor %}"
)
TEMPLATES = {
    # With the words that begin the model's turn, and what thinking models make of them.
    "with_prefix": TURNS + "{% if add_generation_prompt %}<assistant>{% if enable_thinking is "
    "defined and not enable_thinking %}<think></think>{% endif %}{{ mood }}{% endif %}",
    "without_prefix": TURNS,
    # Gemma's refuses the system's turn, Mistral's first ones pass over it.
    "no_system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
    + TURNS,
    "deaf": "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% endfor %}",
}
CHOICES: dict[str, Any] = {}
WRITES: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def chat(llama: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The tiny model with a chat template."""

    def make(template: str) -> Path:
        folder = tmp_path / template
        shutil.copytree(llama, folder)
        (folder / "chat_template.jinja").write_text(TEMPLATES[template])
        return folder

    return make


def with_examples(path: Path, **changes: Any) -> Path:
    rows = [{"prompt": f"Now {i}?", "choices": list("abcd"), "answer": i % 4} for i in range(9)]
    train = path.parent / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = yaml.safe_load(path.read_text())
    task["dataset_kwargs"]["data_files"]["train"] = str(train)
    path.write_text(yaml.safe_dump({**task, "fewshot_split": "train", **changes}))
    return path


def spec_for(folder: Path, **settings: Any) -> EvaluateSpec:
    usual = {"batch_size": 8, "device": "cpu", "apply_chat_template": True, "limit": 4}
    return EvaluateSpec(tasks=("sums",), include_path=str(folder), **{**usual, **settings})


def by_lm_eval(path: Path, spec: EvaluateSpec) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(
        pretrained=str(path),
        device="cpu",
        batch_size=spec.batch_size,
        think_end_token=spec.think_end_token,
        enable_thinking=spec.enable_thinking,
        chat_template_args=dict(spec.chat_template_args),
    )
    results: dict[str, Any] = simple_evaluate(
        model=model,
        tasks=["sums"],
        task_manager=TaskManager(include_path=spec.include_path, include_defaults=False),
        num_fewshot=spec.num_fewshot,
        samples={"sums": list(load_tasks(spec).tasks["sums"].ids["dev"])},
        apply_chat_template=spec.apply_chat_template,
        system_instruction=spec.system_instruction,
        gen_kwargs=dict(spec.gen_kwargs) or None,
        bootstrap_iters=2,
        **({} if spec.fewshot_as_multiturn else {"fewshot_as_multiturn": False}),
    )
    return results


def asked(path: Path, spec: EvaluateSpec, work: Path) -> tuple[Scores, list[list[Any]], list[Any]]:
    """Scores, prompts, and answers."""
    from mergeops.evaluate.harness import Model, score_all

    tasks = load_tasks(spec)
    [scores] = score_all([Model(path, "ab" * 32)], spec, "dev", work_dir=work, tasks=tasks)
    [instances] = tasks.requests.values()
    [record] = [json.loads(p.read_text())["record"] for p in work.glob("scores/*/*.json")]
    answers = [answer for item in record["items"] for [answer] in item["answers"]]
    return scores, [list(instance.args) for instance in instances], answers


SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "defaults": ("with_prefix", CHOICES, {}, {}),
    "task_says_how": ("with_prefix", CHOICES, {"description": "Count.\n"}, {"num_fewshot": 2}),
    "description_of_the_item": ("with_prefix", CHOICES, {"description": "Of {{prompt}}"}, {}),
    "system_instruction": (
        "with_prefix",
        CHOICES,
        {"description": "Count."},
        {"system_instruction": "Be brief.", "num_fewshot": 1},
    ),
    "begun_answer": ("with_prefix", CHOICES, {"gen_prefix": "It is"}, {"num_fewshot": 2}),
    "no_words_that_begin_a_turn": ("without_prefix", CHOICES, {}, {"num_fewshot": 2}),
    "one_turn": ("with_prefix", CHOICES, {}, {"num_fewshot": 2, "fewshot_as_multiturn": False}),
    "no_system_turn": ("no_system", CHOICES, {"description": "Count."}, {"num_fewshot": 1}),
    "writes": ("with_prefix", WRITES, {}, {"num_fewshot": 1}),
    "writes_on": ("without_prefix", WRITES, {"gen_prefix": "It is"}, {}),
    "thinks": ("with_prefix", WRITES, {}, {"enable_thinking": True, "think_end_token": "e"}),
    "does_not_think": ("with_prefix", WRITES, {}, {"enable_thinking": False}),
    "token_that_ends_thoughts": ("with_prefix", WRITES, {}, {"think_end_token": 70}),
    "more_room": ("with_prefix", WRITES, {}, {"gen_kwargs": {"max_gen_toks": 12, "until": ["q"]}}),
    "template_arguments": ("with_prefix", WRITES, {}, {"chat_template_args": {"mood": "gay"}}),
    "plain_text": (
        "with_prefix",
        CHOICES,
        {"description": "Count."},
        {"system_instruction": "Be brief.", "apply_chat_template": False},
    ),
}


QUICK = ("system_instruction", "begun_answer", "one_turn", "no_system_turn", "thinks", "more_room")
"""The other cases cost a second each, and are told by the same code."""


@pytest.mark.parametrize(
    "case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.sweep) for c in SETTINGS]
)
def test_prompts_answers_and_numbers_are_lm_evals(
    case: str, chat: Callable[[str], Path], write_task: Write, tmp_path: Path
) -> None:
    template, kind, task, settings = SETTINGS[case]
    folder = with_examples(write_task(**kind), **task).parent
    path, spec = chat(template), spec_for(folder, **settings)
    scores, prompts, answers = asked(path, spec, tmp_path / "work")
    theirs = by_lm_eval(path, spec)
    samples = theirs["samples"]["sums"]
    sent = [list(arguments) for sample in samples for arguments in sample["arguments"]]
    assert prompts == sent
    replies = [reply for sample in samples for [reply] in sample["resps"]]
    if kind is WRITES:
        assert answers == replies
    else:
        assert [ll for ll, _ in answers] == pytest.approx([ll for ll, _ in replies], abs=1e-4)
        assert [greedy for _, greedy in answers] == [greedy for _, greedy in replies]
    own = scores.tasks["sums"]
    assert own.value == theirs["results"]["sums"][f"{own.metric},none"]


def test_thoughts_are_cut_from_answers_and_the_settings_change_what_is_asked(
    chat: Callable[[str], Path], write_task: Write, tmp_path: Path
) -> None:
    folder, path = write_task(**WRITES).parent, chat("with_prefix")
    _, open_prompts, whole = asked(path, spec_for(folder), tmp_path / "1")
    letter = next(c for c in whole[0] if c.strip())
    spec = spec_for(folder, enable_thinking=True, think_end_token=letter)
    _, _, cut = asked(path, spec, tmp_path / "2")
    assert cut == [text.split(letter)[-1].lstrip() for text in whole]
    assert cut != whole
    closed = spec_for(folder, enable_thinking=False)
    _, closed_prompts, _ = asked(path, closed, tmp_path / "3")
    assert "<think></think>" in closed_prompts[0][0]
    assert "<think>" not in open_prompts[0][0]


def test_scores_with_other_chat_settings_are_never_paired_nor_taken_over(
    chat: Callable[[str], Path], write_task: Write, tmp_path: Path
) -> None:
    folder, path = write_task(**WRITES).parent, chat("with_prefix")
    one = score(path, "ab" * 32, spec_for(folder), "dev", work_dir=tmp_path)
    other = spec_for(folder, think_end_token="</think>")
    two = score(path, "ab" * 32, other, "dev", work_dir=tmp_path)
    assert len(list(tmp_path.glob("scores/*/*.json"))) == 2
    message = r"not scored alike \(chat template: on, think_end_token '</think>' and on\)"
    with pytest.raises(EvaluationError, match=message):
        pair(two, one)


def test_lm_evals_defaults_leave_digests_of_kept_scores_as_they_were(
    write_task: Write,
) -> None:
    from mergeops.evaluate.how_asked import chat_settings

    spec = spec_for(write_task().parent)
    assert chat_settings(spec) == {}
    assert load_tasks(spec).tasks["sums"].how["chat template"] == "on"


@pytest.mark.parametrize("template", ["no_system", "deaf"])
def test_a_template_without_a_place_for_the_system_prompt_is_told_of_once_a_task(
    template: str,
    chat: Callable[[str], Path],
    write_task: Write,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = with_examples(write_task(), description="Count.").parent
    with caplog.at_level(logging.WARNING, "mergeops"):
        score(chat(template), "ab" * 32, spec_for(folder), "dev", work_dir=tmp_path)
    told = [r.message for r in caplog.records if "no place for a system prompt" in r.message]
    assert len(told) == 1
    assert told[0].startswith("task sums: the model's chat template has no place")


def test_a_model_that_thinks_is_asked_no_log_likelihoods(write_task: Write) -> None:
    spec = spec_for(write_task().parent, enable_thinking=True, think_end_token="</think>")
    with pytest.raises(EvaluationError, match="task sums compares log-likelihoods .* lets no mode"):
        load_tasks(spec)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enable_thinking": True}, "needs evaluate.think_end_token: what ends the thoughts"),
        (
            {"enable_thinking": False, "apply_chat_template": False},
            "evaluate.enable_thinking is for a chat template; set evaluate.apply_chat_template",
        ),
        ({"think_end_token": 7, "backend": "vllm"}, "takes the text, not the token's id"),
        (
            {"chat_template_args": {"a": 1}, "apply_chat_template": False},
            "evaluate.chat_template_args is for a chat template",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateSpec(**{"apply_chat_template": True, **settings})


def test_the_recipe_takes_them_by_their_keys() -> None:
    from mergeops.recipe import compose

    words = [
        "method=linear", "sources.a.uri=/a", "sources.b.uri=/b",
        "evaluate.apply_chat_template=true", "evaluate.think_end_token='</think>'",
        "evaluate.enable_thinking=true", "evaluate.gen_kwargs.max_gen_toks=4096",
        "evaluate.chat_template_args.mood=high", "evaluate.system_instruction='Be brief.'",
        "evaluate.fewshot_as_multiturn=false",
    ]  # fmt: skip
    spec = compose(words).evaluate
    assert spec.think_end_token == "</think>"
    assert (spec.gen_kwargs, spec.chat_template_args) == ({"max_gen_toks": 4096}, {"mood": "high"})
    assert compose([*words, "evaluate.think_end_token=151668"]).evaluate.think_end_token == 151668
    assert Recipe.from_dict(compose(words).to_dict()).evaluate == spec
