"""Forty of lm-eval's own tasks, with made-up data: its numbers, and its order of six models."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergeops.evaluate.harness import score_all
from mergeops.evaluate.model import Model
from mergeops.evaluate.tasks import load_tasks
from mergeops.recipe.settings import EvaluateSpec

N = 6
WORDS = ("river", "stone", "a tall tree", "cloud", "old bread", "ink")
SPLITS = ("train", "validation", "test", "dev_r1", "train_r1", "test_r1", "validation_matched")
Doc = dict[str, Any]


def text(i: int) -> str:
    return " ".join(WORDS[(i + k) % 6] for k in range(1 + i)) + f" {i}"


def pair(i: int, *keys: str, labels: int = 2) -> Doc:
    return {**{key: f"{text(i)} {k}" for k, key in enumerate(keys)}, "label": i % labels}


def lettered(i: int) -> Doc:
    return {"text": [text(i + k) for k in range(4)], "label": list("ABCD")}


def drop(i: int) -> Doc:
    answer = {"number": str(i), "date": {"day": "", "month": "", "year": ""}, "spans": []}
    none = {key: [] for key in ("number", "date", "spans")}
    return {
        "query_id": str(i), "passage": text(i), "question": f"How many {i}?", "answer": answer,
        "validated_answers": none,
    }  # fmt: skip


TASKS: dict[str, tuple[str, Callable[[int], Doc]]] = {
    "lambada/lambada_openai.yaml": ("perplexity", lambda i: {"text": text(i)}),
    "lambada/lambada_standard.yaml": ("acc", lambda i: {"text": text(i)}),
    "lambada_cloze/lambada_standard_cloze.yaml": ("perplexity", lambda i: {"text": text(i)}),
    "wikitext/wikitext.yaml": ("word_perplexity", lambda i: {"page": text(i)}),
    "pile_10k/pile_10k.yaml": ("byte_perplexity", lambda i: {"text": text(i) if i else ""}),
    "glue/cola/default.yaml": ("mcc", lambda i: pair(i, "sentence")),
    "glue/mrpc/default.yaml": ("f1", lambda i: pair(i, "sentence1", "sentence2")),
    "glue/qqp/default.yaml": ("f1", lambda i: pair(i, "question1", "question2")),
    "glue/rte/default.yaml": ("acc", lambda i: pair(i, "sentence1", "sentence2")),
    "glue/sst2/default.yaml": ("acc", lambda i: pair(i, "sentence")),
    "glue/wnli/default.yaml": ("acc", lambda i: pair(i, "sentence1", "sentence2")),
    "glue/qnli/default.yaml": ("acc", lambda i: pair(i, "question", "sentence")),
    "glue/mnli/default.yaml": ("acc", lambda i: pair(i, "premise", "hypothesis", labels=3)),
    "super_glue/cb/default.yaml": ("f1", lambda i: pair(i, "premise", "hypothesis", labels=3)),
    "super_glue/copa/default.yaml": (
        "acc",
        lambda i: {**pair(i, "premise", "choice1", "choice2"), "question": "cause"},
    ),
    "super_glue/multirc/default.yaml": (
        "acc",
        lambda i: pair(i, "paragraph", "question", "answer"),
    ),
    "super_glue/boolq/default.yaml": ("acc", lambda i: pair(i, "passage", "question")),
    "super_glue/wic/default.yaml": (
        "acc",
        lambda i: {**pair(i, "sentence1", "sentence2"), "start1": 0, "end1": 4},
    ),
    "arc/arc_easy.yaml": (
        "acc_norm",
        lambda i: {"question": text(i), "choices": lettered(i), "answerKey": "ABCD"[i % 4]},
    ),
    "arc/arc_challenge.yaml": (
        "acc",
        lambda i: {"question": text(i), "choices": lettered(i), "answerKey": "ABCD"[i % 4]},
    ),
    "openbookqa/openbookqa.yaml": (
        "acc_norm",
        lambda i: {"question_stem": text(i), "choices": lettered(i), "answerKey": "ABCD"[i % 4]},
    ),
    "piqa/piqa.yaml": ("acc_norm", lambda i: pair(i, "goal", "sol1", "sol2")),
    "winogrande/default.yaml": (
        "acc",
        lambda i: {
            "sentence": f"The _ has {text(i)}",
            "option1": WORDS[i],
            "option2": WORDS[(i + 1) % 6],
            "answer": str(1 + i % 2),
        },
    ),
    "sciq/sciq.yaml": (
        "acc",
        lambda i: {
            **pair(i, "support", "question"),
            **{f"distractor{k}": WORDS[(i + k) % 6] for k in (1, 2, 3)},
            "correct_answer": WORDS[i],
        },
    ),
    "hellaswag/hellaswag.yaml": (
        "acc_norm",
        lambda i: {
            "activity_label": "Cooking",
            "ctx_a": text(i),
            "ctx_b": "then",
            "endings": [text(i + k) for k in range(4)],
            "label": str(i % 4),
        },
    ),
    "truthfulqa/truthfulqa_mc1.yaml": (
        "acc",
        lambda i: {
            "question": text(i),
            "mc1_targets": {"choices": [WORDS[i], text(i)], "labels": [1, 0]},
            "mc2_targets": {"choices": [WORDS[i], text(i), "no"], "labels": [1, 1, 0]},
        },
    ),
    "truthfulqa/truthfulqa_mc2.yaml": ("acc", lambda i: {}),
    "anli/anli_r1.yaml": ("acc", lambda i: pair(i, "premise", "hypothesis", labels=3)),
    "logiqa/logiqa.yaml": (
        "acc_norm",
        lambda i: {
            "context": text(i),
            "question": "Why?",
            "options": [text(i + k) for k in range(4)],
            "label": "abcd"[i % 4],
        },
    ),
    "swag/swag.yaml": (
        "acc",
        lambda i: {
            **{f"ending{k}": text(i + k) for k in range(4)},
            "startphrase": text(i),
            "label": i % 4,
        },
    ),
    "asdiv/default.yaml": (
        "acc",
        lambda i: {"body": text(i), "question": "How many?", "answer": f"{i} (stones)"},
    ),
    "webqs/webqs.yaml": (
        "exact_match",
        lambda i: {"question": text(i), "answers": [WORDS[i], text(i)]},
    ),
    "drop/default.yaml": ("f1", drop),
    "gsm8k/gsm8k.yaml": (
        "exact_match,flexible-extract",
        lambda i: {"question": f"What is {i} and {i}?", "answer": f"It is\n#### {2 * i}"},
    ),
    "nq_open/nq_open.yaml": (
        "exact_match",
        lambda i: {"question": text(i), "answer": [WORDS[i]]},
    ),
    "translation/wmt16_de-en.yaml": (
        "bleu",
        lambda i: {"translation": {"de": text(i), "en": text(i + 1)}},
    ),
    "translation/wmt14_fr-en.yaml": (
        "chrf",
        lambda i: {"translation": {"fr": text(i), "en": text(i + 1)}},
    ),
    "translation/wmt16_ro-en.yaml": (
        "ter",
        lambda i: {"translation": {"ro": text(i), "en": text(i + 1)}},
    ),
    "afrobench/sib/prompt_1/sib_eng.yaml": (
        "f1",
        lambda i: {"text": text(i), "category": ("politics", "sports", "health")[i % 3]},
    ),
    "afrobench/masakhanews/prompt_1/masakhanews_eng.yaml": (
        "f1",
        lambda i: {"headline": text(i), "category": ("politics", "sports", "health")[i % 3]},
    ),
    "belebele/belebele_eng_Latn.yaml": (
        "acc",
        lambda i: {
            "flores_passage": text(i),
            "question": "Which?",
            **{f"mc_answer{k}": WORDS[(i + k) % 6] for k in (1, 2, 3, 4)},
            "correct_answer_num": str(1 + i % 4),
        },
    ),
    "blimp/anaphor_gender_agreement.yaml": (
        "acc",
        lambda i: {"sentence_good": text(i), "sentence_bad": text(i + 1)},
    ),
}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The tasks' files; what they would download is made up here."""
    import datasets
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    root = Path(lm_eval.tasks.__file__).parent
    made: dict[tuple[Any, Any], Any] = {}
    for file, (_, doc) in TASKS.items():
        config = load_yaml(root / file, resolve_func=False)
        rows = datasets.Dataset.from_list([doc(i) for i in range(N)])
        made.setdefault(
            (config["dataset_path"], config.get("dataset_name")), dict.fromkeys(SPLITS, rows)
        )

    def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
        return made[path, name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return {file: root / file for file in TASKS}


@pytest.mark.soak
@pytest.mark.sweep
def test_forty_of_lm_evals_tasks_have_its_numbers_and_order_six_models_as_it_does(
    library: dict[str, Path], tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    import transformers
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    spec = EvaluateSpec(
        tasks=tuple(map(str, library.values())),
        batch_size=8,
        device="cpu",
        confirm_fraction=0.0,
        num_fewshot=0,
        max_length=512,
    )
    names = list(load_tasks(spec).tasks)
    metrics = dict(zip(names, (metric for metric, _ in TASKS.values()), strict=True))
    spec = EvaluateSpec(**{**vars(spec), "metrics": metrics})
    paths = [tiny_llama(seed=seed) for seed in range(6)]
    models = [Model(path, f"{i}" * 64) for i, path in enumerate(paths)]
    scores = score_all(models, spec, "dev", work_dir=tmp_path)
    theirs = []
    for path in paths:
        model = HFLM(
            pretrained=transformers.AutoModelForCausalLM.from_pretrained(path),
            tokenizer=transformers.AutoTokenizer.from_pretrained(path),
            batch_size=8,
            max_length=512,
        )
        results = simple_evaluate(
            model=model,
            tasks=[task.task for task in load_tasks(spec).tasks.values()],
            bootstrap_iters=0,
        )
        assert results is not None
        theirs.append(results["results"])
    for name in names:
        tasks = [model_scores.tasks[name] for model_scores in scores]
        key = metrics[name] if "," in metrics[name] else f"{metrics[name]},none"
        key = key if key in theirs[0][name] else next(k for k in theirs[0][name] if k.startswith(
            f"{metrics[name]},"))  # fmt: skip
        wanted = [results[name][key] for results in theirs]
        assert [task.value for task in tasks] == pytest.approx(wanted, rel=1e-4, abs=1e-9), name
        for a, b in itertools.combinations(range(6), 2):
            if wanted[a] != pytest.approx(wanted[b], rel=1e-5, abs=1e-9):
                better = (wanted[a] > wanted[b]) == tasks[0].higher_is_better
                alone = [type(s)("w", "dev", {name: s.tasks[name]}, {}).merit for s in scores]
                assert (alone[a] > alone[b]) == better, name
