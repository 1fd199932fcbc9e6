"""Files in folders: sentence-transformers' modules and further chat templates come along."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergeops.checkpoint import verify_checkpoint
from mergeops.engine import merge
from mergeops.errors import SourceError

Make = Callable[..., Any]
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
]


@pytest.fixture(scope="module")
def pair(tiny_llama: Make) -> tuple[Path, Path]:
    first = tiny_llama()
    return first, tiny_llama(like=first, seed=1)


def sentence_model(model: Path, folder: Path, dense: float) -> Path:
    """The model as sentence-transformers lays one out."""
    shutil.copytree(model, folder)
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {}}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    for name in ("1_Pooling", "2_Dense"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"word_embedding_dimension": 32}')
    weights = {"linear.weight": torch.full((4, 32), dense)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    return folder


@pytest.mark.parametrize("other", [1.0, 2.0])
def test_the_modules_of_a_sentence_model_come_along(
    other: float, plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a = sentence_model(pair[0], tmp_path / "a", 1.0)
    b = sentence_model(pair[1], tmp_path / "b", other)
    plan = plan_of({"name": "linear"}, None, {"a": a, "b": b})
    said = [note for note in plan.warnings if "2_Dense/model.safetensors is a module" in note]
    assert bool(said) is (other != 1.0)
    merge(plan, tmp_path / "out")
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (a / name).read_bytes()
    assert (tmp_path / "out" / "sentence_bert_config.json").is_file()
    assert verify_checkpoint(tmp_path / "out") == []
    (tmp_path / "out" / "1_Pooling" / "config.json").write_text("{}")
    [problem] = verify_checkpoint(tmp_path / "out")
    assert problem.startswith("1_Pooling/config.json has 2 bytes")


@pytest.mark.parametrize("path", ["..", "a/b", "../other"])
def test_a_module_outside_the_directory_is_refused(
    path: str, plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a = sentence_model(pair[0], tmp_path / "a", 1.0)
    (a / "modules.json").write_text(json.dumps([{"path": path}]))
    with pytest.raises(SourceError, match="names the folder .*; one inside .* is allowed"):
        plan_of({"name": "passthrough"}, None, {"a": a})


def test_a_module_with_pickled_weights_is_refused(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a = sentence_model(pair[0], tmp_path / "a", 1.0)
    (a / "2_Dense" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(SourceError, match="pickled weights; save the model again with sentence"):
        plan_of({"name": "passthrough"}, None, {"a": a})


def test_further_chat_templates_come_along(plan_of: Make, tiny_llama: Make, tmp_path: Path) -> None:
    from conftest import build_tokenizer
    from transformers import AutoTokenizer

    model = tiny_llama()
    tokenizer = build_tokenizer(64)
    tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    tokenizer.save_pretrained(model)
    assert (model / "additional_chat_templates" / "tool_use.jinja").is_file()
    merge(plan_of({"name": "passthrough"}, None, {"a": model}), tmp_path / "out")
    found = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert found == {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}


@pytest.mark.parametrize(("ends", "is_said"), [(2, False), ([5, 2], False), (5, True)])
def test_an_end_that_generation_does_not_stop_at_is_said(
    ends: Any, is_said: bool, plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    from conftest import build_tokenizer

    model = tiny_llama()
    tokenizer = build_tokenizer(64)
    number = tokenizer.convert_tokens_to_ids(tokenizer.eos_token)
    tokenizer.save_pretrained(model)
    ends = [number if end == 2 else end for end in ends] if isinstance(ends, list) else ends
    ends = number if ends == 2 else ends
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    plan = plan_of({"name": "passthrough"}, None, {"a": model})
    assert any("what generates stops at that only" in note for note in plan.warnings) is is_said
