"""The engine on whole checkpoints: results, loading, resuming, failing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergeops.checkpoint import weights_sha256
from mergeops.execute import merge
from mergeops.plan import Plan, make_plan
from mergeops.recipe import Recipe
from mergeops.sources import Source


def source(name: str, path: Path) -> Source:
    return Source(name, str(path), path, weights_sha256(path))


def plan_of(
    method: dict[str, Any], base: Path | None, sources: Mapping[str, Path], **recipe: Any
) -> Plan:
    written = {
        "method": method,
        "base": str(base) if base else None,
        "sources": {name: {"uri": str(path)} for name, path in sources.items()},
        **recipe,
    }
    return make_plan(
        Recipe.from_dict(written),
        source("base", base) if base else None,
        {name: source(name, path) for name, path in sources.items()},
    )


def test_merge_loads_with_transformers(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny_llama()
    sources = {"a": tiny_llama(like=base, seed=1), "b": tiny_llama(like=base, seed=2)}
    out = merge(plan_of({"name": "ties"}, base, sources), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model(**tokenizer("one two", return_tensors="pt")).logits.isfinite().all()
    assert tokenizer.chat_template
