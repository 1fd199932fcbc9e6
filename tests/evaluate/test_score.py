"""Scoring: lm-eval's own numbers, never twice, nothing lost, and no score that means nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from support.scoring import score

from mergeops.errors import ConfigError, EvaluationError
from mergeops.evaluate import answers, asking, seat
from mergeops.evaluate.tasks import load_tasks
from mergeops.recipe.settings import EvaluateSpec
from mergeops.scores import Scores

Write = Callable[..., Path]
SHA = "ab" * 32


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The last digits depend on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def never_loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    return lambda: monkeypatch.setattr(seat, "load_model", refuse)


def spec_for(folder: Path, *tasks: str, **settings: Any) -> EvaluateSpec:
    return EvaluateSpec(
        tasks=tasks, include_path=str(folder), **{"batch_size": 8, "device": "cpu", **settings}
    )


def kept(work: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text())["record"] for p in sorted(work.glob("scores/*/*.json"))]


def with_examples(path: Path) -> Path:
    """Give a task a training split to draw examples from; lm-eval would draw from its items."""
    rows = [{"prompt": f"Now {i}?", "choices": list("abcd"), "answer": i % 4} for i in range(9)]
    train = path.parent / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = yaml.safe_load(path.read_text())
    task["dataset_kwargs"]["data_files"]["train"] = str(train)
    path.write_text(yaml.safe_dump({**task, "fewshot_split": "train"}))
    return path


def by_lm_eval(path: Path, spec: EvaluateSpec, part: str, tasks: list[str]) -> dict[str, Any]:
    """lm-eval's own one-call evaluation of the same items."""
    import transformers
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded = load_tasks(spec).tasks
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    results: dict[str, Any] = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=spec.batch_size),
        tasks=tasks,
        task_manager=TaskManager(include_path=spec.include_path, include_defaults=False),
        num_fewshot=spec.num_fewshot,
        samples={task: list(loaded[task].ids[part]) for task in tasks},
        apply_chat_template=spec.apply_chat_template,
        bootstrap_iters=2,
    )
    return results


def check_same(scores: Scores, record: dict[str, Any], results: dict[str, Any]) -> None:
    [task] = scores.tasks.values()
    result, samples = results["results"][task.task], results["samples"][task.task]
    assert task.value == result[f"{task.metric},none"]
    assert task.stderr == result[f"{task.metric}_stderr,none"]
    assert [item.doc_id for item in task.items] == [s["doc_id"] for s in samples]
    assert [item.doc_hash for item in task.items] == [s["doc_hash"] for s in samples]
    assert [item.target_hash for item in task.items] == [s["target_hash"] for s in samples]
    assert [item.value for item in task.items] == [s[task.metric] for s in samples]
    mine = [answer for item in record["items"] for [answer] in item["answers"]]
    theirs = [list(answer) for s in samples for [answer] in s["resps"]]
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
    if record["settings"]["backend"] == "hf":
        assert mine == theirs
    assert [ll for ll, _ in mine] == pytest.approx([ll for ll, _ in theirs], abs=1e-4)


# --- the numbers


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", ["hf", "auto"])
@pytest.mark.parametrize("settings", [{}, {"num_fewshot": 2}, {"apply_chat_template": True}])
def test_scores_and_log_likelihoods_are_lm_evals_own(
    llama: Path, write_task: Write, work: Path, settings: dict[str, Any], backend: str
) -> None:
    folder = with_examples(write_task()).parent
    spec = spec_for(folder, "sums", backend=backend, **settings)
    scores = score(llama, SHA, spec, "dev", work_dir=work)
    check_same(scores, kept(work)[0], by_lm_eval(llama, spec, "dev", ["sums"]))


@pytest.mark.usefixtures("one_thread")
def test_the_second_model_of_a_task_set_gets_the_same_prompts_and_its_own_numbers(
    llama: Path, tiny_llama: Callable[..., Path], write_task: Write, work: Path
) -> None:
    spec = spec_for(with_examples(write_task()).parent, "sums", num_fewshot=2)
    tasks = load_tasks(spec)
    first = score(llama, SHA, spec, "dev", work_dir=work, tasks=tasks)
    other = tiny_llama(seed=5)
    second = score(other, "cd" * 32, spec, "dev", work_dir=work / "other", tasks=tasks)
    check_same(second, kept(work / "other")[0], by_lm_eval(other, spec, "dev", ["sums"]))
    prompts = [[item.prompt_hash for item in s.tasks["sums"].items] for s in (first, second)]
    assert prompts[0] == prompts[1]


@pytest.mark.usefixtures("one_thread")
def test_adding_a_task_does_not_change_another(llama: Path, write_task: Write, work: Path) -> None:
    folder = write_task("sums").parent
    write_task(
        "more", [{"prompt": "x" * i, "choices": ["a", "b"], "answer": 0} for i in range(1, 9)]
    )
    alone = score(llama, SHA, spec_for(folder, "sums"), "dev", work_dir=work / "1")
    both = score(llama, SHA, spec_for(folder, "more", "sums"), "dev", work_dir=work / "2")
    assert both.tasks["sums"] == alone.tasks["sums"]
    alone_answers = [i["answers"] for r in kept(work / "1") for i in r["items"]]
    both_answers = [
        i["answers"] for r in kept(work / "2") if r["header"]["task"] == "sums" for i in r["items"]
    ]
    assert both_answers == alone_answers


def test_the_value_is_the_mean_over_the_items(llama: Path, write_task: Write, work: Path) -> None:
    spec = spec_for(write_task().parent, "sums", confirm_fraction=0.3)
    scores = score(llama, SHA, spec, "confirm", work_dir=work)
    values = [item.value for item in scores.tasks["sums"].items]
    assert set(values) <= {0.0, 1.0}
    assert scores.tasks["sums"].value == scores.pooled == sum(values) / len(values)


def test_records_name_the_items_that_were_asked(llama: Path, write_task: Write, work: Path) -> None:
    spec = spec_for(write_task().parent, "sums", limit=3)
    tasks = load_tasks(spec)
    scores = score(llama, SHA, spec, "confirm", work_dir=work, tasks=tasks)
    ids = [item.doc_id for item in scores.tasks["sums"].items]
    assert ids == list(tasks.tasks["sums"].ids["confirm"])
    assert len(ids) == 3
    assert ids != [0, 1, 2]


def test_generated_answers_are_scored(llama: Path, write_task: Write, work: Path) -> None:
    exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    folder = write_task(
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[0]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4},
        metric_list=[exact],
    ).parent
    spec = spec_for(folder, "sums", limit=4)
    task = score(llama, SHA, spec, "dev", work_dir=work).tasks["sums"]
    assert (task.metric, task.value, task.n) == ("exact_match", 0.0, 4)
    assert all(isinstance(a[0], str) for i in kept(work)[0]["items"] for a in i["answers"])


def test_an_item_of_bits_per_byte_has_its_bits_and_its_bytes(
    llama: Path, write_task: Write, work: Path
) -> None:
    folder = write_task(
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_choice=None,
        doc_to_target="{{prompt}}",
        metric_list=[{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    ).parent
    task = score(llama, SHA, spec_for(folder, "sums"), "dev", work_dir=work).tasks["sums"]
    assert (task.kind, task.higher_is_better, task.stderr) == ("units", False, None)
    record = kept(work)[0]
    likelihoods = [item["answers"][0][0] for item in record["items"]]
    sizes = [len(f"What follows {item['doc_id']}?") for item in record["items"]]
    log_2 = 0.6931471805599453
    assert [i.value for i in task.items] == pytest.approx([-ll / log_2 for ll in likelihoods])
    assert [item.weight for item in task.items] == sizes
    assert task.value == pytest.approx(-sum(likelihoods) / sum(sizes) / log_2)


def test_settings_say_how_it_was_scored(llama: Path, write_task: Write, work: Path) -> None:
    folder = write_task("a", num_fewshot=1).parent
    write_task("b")
    settings = score(llama, SHA, spec_for(folder, "a", "b"), "dev", work_dir=work).settings
    assert settings["batch_size"] == "8"
    assert settings["dtype"] == "float32"
    assert settings["device"] == "cpu"
    assert settings["max_length"] == "128"
    assert settings["num_fewshot"] == "a=1, b=0"
    assert set(settings) >= {"lm_eval", "transformers", "torch", "seed", "split_salt", "limit"}


def test_a_smaller_number_format_can_be_chosen(llama: Path, write_task: Write, work: Path) -> None:
    spec = spec_for(write_task().parent, "sums", dtype="bfloat16")
    assert score(llama, SHA, spec, "dev", work_dir=work).settings["dtype"] == "bfloat16"


# --- never twice


def test_the_same_model_is_not_asked_twice(
    llama: Path, write_task: Write, work: Path, never_loads: Callable[[], None]
) -> None:
    spec = spec_for(write_task().parent, "sums")
    first = score(llama, SHA, spec, "dev", work_dir=work)
    never_loads()
    again = score(llama, SHA, spec, "dev", work_dir=work)
    assert again == first
    other_metric = replace(spec, metrics={"sums": "acc_norm"})
    assert score(llama, SHA, other_metric, "dev", work_dir=work).tasks["sums"].metric == "acc_norm"


@pytest.mark.parametrize("change", ["weights", "part", "batch_size", "tokenizer", "config"])
def test_anything_that_may_change_an_answer_is_asked_again(
    llama: Path, write_task: Write, work: Path, tmp_path: Path, change: str
) -> None:
    spec = spec_for(write_task().parent, "sums")
    score(llama, SHA, spec, "dev", work_dir=work)
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    weights, part = ("cd" * 32 if change == "weights" else SHA), "dev"
    if change == "part":
        part = "confirm"
    if change == "batch_size":
        spec = replace(spec, batch_size=4)
    if change == "tokenizer":
        (copy / "added_tokens.json").write_text("{}")
    if change == "config":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    score(copy, weights, spec, part, work_dir=work)
    assert len(kept(work)) == 2


def test_who_saved_the_config_last_does_not_matter(
    llama: Path, write_task: Write, work: Path, tmp_path: Path, never_loads: Callable[[], None]
) -> None:
    spec = spec_for(write_task().parent, "sums")
    score(llama, SHA, spec, "dev", work_dir=work)
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"transformers_version": "4.0.0", "_name_or_path": "somewhere"}
    (copy / "config.json").write_text(json.dumps(config))
    never_loads()
    score(copy, SHA, spec, "dev", work_dir=work)


def test_a_new_task_asks_only_the_new_task(
    llama: Path, write_task: Write, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_task("old").parent
    write_task("new")
    score(llama, SHA, spec_for(folder, "old"), "dev", work_dir=work)
    asked = []
    original = answers.ask

    def watched(instances: Any, model: Any) -> Any:
        asked.append(instances[0].task_name)
        return original(instances, model)

    monkeypatch.setattr(answers, "ask", watched)
    scores = score(llama, SHA, spec_for(folder, "old", "new"), "dev", work_dir=work)
    assert asked == ["new"]
    assert list(scores.tasks) == ["old", "new"]


def test_a_crash_loses_only_the_task_in_flight(
    llama: Path, write_task: Write, work: Path, never_loads: Callable[[], None]
) -> None:
    folder = write_task("a").parent
    write_task("b")

    def crash(task: str, done: int, _total: int) -> None:
        if task == "b" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(llama, SHA, spec_for(folder, "a", "b"), "dev", work_dir=work, progress=crash)
    assert [record["header"]["task"] for record in kept(work)] == ["a"]
    never_loads()
    score(llama, SHA, spec_for(folder, "a"), "dev", work_dir=work)


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "foreign", "list"])
def test_a_damaged_or_foreign_file_is_asked_again(
    llama: Path, write_task: Write, work: Path, damage: str
) -> None:
    spec = spec_for(write_task().parent, "sums")
    first = score(llama, SHA, spec, "dev", work_dir=work)
    [file] = work.glob("scores/*/*.json")
    text = file.read_text()
    stored = json.loads(text)
    if damage == "changed":
        stored["record"]["items"][0]["values"]["acc,none"] = 5.0
    if damage == "foreign":
        score(llama, "ef" * 32, spec, "dev", work_dir=work)
        [other] = work.glob("scores/efef*/*.json")
        stored = json.loads(other.read_text())
    file.write_text(
        {"cut": text[: len(text) // 2], "empty": "", "list": "[]"}.get(damage, json.dumps(stored))
    )
    assert score(llama, SHA, spec, "dev", work_dir=work) == first
    assert json.loads(file.read_text()) == json.loads(text)


def test_a_store_that_cannot_be_written_is_named(
    llama: Path, write_task: Write, work: Path
) -> None:
    work.parent.mkdir(exist_ok=True)
    work.write_text("a file where the directory should be")
    with pytest.raises(EvaluationError, match=r"scores cannot be kept in .*dev.json"):
        score(llama, SHA, spec_for(write_task().parent, "sums"), "dev", work_dir=work)


# --- what cannot be scored


def damaged(llama: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    copy = tmp_path / "damaged"
    shutil.copytree(llama, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_a_model_with_nan_gets_no_score(
    llama: Path, write_task: Write, work: Path, tmp_path: Path
) -> None:
    def poison(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")

    path = damaged(llama, tmp_path, poison)
    message = r"holds NaN or Inf in model.layers.1.mlp.up_proj.weight; it cannot be scored"
    with pytest.raises(EvaluationError, match=message):
        score(path, SHA, spec_for(write_task().parent, "sums"), "dev", work_dir=work)
    assert kept(work) == []


def test_a_model_whose_numbers_overflow_gets_no_score(
    llama: Path, write_task: Write, work: Path, tmp_path: Path
) -> None:
    def blow_up(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"].fill_(3e38)
        tensors["lm_head.weight"].mul_(1e30)

    path = damaged(llama, tmp_path, blow_up)
    message = r"gives a log-likelihood of nan on item \d+ of task sums.*dtype=float32"
    with pytest.raises(EvaluationError, match=message):
        score(path, SHA, spec_for(write_task().parent, "sums"), "dev", work_dir=work)
    assert kept(work) == []


def test_a_model_that_lacks_weights_is_not_scored_with_random_ones(
    llama: Path, write_task: Write, work: Path, tmp_path: Path
) -> None:
    path = damaged(llama, tmp_path, lambda t: t.pop("model.layers.0.mlp.down_proj.weight"))
    message = r"lacks 1 tensors that its config.json asks for, e.g. model.layers.0.mlp.down_proj"
    with pytest.raises(EvaluationError, match=message):
        score(path, SHA, spec_for(write_task().parent, "sums"), "dev", work_dir=work)


def test_weights_of_another_shape_are_refused(
    llama: Path, write_task: Write, work: Path, tmp_path: Path
) -> None:
    def cut(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:5].clone()

    path = damaged(llama, tmp_path, cut)
    with pytest.raises(
        EvaluationError, match=r"lm_head.weight has shape \[5, 32\], but .* \[128, 32\]"
    ):
        score(path, SHA, spec_for(write_task().parent, "sums"), "dev", work_dir=work)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("config.json", "has no config.json; it is no Hugging Face checkpoint"),
        ("model.safetensors", "cannot be loaded: "),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_a_missing_file_is_named(
    llama: Path, write_task: Write, work: Path, tmp_path: Path, gone: str, message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    (copy / gone).unlink()
    with pytest.raises(EvaluationError, match=message):
        score(copy, SHA, spec_for(write_task().parent, "sums"), "dev", work_dir=work)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("T5ForConditionalGeneration", "cannot be loaded: Unrecognized configuration class .*"),
        ("BertForSequenceClassification", "lacks .* tensors that its config.json asks for, .*"),
    ],
)
def test_a_model_that_is_no_causal_one_is_named_so(
    llama: Path, write_task: Write, work: Path, tmp_path: Path, kind: str, message: str
) -> None:
    import transformers

    cls = getattr(transformers, kind)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 128}
    t5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 128}
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    cls(cls.config_class(**(t5 if "T5" in kind else sizes))).save_pretrained(copy)
    told = f"{message}; it is a {kind}, and causal language models are scored: set evaluate.tasks="
    with pytest.raises(EvaluationError, match=told):
        score(copy, SHA, spec_for(write_task().parent, "sums"), "dev", work_dir=work)


def test_a_missing_directory_is_named(write_task: Write, work: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"model .*gone is no directory"):
        score(tmp_path / "gone", SHA, spec_for(write_task().parent, "sums"), "dev", work_dir=work)


def test_broken_files_beside_the_weights_are_named(
    llama: Path, write_task: Write, work: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    spec = spec_for(write_task().parent, "sums")
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"the tokenizer in .*copy cannot be loaded"):
        score(copy, SHA, spec, "dev", work_dir=work)
    (copy / "config.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"config.json is no JSON"):
        score(copy, SHA, spec, "dev", work_dir=work)


def test_the_tokenizer_may_lie_elsewhere(
    llama: Path, write_task: Write, work: Path, tmp_path: Path
) -> None:
    weights, words = tmp_path / "weights", tmp_path / "words"
    shutil.copytree(llama, weights)
    words.mkdir()
    for file in weights.glob("*token*"):
        file.rename(words / file.name)
    (weights / "chat_template.jinja").rename(words / "chat_template.jinja")
    spec = spec_for(write_task().parent, "sums")
    apart = score(weights, SHA, spec, "dev", work_dir=work / "1", tokenizer=words)
    assert apart == score(llama, SHA, spec, "dev", work_dir=work / "2")


def test_the_tokenizer_of_another_model_is_refused(
    llama: Path, tiny_llama: Callable[..., Path], write_task: Write, work: Path
) -> None:
    smaller = tiny_llama(vocabulary_size=110)
    spec = spec_for(write_task().parent, "sums")
    message = "task sums: the tokenizer gives ids beyond the model's 110 embedding rows"
    with pytest.raises(EvaluationError, match=message):
        score(smaller, SHA, spec, "dev", work_dir=work, tokenizer=llama)


def test_a_chat_template_that_is_not_there_is_missed_before_the_model_is_loaded(
    llama: Path, write_task: Write, work: Path, tmp_path: Path, never_loads: Callable[[], None]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    (copy / "chat_template.jinja").unlink()
    never_loads()
    spec = spec_for(write_task().parent, "sums", apply_chat_template=True)
    with pytest.raises(EvaluationError, match="has no chat template"):
        score(copy, SHA, spec, "dev", work_dir=work)


def test_a_prompt_that_cannot_be_made_is_found_before_the_model_is_loaded(
    llama: Path, write_task: Write, work: Path, never_loads: Callable[[], None]
) -> None:
    items = [{"prompt": "x", "choices": ["a", "b"], "answer": i % 2, "n": 9 - i} for i in range(10)]
    folder = write_task(items=items, doc_to_text="{{ prompt ~ (1 // n) }}").parent
    never_loads()
    spec = spec_for(folder, "sums", confirm_fraction=0.0)
    message = "task sums, item 9: the prompt cannot be made: integer division"
    with pytest.raises(EvaluationError, match=message):
        score(llama, SHA, spec, "dev", work_dir=work)


def test_an_empty_answer_is_refused(llama: Path, write_task: Write, work: Path) -> None:
    items = [
        {"prompt": "x", "choices": ["a", "b" if i == 0 else ""], "answer": 0} for i in range(3)
    ]
    folder = write_task(items=items, target_delimiter="").parent
    spec = spec_for(folder, "sums", confirm_fraction=0.0)
    with pytest.raises(EvaluationError, match="an answer is empty once tokenised; .* begin it"):
        score(llama, SHA, spec, "dev", work_dir=work)


def test_an_answer_longer_than_the_context_is_refused(
    llama: Path, write_task: Write, work: Path
) -> None:
    items = [{"prompt": "x", "choices": ["a" * 300, "b"], "answer": 0} for _ in range(3)]
    spec = spec_for(write_task(items=items).parent, "sums", confirm_fraction=0.0)
    message = r"an answer of 30\d tokens is longer than max_length 128; set a larger evaluate.max"
    with pytest.raises(EvaluationError, match=message):
        score(llama, SHA, spec, "dev", work_dir=work)


def test_prompts_that_lose_their_beginning_are_reported(
    llama: Path, write_task: Write, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [{"prompt": "x" * 200, "choices": ["a", "b"], "answer": 0} for _ in range(3)]
    spec = spec_for(write_task(items=items).parent, "sums", confirm_fraction=0.0)
    score(llama, SHA, spec, "dev", work_dir=work)
    assert "task sums: 6 of 6 requests are longer than max_length 128 and lose" in caplog.text


def generating(write_task: Write, prompt: str, most: int, n: int = 3) -> EvaluateSpec:
    folder = write_task(
        items=[{"prompt": prompt, "answer": f"{i}"} for i in range(n)],
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_choice=None,
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": most},
        metric_list=[{"metric": "exact_match"}],
    ).parent
    return spec_for(folder, "sums", confirm_fraction=0.0)


def test_prompts_of_generation_that_lose_their_beginning_are_reported_once_with_their_count(
    llama: Path,
    write_task: Write,
    work: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asking, "PIECE", 2)
    score(llama, SHA, generating(write_task, "x " * 200, 4), "dev", work_dir=work)
    warnings = [r.message for r in caplog.records if "lose their beginning" in r.message]
    assert warnings == [
        "task sums: 3 of 3 requests are longer than max_length 128 and lose their beginning"
    ]


def test_a_prompt_that_fits_beside_its_answer_is_not_reported(
    llama: Path, write_task: Write, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    score(llama, SHA, generating(write_task, "x", 4), "dev", work_dir=work)
    assert "lose their beginning" not in caplog.text


def test_an_answer_that_leaves_no_room_for_a_prompt_names_the_keys(
    llama: Path, write_task: Write, work: Path
) -> None:
    spec = generating(write_task, "x", 128)
    message = (
        "task sums: an answer of up to 128 tokens leaves no room for a prompt in max_length 128; "
        "set a smaller max_gen_toks in evaluate.gen_kwargs or .* or a larger evaluate.max_length"
    )
    with pytest.raises(EvaluationError, match=message):
        score(llama, SHA, spec, "dev", work_dir=work)
    shorter = replace(spec, gen_kwargs={"max_gen_toks": 4})
    assert score(llama, SHA, shorter, "dev", work_dir=work).tasks
    assert score(llama, SHA, replace(spec, max_length=160), "dev", work_dir=work).tasks


def test_an_answer_of_no_token_is_named(llama: Path, write_task: Write, work: Path) -> None:
    with pytest.raises(EvaluationError, match="max_gen_toks is 0; it takes a positive number"):
        score(llama, SHA, generating(write_task, "x", 0), "dev", work_dir=work)


def test_a_prompt_without_a_token_is_named(llama: Path, write_task: Write, work: Path) -> None:
    with pytest.raises(EvaluationError, match=r"task sums, item \d: the prompt is empty once tok"):
        score(llama, SHA, generating(write_task, "", 4), "dev", work_dir=work)


# --- numbers of all items, and records of older formats


def f1_task(write_task: Write, **changes: Any) -> Path:
    rows = [{"prompt": f"Is {i} odd?", "answer": i % 2, "passage": i // 3} for i in range(24)]
    return write_task(
        items=rows,
        doc_to_choice=["yes", "no"],
        metric_list=[{"metric": "f1"}, {"metric": "mcc"}],
        **changes,
    ).parent


def test_two_models_have_the_same_draws_and_a_third_the_same_again(
    llama: Path, tiny_llama: Callable[..., Path], write_task: Write, work: Path
) -> None:
    spec = spec_for(f1_task(write_task), "sums")
    first = score(llama, SHA, spec, "dev", work_dir=work).tasks["sums"]
    other = score(tiny_llama(seed=5), "cd" * 32, spec, "dev", work_dir=work).tasks["sums"]
    again = score(llama, "ef" * 32, spec, "dev", work_dir=work).tasks["sums"]
    assert (first.kind, first.metric, len(first.replicates)) == ("corpus", "f1", 500)
    assert first.replicates == again.replicates
    assert len(other.replicates) == 500


def test_another_metric_of_all_items_is_drawn_without_asking_again(
    llama: Path, write_task: Write, work: Path, never_loads: Callable[[], None]
) -> None:
    spec = spec_for(f1_task(write_task), "sums", confirm_fraction=0.0)
    first = score(llama, SHA, spec, "dev", work_dir=work).tasks["sums"]
    never_loads()
    mcc = score(llama, SHA, replace(spec, metrics={"sums": "mcc"}), "dev", work_dir=work)
    assert mcc.tasks["sums"].metric == "mcc"
    assert mcc.tasks["sums"].replicates != first.replicates


def test_clusters_are_drawn_whole(
    llama: Path, write_task: Write, work: Path, never_loads: Callable[[], None]
) -> None:
    spec = spec_for(f1_task(write_task), "sums", confirm_fraction=0.0)
    by_item = score(llama, SHA, spec, "dev", work_dir=work).tasks["sums"]
    never_loads()
    clustered = replace(spec, clusters={"sums": "passage"})
    by_cluster = score(llama, SHA, clustered, "dev", work_dir=work).tasks["sums"]
    assert by_cluster.value == by_item.value
    assert by_cluster.replicates != by_item.replicates


def test_a_record_of_an_older_format_is_counted_again_from_its_answers(
    llama: Path, write_task: Write, work: Path, never_loads: Callable[[], None]
) -> None:
    spec = spec_for(write_task().parent, "sums")
    first = score(llama, SHA, spec, "dev", work_dir=work)
    [file] = work.glob("scores/*/*.json")
    stored = json.loads(file.read_text())
    for item in stored["record"]["items"]:
        del item["weights"]
        item["values"] = dict.fromkeys(item["values"], 0.5)
    text = json.dumps(stored["record"], sort_keys=True, allow_nan=False)
    stored |= {"format": 2, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    file.write_text(json.dumps(stored))
    never_loads()
    assert score(llama, SHA, spec, "dev", work_dir=work) == first


def test_a_failing_metric_that_is_not_chosen_costs_nothing(
    llama: Path, write_task: Write, work: Path
) -> None:
    # Gold 3 of 4 choices is a class that the second metric of lm-eval cannot count as one of two.
    folder = write_task(metric_list=[{"metric": "acc"}, {"metric": "f1"}]).parent
    spec = spec_for(folder, "sums", confirm_fraction=0.0)
    assert score(llama, SHA, spec, "dev", work_dir=work).tasks["sums"].metric == "acc"
    message = (
        r"task sums gives no finite value of metric f1 \(Target is multiclass.*it has acc,none"
    )
    with pytest.raises(EvaluationError, match=message):
        score(llama, SHA, replace(spec, metrics={"sums": "f1"}), "dev", work_dir=work)


def test_scores_say_how_they_were_asked(llama: Path, write_task: Write, work: Path) -> None:
    import lm_eval

    folder = write_task("a").parent
    write_task("b", doc_to_text="{{prompt}}", num_fewshot=2)
    scores = score(llama, SHA, spec_for(folder, "a", "b"), "dev", work_dir=work)
    a, b = (scores.tasks[name].asked for name in "ab")
    assert a["lm-eval"] == lm_eval.__version__
    assert (a["few-shot examples"], b["few-shot examples"]) == ("0", "2")
    assert a["prompt templates"] != b["prompt templates"]
    assert a["code of filters and metrics"] == b["code of filters and metrics"]


def test_kept_scores_of_another_lm_eval_are_not_used_again(
    llama: Path,
    write_task: Write,
    work: Path,
    never_loads: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import lm_eval

    spec = spec_for(write_task().parent, "sums")
    score(llama, SHA, spec, "dev", work_dir=work)
    monkeypatch.setattr(lm_eval, "__version__", "0.4.99")
    never_loads()
    with pytest.raises(AssertionError, match="the model was loaded"):
        score(llama, SHA, spec, "dev", work_dir=work)


def test_out_of_memory_names_the_batch_size(
    llama: Path, write_task: Write, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(answers, "ask", fail)
    message = "out of memory on cpu in task sums, with evaluate.batch_size=8; use a smaller one"
    with pytest.raises(EvaluationError, match=message):
        score(llama, SHA, spec_for(write_task().parent, "sums"), "dev", work_dir=work)


def test_any_other_failure_names_the_task_and_the_model(
    llama: Path, write_task: Write, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("odd\nthing")

    monkeypatch.setattr(answers, "ask", fail)
    with pytest.raises(
        EvaluationError, match=r"cannot be asked task sums: RuntimeError: odd thing"
    ):
        score(llama, SHA, spec_for(write_task().parent, "sums"), "dev", work_dir=work)


def test_a_metric_whose_code_fails_names_the_item(
    llama: Path, write_task: Write, work: Path
) -> None:
    path = write_task()
    code = "def results(doc, results):\n    return {'acc': 1 / (doc['answer'] - 2)}\n"
    (path.parent / "code.py").write_text(code)
    path.write_text(path.read_text() + "process_results: !function code.results\n")
    spec = spec_for(path.parent, "sums", confirm_fraction=0.0)
    with pytest.raises(EvaluationError, match="task sums, item 2: its metric cannot be computed"):
        score(llama, SHA, spec, "dev", work_dir=work)


@pytest.mark.parametrize(
    ("result", "message"), [("'x'", r"odd \(unsupported operand"), ("1e400", "value is inf")]
)
def test_a_metric_that_is_no_number_is_refused(
    llama: Path, write_task: Write, work: Path, result: str, message: str
) -> None:
    metric = {"metric": "odd", "aggregation": "mean", "higher_is_better": True}
    path = write_task(metric_list=[metric])
    code = f"def results(doc, results):\n    return {{'odd': {result}}}\n"
    (path.parent / "code.py").write_text(code)
    path.write_text(path.read_text() + "process_results: !function code.results\n")
    with pytest.raises(EvaluationError, match=message):
        score(llama, SHA, spec_for(path.parent, "sums"), "dev", work_dir=work)


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("tpu", ConfigError, "evaluate.device is 'tpu'; allowed: auto, cpu, cuda, cuda:N"),
        ("cuda:99", EvaluationError, "evaluate.device is 'cuda:99', but this machine has"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    llama: Path, write_task: Write, work: Path, device: str, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        score(
            llama, SHA, spec_for(write_task().parent, "sums", device=device), "dev", work_dir=work
        )


def test_an_unknown_part_and_foreign_tasks_are_programming_errors(
    llama: Path, write_task: Write, work: Path
) -> None:
    spec = spec_for(write_task().parent, "sums")
    with pytest.raises(ValueError, match="part is 'test'"):
        score(llama, SHA, spec, "test", work_dir=work)
    with pytest.raises(ValueError, match="other settings"):
        score(llama, SHA, replace(spec, seed=1), "dev", work_dir=work, tasks=load_tasks(spec))


def test_an_empty_part_is_found_before_the_model_is_loaded(
    llama: Path, write_task: Write, work: Path, never_loads: Callable[[], None]
) -> None:
    never_loads()
    spec = spec_for(write_task().parent, "sums", confirm_fraction=0.0)
    with pytest.raises(EvaluationError, match="no items in its confirm part"):
        score(llama, SHA, spec, "confirm", work_dir=work)


# --- manners


def test_progress_counts_items_and_nothing_else_is_said(
    llama: Path, write_task: Write, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = spec_for(write_task().parent, "sums")
    tasks = load_tasks(spec)
    n = len(tasks.tasks["sums"].ids["dev"])
    ticks: list[tuple[str, int, int]] = []
    capfd.readouterr()
    score(llama, SHA, spec, "dev", work_dir=work, tasks=tasks, progress=lambda *t: ticks.append(t))
    assert ticks == [("sums", done, n) for done in range(1, n + 1)]
    score(llama, SHA, spec, "dev", work_dir=work, tasks=tasks, progress=lambda *t: ticks.append(t))
    assert ticks[n:] == [("sums", n, n)]
    assert capfd.readouterr() == ("", "")


def test_a_small_model_has_one_thread_and_all_is_put_back_afterwards(
    llama: Path, write_task: Write, work: Path
) -> None:
    import logging

    import torch

    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers", "datasets")]
    before = torch.get_num_threads(), [logger.level for logger in loggers]
    inside = set()
    score(
        llama,
        SHA,
        spec_for(write_task().parent, "sums"),
        "dev",
        work_dir=work,
        progress=lambda *_: inside.add(torch.get_num_threads()),
    )
    assert inside == {1}
    assert (torch.get_num_threads(), [logger.level for logger in loggers]) == before


def test_the_model_is_given_back(
    llama: Path, write_task: Write, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    alive = []
    original = seat.load_model

    def watched(*args: Any, **options: Any) -> Any:
        loaded = original(*args, **options)
        alive.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(seat, "load_model", watched)
    spec = spec_for(write_task().parent, "sums")
    tasks = load_tasks(spec)
    score(llama, SHA, spec, "dev", work_dir=work, tasks=tasks)
    assert [reference() for reference in alive] == [None]


def test_the_token_lists_are_shared_by_models_of_one_family(
    llama: Path, tiny_llama: Callable[..., Path], write_task: Write, work: Path
) -> None:
    spec = spec_for(write_task().parent, "sums")
    tasks = load_tasks(spec)
    score(llama, SHA, spec, "dev", work_dir=work, tasks=tasks)
    [encodings] = tasks.encodings.values()
    size = len(encodings)
    score(tiny_llama(like=llama), "cd" * 32, spec, "dev", work_dir=work, tasks=tasks)
    assert list(map(len, tasks.encodings.values())) == [size]
    assert len(tasks.requests) == 1


def test_more_token_lists_than_there_is_room_for_are_made_again(
    llama: Path, write_task: Write, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeops.evaluate import scoring_model

    spec = spec_for(write_task().parent, "sums")
    kept_all = score(llama, SHA, spec, "dev", work_dir=work / "1")
    monkeypatch.setattr(scoring_model, "_KEPT_TOKENS", 50)
    tasks = load_tasks(spec)
    assert score(llama, SHA, spec, "dev", work_dir=work / "2", tasks=tasks) == kept_all
    [encodings] = tasks.encodings.values()
    assert 0 < sum(map(len, encodings.values())) <= 50


def test_harness_is_importable_without_the_harness() -> None:
    # pipeline imports it before it knows whether anything has to be scored
    import subprocess
    import sys

    code = "import sys, mergeops.evaluate.harness; print('lm_eval' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
