"""How often a merge would go on as its parents: no score, and no evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergeops.checkpoint import weights_sha256
from mergeops.errors import EvaluationError
from mergeops.evaluate import Model, agreement
from mergeops.evaluate.text_files import read_passages
from mergeops.recipe.settings import EvaluateSpec

SPEC = EvaluateSpec(device="cpu", dtype="float32")


def model(path: Path) -> Model:
    return Model(path, weights_sha256(path))


@pytest.fixture
def held(tmp_path: Path) -> Path:
    path = tmp_path / "held.txt"
    path.write_text("\n\n".join(f"{i} " + "the hare ran on at dawn. " * 50 for i in range(9)))
    return path


def test_it_is_what_the_models_say_themselves_at_every_position(
    tiny_llama: Callable[..., Path], tiny_tokenizer: Callable[..., Any], held: Path, tmp_path: Path
) -> None:
    base = tiny_llama()
    near, far = tiny_llama(like=base, seed=1, noise=0.002), tiny_llama(seed=5)
    other = tiny_llama(seed=6, tokenizer=tiny_tokenizer(first="z"))
    parents = {"base": model(base), "far": model(far), "other": model(other)}
    rows, left_out = agreement(model(near), parents, held, SPEC, work_dir=tmp_path / "work")
    assert left_out == ["other"]

    tokenizer = AutoTokenizer.from_pretrained(near)
    loaded = {p: AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32)
              for p in (near, base, far)}  # fmt: skip
    for row, path in zip(rows, (base, far), strict=True):
        same, given = [], []
        for passage in read_passages(held):
            ids = tokenizer(passage, return_tensors="pt")["input_ids"][:, :512]
            with torch.no_grad():
                mine, theirs = (loaded[p](ids).logits[0, :-1] for p in (near, path))
            chosen = theirs.argmax(-1)
            same += (mine.argmax(-1) == chosen).tolist()
            given += [float(p[c]) for p, c in zip(mine.softmax(-1), chosen, strict=True)]
        assert row.tokens == len(same)
        assert row.same == pytest.approx(sum(same) / len(same), abs=1e-3)
        assert row.probability == pytest.approx(sum(given) / len(given), rel=1e-4)
    assert rows[0].same > rows[1].same
    assert str(rows[1]).startswith("far ")

    # The parents are asked once: what they chose is kept.
    kept = sorted((tmp_path / "work" / "scores" / "agreement").iterdir())
    assert len(kept) == 2
    content = json.loads(kept[0].read_text())
    content["choices"] = [[0] * len(passage) for passage in content["choices"]]
    kept[0].write_text(json.dumps(content))
    again, _ = agreement(model(near), parents, held, SPEC, work_dir=tmp_path / "work")
    assert again != rows
    # A model agrees with itself everywhere.
    [itself], _ = agreement(model(far), {"far": model(far)}, held, SPEC, work_dir=tmp_path / "w2")
    assert itself.same == 1.0


def test_a_text_that_is_too_short_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    nothing = Model(tmp_path / "none", "0" * 64)
    with pytest.raises(EvaluationError, match="short.txt makes 1 different passages of 1000"):
        agreement(nothing, {"a": nothing}, short, SPEC, work_dir=tmp_path)
    with pytest.raises(EvaluationError, match="gone.txt cannot be read"):
        agreement(nothing, {"a": nothing}, tmp_path / "gone.txt", SPEC, work_dir=tmp_path)
