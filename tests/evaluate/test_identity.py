"""What makes two checkpoints the same model, their weights apart."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mergeops.checkpoint.tokenizer_files import has_tokenizer
from mergeops.errors import EvaluationError
from mergeops.evaluate.identity import model_digest, tokenizer_digest


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """A checkpoint and a tokenizer that come with code."""
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "code.Model"}}))
    words = {"auto_map": {"AutoTokenizer": ["code.Words", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "code.py").write_text("SCALE = 1")
    return tmp_path


@pytest.mark.parametrize("digest", [model_digest, tokenizer_digest])
def test_a_checkpoints_own_code_and_whether_it_may_run_are_part_of_it(
    coded: Path, digest: object
) -> None:
    assert callable(digest)
    before = digest(coded, trust_remote_code=True)
    assert digest(coded, trust_remote_code=True) == before
    assert digest(coded, trust_remote_code=False) != before
    (coded / "code.py").write_text("SCALE = 2")
    assert digest(coded, trust_remote_code=True) != before
    (coded / "code.py").write_text("SCALE = 1")
    (coded / "part").mkdir()
    (coded / "part" / "more.py").write_text("")
    assert digest(coded, trust_remote_code=True) != before


@pytest.mark.parametrize("digest", [model_digest, tokenizer_digest])
def test_python_files_that_nothing_loads_are_no_part_of_it(coded: Path, digest: object) -> None:
    assert callable(digest)
    for name in ("config.json", "tokenizer_config.json"):
        (coded / name).write_text("{}")
    before = digest(coded, trust_remote_code=True)
    (coded / "code.py").write_text("SCALE = 2")
    assert digest(coded, trust_remote_code=True) == before
    assert digest(coded, trust_remote_code=False) == before


def test_a_vocabulary_makes_a_tokenizer_and_its_settings_do_not(coded: Path) -> None:
    assert has_tokenizer(coded)
    (coded / "vocab.json").unlink()
    assert not has_tokenizer(coded)
    with pytest.raises(EvaluationError, match="has no tokenizer"):
        tokenizer_digest(coded, trust_remote_code=False)


def test_tokenizer_settings_that_are_no_json_are_named(coded: Path) -> None:
    (coded / "tokenizer_config.json").write_text("{")
    with pytest.raises(EvaluationError, match="tokenizer_config.json is no JSON"):
        tokenizer_digest(coded, trust_remote_code=False)


def test_a_source_without_tokenizer_settings_keeps_its_own_vocabulary(
    tmp_path: Path,
) -> None:
    from mergeops.tools import Tools

    own, base = tmp_path / "own", tmp_path / "base"
    for folder in (own, base):
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")
    (base / "tokenizer_config.json").write_text("{}")
    resolved = SimpleNamespace(base=SimpleNamespace(path=base, adapter_base=None))
    tools: Any = SimpleNamespace(resolve=lambda recipe: resolved)
    recipe: Any = None
    assert Tools.tokenizer_for(tools, recipe, own) == own
    (own / "tokenizer.json").rename(own / "tokenizer_config.json")
    assert Tools.tokenizer_for(tools, recipe, own) == base
