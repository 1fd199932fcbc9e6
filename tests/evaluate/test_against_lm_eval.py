"""The number that chooses is lm-eval's own: six models, every kind of metric, groups."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.scoring import score

from mergeops.evaluate.tasks import load_tasks
from mergeops.recipe.settings import EvaluateSpec
from mergeops.scores import Scores, compare

Write = Callable[..., Path]

TEXTS = ["one", "a much longer text of many words, so that it weighs more", "", "two  words"]
CODE = """
def counted(doc, results):
    answer = results[0]
    shared = len(set(answer) & set(doc["text"]))
    return {"f1": shared / max(1, len(answer)), "em": float(not answer)}


def letters(references, predictions):
    return {"letters": float(len(predictions[0])), "blanks": float(predictions[0].count(" "))}


def nll(doc, results):
    return {"nll": -results[0][0]}


def spread(items):
    return max(items) - min(items)
"""
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_choice": None,
    "doc_to_target": "{{text}}",
}
GENERATING = {
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": None,
    "doc_to_target": "{{text}}!",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 6},
}
SCORED: dict[str, tuple[dict[str, Any], str]] = {
    "words": ({**ROLLING, "metric_list": [{"metric": "word_perplexity"}]}, "word_perplexity"),
    "bytes": ({**ROLLING, "metric_list": [{"metric": "byte_perplexity"}]}, "byte_perplexity"),
    "bits": ({**ROLLING, "metric_list": [{"metric": "bits_per_byte"}]}, "bits_per_byte"),
    "last": (
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}} and",
            "doc_to_choice": None,
            "doc_to_target": " {{tail}}",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
        "perplexity",
    ),
    "pairs": ({"metric_list": [{"metric": "f1"}, {"metric": "acc"}]}, "f1"),
    "matthews": ({"metric_list": [{"metric": "mcc"}]}, "mcc"),
    "brier": ({"metric_list": [{"metric": "brier_score"}]}, "brier_score"),
    "bleu": ({**GENERATING, "metric_list": [{"metric": "bleu"}]}, "bleu"),
    "chrf": ({**GENERATING, "metric_list": [{"metric": "chrf"}]}, "chrf"),
    "ter": ({**GENERATING, "metric_list": [{"metric": "ter"}]}, "ter"),
    "own_f1": (
        {
            **GENERATING,
            "process_results": "!function code.counted",
            "metric_list": [
                {"metric": "f1", "aggregation": "mean", "higher_is_better": True},
                {"metric": "em", "aggregation": "mean", "higher_is_better": True},
            ],
        },
        "f1",
    ),
    "several": (
        {
            **GENERATING,
            "metric_list": [
                {
                    "metric": "!function code.letters",
                    "aggregation": "median",
                    "higher_is_better": False,
                }
            ],
        },
        "letters",
    ),
    "own_spread": (
        {
            "output_type": "loglikelihood",
            "doc_to_choice": None,
            "doc_to_target": " {{tail}}",
            "process_results": "!function code.nll",
            "metric_list": [
                {
                    "metric": "nll",
                    "aggregation": "!function code.spread",
                    "higher_is_better": False,
                }
            ],
        },
        "nll",
    ),
}  # fmt: skip


def items(n: int) -> list[dict[str, Any]]:
    return [
        {
            "text": f"{TEXTS[i % 4]}{' ' + str(i) if i % 4 != 2 else ''}",
            "id": i,
            "tail": str(i * 7),
            "prompt": f"Is {i} odd?",
            "choices": ["no", "yes"],
            "answer": i % 2,
        }
        for i in range(n)
    ]


def write_all(write_task: Write, folder: Path) -> None:
    for name, (changes, _) in SCORED.items():
        path = write_task(name, items(12), folder, **changes)
        # A tag of YAML, which safe_dump writes as a string.
        path.write_text(re.sub(r"'(!function code\.\w+)'", r"\1", path.read_text()))
    (folder / "code.py").write_text(CODE)


def group(folder: Path, name: str, tasks: list[str], metric: str, *, by_size: bool) -> None:
    aggregate = [{"metric": metric, "aggregation": "mean", "weight_by_size": by_size}]
    config = {"group": name, "task": tasks, "aggregate_metric_list": aggregate}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


def lm_evals_numbers(path: Path, spec: EvaluateSpec) -> dict[str, Any]:
    import transformers
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded = load_tasks(spec).tasks
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=spec.batch_size),
        tasks=list(spec.tasks),
        task_manager=TaskManager(include_path=spec.include_path, include_defaults=False),
        samples={name: list(task.ids["dev"]) for name, task in loaded.items()},
        bootstrap_iters=0,
    )
    assert results is not None
    return dict(results["results"])


def check_order(ours: list[float], theirs: list[float], *, higher_is_better: bool) -> None:
    """Two models that lm-eval tells apart are ordered as it orders them."""
    for a, b in itertools.combinations(range(len(ours)), 2):
        if theirs[a] != pytest.approx(theirs[b], rel=1e-5, abs=1e-9):
            assert (ours[a] > ours[b]) == ((theirs[a] > theirs[b]) == higher_is_better)


@pytest.fixture(scope="module")
def models(tiny_llama: Callable[..., Path]) -> list[Path]:
    return [tiny_llama(seed=seed) for seed in range(6)]


@pytest.mark.slow
def test_every_kind_of_metric_has_lm_evals_number_and_orders_six_models_as_it_does(
    models: list[Path], write_task: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    write_all(write_task, folder)
    spec = EvaluateSpec(
        tasks=tuple(SCORED),
        include_path=str(folder),
        metrics={name: metric for name, (_, metric) in SCORED.items()},
        batch_size=8,
        device="cpu",
        confirm_fraction=0.1,
    )
    tasks = load_tasks(spec)
    scores = [
        score(path, f"{i}" * 64, spec, "dev", work_dir=tmp_path / "work", tasks=tasks)
        for i, path in enumerate(models)
    ]
    theirs = [lm_evals_numbers(path, spec) for path in models]
    for name, (_, metric) in SCORED.items():
        alone = [
            Scores(s.weights_sha256, s.part, {name: s.tasks[name]}, s.settings) for s in scores
        ]
        wanted = [results[name][f"{metric},none"] for results in theirs]
        assert [one.pooled for one in alone] == pytest.approx(wanted, rel=1e-4), name
        check_order(
            [one.merit for one in alone], wanted, higher_is_better=alone[0].higher_is_better
        )
        # A comparison says the same as the numbers: positive is better.
        differences = [compare(one, alone[0]).difference for one in alone]
        check_order(differences, wanted, higher_is_better=alone[0].higher_is_better)


@pytest.mark.sweep
@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize(
    ("metric", "changes"),
    [("acc", {}), ("word_perplexity", {**ROLLING, "metric_list": [{"metric": "word_perplexity"}]})],
)
def test_a_group_has_lm_evals_number_and_orders_six_models_as_it_does(
    models: list[Path],
    write_task: Write,
    tmp_path: Path,
    metric: str,
    changes: dict[str, Any],
    by_size: bool,
) -> None:
    folder = tmp_path / "tasks"
    write_task("small", items(9), folder, **changes)
    write_task("large", items(40)[9:], folder, **changes)
    group(folder, "both", ["small", "large"], metric, by_size=by_size)
    spec = EvaluateSpec(
        tasks=("both",), include_path=str(folder), batch_size=8, device="cpu", confirm_fraction=0.2
    )
    tasks = load_tasks(spec)
    scores = [
        score(path, f"{i}" * 64, spec, "dev", work_dir=tmp_path / "work", tasks=tasks)
        for i, path in enumerate(models)
    ]
    wanted = [lm_evals_numbers(path, spec)["both"][f"{metric},none"] for path in models]
    assert [one.pooled for one in scores] == pytest.approx(wanted, rel=1e-4)
    check_order([s.merit for s in scores], wanted, higher_is_better=metric == "acc")
