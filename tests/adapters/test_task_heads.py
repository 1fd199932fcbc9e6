"""Heads of classifiers that an adapter brings: of other sizes than the base's, or of another task.

What is right is what PEFT computes on the base that transformers loads with as many labels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.adapted_models import logits, shaken

from mergeops.adapters import open_adapter
from mergeops.adapters.task_heads import is_of_labels
from mergeops.api import merge
from mergeops.errors import MergeError, SourceError

SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CLASSIFIER = "ForSequenceClassification"


def base_of(folder: Path, cls: str, **settings: Any) -> Path:
    """A model of some size, saved."""
    made = getattr(transformers, cls)
    shaken(made(made.config_class(**SIZES, **settings))).save_pretrained(folder)
    return folder


def trained(base: Path, adapter: Path, cls: str, labels: int, task: str = "SEQ_CLS") -> Any:
    """An adapter of the base, loaded with so many labels; returns the model, with it merged."""
    from peft import LoraConfig, get_peft_model

    load = getattr(transformers, cls).from_pretrained
    model = load(base, num_labels=labels, ignore_mismatched_sizes=True)
    targets = ["q_proj", "q_lin", "query"]
    config = LoraConfig(r=2, target_modules=targets, task_type=task)
    peft = shaken(get_peft_model(model, config), 5, trained_only=True)
    peft.save_pretrained(adapter)
    return peft.merge_and_unload().eval()


def merged(adapter: Path, base: Path, out: Path) -> dict[str, Any]:
    """The config.json of the merge."""
    source = {"uri": str(adapter), "base": str(base)}
    merge({"sources": {"a": source}, "method": {"name": "passthrough"}}, out)
    content: dict[str, Any] = json.loads((out / "config.json").read_text())
    return content


@pytest.mark.parametrize(
    ("kind", "before", "labels"),
    [("Bert", 2, 3), ("Bert", 5, 2), ("Roberta", 16, 3), ("Llama", 1, 4)],
)
def test_a_head_of_other_labels_is_the_adapters(
    kind: str, before: int, labels: int, tmp_path: Path
) -> None:
    base = base_of(tmp_path / "base", f"{kind}{CLASSIFIER}", num_labels=before)
    model = trained(base, tmp_path / "lora", f"{kind}{CLASSIFIER}", labels)
    config = merged(tmp_path / "lora", base, tmp_path / "out")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    found, told = load(tmp_path / "out", output_loading_info=True)
    assert not any(told.values())
    torch.testing.assert_close(logits(found.eval()), logits(model), rtol=1e-5, atol=1e-6)
    assert config["id2label"] == {str(i): f"LABEL_{i}" for i in range(labels)}
    notes = open_adapter(tmp_path / "lora", base).notes
    assert f"has a head of {labels} labels and its base one of {before}" in notes[0]


def test_a_head_of_other_labels_beside_the_base_is_refused_with_a_way_out(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", f"Bert{CLASSIFIER}")
    model = trained(base, tmp_path / "lora", f"Bert{CLASSIFIER}", 3)
    source = {"uri": str(tmp_path / "lora"), "base": str(base), "weight": 1.0}
    recipe = {"base": str(base), "sources": {"a": source}, "method": {"name": "task_arithmetic"}}
    with pytest.raises(MergeError, match="heads for different labels.*num_labels=N, ignore_mism"):
        merge(recipe, tmp_path / "out")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    wider = load(base, num_labels=3, ignore_mismatched_sizes=True)
    wider.save_pretrained(tmp_path / "wider")
    merge({**recipe, "base": str(tmp_path / "wider")}, tmp_path / "out")
    found = load(tmp_path / "out").eval()
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("start", "cls", "task"),
    [
        ("LlamaForCausalLM", CLASSIFIER, "SEQ_CLS"),
        ("BertModel", CLASSIFIER, "SEQ_CLS"),
        # PEFT keeps both layers of its head.
        ("DistilBertForMaskedLM", CLASSIFIER, "SEQ_CLS"),
        ("BertForMaskedLM", "ForTokenClassification", "TOKEN_CLS"),
    ],
)
def test_a_head_that_the_base_lacks_has_a_way_out_that_works(
    start: str, cls: str, task: str, tmp_path: Path
) -> None:
    base = base_of(tmp_path / "base", start)
    kind = start.partition("For")[0].removesuffix("Model")
    model = trained(base, tmp_path / "lora", f"{kind}{cls}", 3, task)
    with pytest.raises(SourceError, match="head of another task.* save the base once") as refused:
        open_adapter(tmp_path / "lora", base)
    load = getattr(transformers, f"AutoModel{cls}").from_pretrained
    assert f"AutoModel{cls}.from_pretrained(BASE, num_labels=3).save_pr" in str(refused.value)
    load(base, num_labels=3).save_pretrained(tmp_path / "new")
    merged(tmp_path / "lora", tmp_path / "new", tmp_path / "out")
    found = load(tmp_path / "out").eval()
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=1e-6)


def test_what_the_training_drew_at_random_and_kept_nowhere_cannot_be_made_again(
    tmp_path: Path,
) -> None:
    """BERT without a pooler, whose classifier has one: PEFT saves the head alone."""
    base = base_of(tmp_path / "base", "BertForMaskedLM")
    trained(base, tmp_path / "lora", f"Bert{CLASSIFIER}", 3)
    with pytest.raises(
        SourceError, match=r"gave the base bert.pooler.dense.bias, .*merge_and_unload\(\)"
    ):
        open_adapter(tmp_path / "lora", base)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("classification_head.out_proj.weight", (2, 16), True),
        ("classifier.out_proj.bias", (2,), True),
        ("classifier.weight", (2, 8), False),
        ("encoder.layer.0.dense.weight", (2, 16), False),
    ],
)
def test_a_row_for_each_label_is_told_by_name_and_number(
    name: str, shape: tuple[int, ...], expected: bool
) -> None:
    config = {"id2label": {"0": "a", "1": "b", "2": "c"}}
    of_base = (3,) if len(shape) == 1 else (3, 16)
    assert is_of_labels(name, shape, of_base, config) is expected


def test_heads_of_two_sizes_in_one_adapter_are_refused(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", f"Bert{CLASSIFIER}")
    trained(base, tmp_path / "lora", f"Bert{CLASSIFIER}", 3)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    bias = next(name for name in tensors if name.endswith("classifier.bias"))
    save_file({**tensors, bias: torch.zeros(4)}, file)
    with pytest.raises(SourceError, match=r"different numbers of labels \(3, 4\)"):
        open_adapter(tmp_path / "lora", base)
