"""One list of tokenizer files: what is in it is copied, downloaded, scored with and packaged."""

from __future__ import annotations

import ast
import contextlib
import fnmatch
import hashlib
import json
from pathlib import Path

import pytest

import mergeops
from mergeops.checkpoint.layout import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    PICKLED,
    PICKLED_ADAPTER,
    PICKLED_INDEX,
    SINGLE,
)
from mergeops.checkpoint.tokenizer_files import (
    PROCESSOR_TEMPLATE,
    VOCABULARY_FILES,
    WITHOUT_VOCABULARY,
    TokenizerFile,
    has_tokenizer,
    tokenizer_directory,
)
from mergeops.evaluate.identity import tokenizer_digest
from mergeops.planning.companions import find_companions, write_companions
from mergeops.planning.inputs import PlannedInput
from mergeops.sources.hub import ALLOW
from mergeops.sources.remote.download import wanted
from mergeops.store.packaging import layout

ONCE_FORGOTTEN = ("tiktoken.model", "tekken.json", "sentencepiece.bpe.model", "spiece.model")


@pytest.fixture(params=ONCE_FORGOTTEN)
def name(request: pytest.FixtureRequest) -> str:
    """A vocabulary file that some list lacked."""
    return str(request.param)


@pytest.fixture
def model(tmp_path: Path, name: str) -> Path:
    """A directory whose tokenizer is that one file."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / name).write_text("words")
    return folder


def planned(folder: Path) -> PlannedInput:
    return PlannedInput(name="a", uri=str(folder), path=str(folder), sha256="0" * 64)


def test_it_makes_a_tokenizer(model: Path) -> None:
    assert has_tokenizer(model)
    assert tokenizer_directory([model.parent, model]) == model


def test_it_is_copied_into_a_merge(model: Path, name: str, tmp_path: Path) -> None:
    first = planned(model)
    companions, warnings = find_companions([first], first, "auto", None)
    assert [companion.name for companion in companions] == ["config.json", name]
    assert not warnings
    (tmp_path / "out").mkdir()
    write_companions(companions, tmp_path / "out", "float32")
    assert (tmp_path / "out" / name).read_text() == "words"


def test_its_tokenizer_is_never_put_together_from_two(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text("{}")
    first = planned(model)
    companions, _ = find_companions([first, planned(other)], first, "auto", None)
    assert "tokenizer.json" not in [companion.name for companion in companions]


def test_it_is_downloaded_from_every_store(name: str) -> None:
    assert wanted(name)
    assert any(fnmatch.fnmatch(name, pattern) for pattern in ALLOW)


def test_it_is_a_part_of_what_is_scored(model: Path, name: str) -> None:
    before = tokenizer_digest(model, trust_remote_code=False)
    (model / name).write_text("other words")
    assert tokenizer_digest(model, trust_remote_code=False) != before


def test_it_is_packaged_for_mlflow(model: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / "description").mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    files = layout(model, tmp_path / "description")
    assert files[f"components/tokenizer/{name}"] == model / name


def test_scores_that_were_kept_are_found_by_the_same_digest(tmp_path: Path) -> None:
    # The files that counted before there was one list, in the order in which they counted.
    counted = (
        "added_tokens.json",
        "chat_template.jinja",
        "merges.txt",
        "special_tokens_map.json",
        "spiece.model",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    )
    expected = hashlib.sha256()
    for i, file in enumerate(counted):
        content = json.dumps({"file": i}).encode()
        (tmp_path / file).write_bytes(content)
        expected.update(f"{file}\n".encode() + hashlib.sha256(content).digest())
    (tmp_path / "chat_template.json").write_text("{}")
    assert tokenizer_digest(tmp_path, trust_remote_code=False) == expected.hexdigest()


def test_every_vocabulary_file_is_a_tokenizer_file() -> None:
    assert set(VOCABULARY_FILES) < set(TokenizerFile)
    assert PROCESSOR_TEMPLATE not in set(TokenizerFile)


@pytest.mark.parametrize(
    ("names", "home"),
    [
        ({*TokenizerFile, PROCESSOR_TEMPLATE}, "checkpoint/tokenizer_files.py"),
        (
            {CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG}
            | {SINGLE, INDEX, ADAPTER, PICKLED, PICKLED_INDEX, PICKLED_ADAPTER},
            "checkpoint/layout.py",
        ),
    ],
)
def test_no_other_module_spells_such_a_name(names: set[str], home: str) -> None:
    root = Path(mergeops.__file__).parent
    spelled = [
        f"{file.relative_to(root)}:{node.lineno} {node.value}"
        for file in sorted(root.rglob("*.py"))
        if file != root / home
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert spelled == []


def test_every_tokenizer_of_transformers_without_a_vocabulary_is_known() -> None:
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    found = set()
    for name in filter(None, TOKENIZER_MAPPING_NAMES.values()):
        # Where a library is missing, the class stands for the question to install it.
        with contextlib.suppress(ImportError):
            if getattr(getattr(transformers, name), "vocab_files_names", None) == {}:
                found.add(name)
    assert found == set(WITHOUT_VOCABULARY)
