"""What transformers 4.57 and PEFT 0.17 wrote is merged as it was trained: ``make old-files``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import mergeops
from mergeops.errors import SourceError

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-old" / "bin" / "python"
FAMILIES = (
    *("llama", "llama-tied", "qwen2", "gemma2", "phi3", "gpt2", "bert", "t5", "bart"),
    *("mixtral", "qwen3-moe", "gemma3", "qwen2-vl", "llava"),
)
# torch would load our plug-in for lm-eval, which the other environment does not have.
OLD_ENV = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
KINDS = (
    *("ADALORA", "BOFT", "BONE", "BONE bat", "C3A", "FOURIERFT", "HRA", "IA3", "LN_TUNING"),
    *("LOHA", "LOKR", "LORA dora", "LORA pissa", "LORA tokens", "MISS", "OFT inverted"),
    *("RANDLORA", "SHIRA", "TRAINABLE_TOKENS", "VBLORA", "VERA"),
)
needs_old = pytest.mark.skipif(
    not PYTHON.is_file(), reason="`make old-files` installs transformers 4.57"
)


def test_the_page_of_formats_says_which_families_and_kinds_are_tried() -> None:
    page = (HERE.parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    told = page.partition("`make old-files` with")[2].partition(" (PaliGemma")[0]
    assert set(re.findall(r"`([\w-]+)`", told)) == set(FAMILIES)
    told = page.partition("`make old-files` tries PEFT 0.17 with")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", told)) == {kind.split()[0] for kind in KINDS}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all families, by the old libraries."""
    folder = tmp_path_factory.mktemp("old")
    done = subprocess.run(
        [PYTHON, HERE / "write_old_files.py", folder], env=OLD_ENV, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in (folder / "families").iterdir()} == set(FAMILIES)
    return folder / "families"


@needs_old
@pytest.mark.old_files
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_of_the_old_version_is_applied(
    kind: str, written: Path, tmp_path: Path
) -> None:
    kinds, family = written.parent / "kinds", written / "llama"
    source = {"uri": str(kinds / kind), "base": str(family / "base")}
    mergeops.merge({"sources": {"a": source}, "method": "passthrough"}, tmp_path / "out")
    shutil.copy(kinds / f"{kind}.pt", family / "kind.pt")
    assert differs(tmp_path / "out", family, "kind") < 1e-5
    moved = torch.load(family / "kind.pt") - torch.load(family / "base.pt")
    assert moved.abs().max() > 1e-3


@needs_old
@pytest.mark.old_files
def test_the_way_out_for_rotations_of_the_old_version_keeps_its_logits(
    written: Path, tmp_path: Path
) -> None:
    kinds, family = written.parent / "kinds", written / "llama"
    source = {"uri": str(kinds / "OFT"), "base": str(family / "base")}
    with pytest.raises(SourceError, match="load it with the PEFT that trained it, and name"):
        mergeops.merge({"sources": {"a": source}, "method": "passthrough"}, tmp_path / "out")
    code = (
        "import sys, peft, transformers as t; base, adapter, out = sys.argv[1:];"
        "model = t.AutoModelForCausalLM.from_pretrained(base);"
        "peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)"
    )
    paths = (family / "base", kinds / "OFT", tmp_path / "whole")
    subprocess.run([PYTHON, "-c", code, *paths], env=OLD_ENV, check=True)
    shutil.copy(kinds / "OFT.pt", family / "kind.pt")
    assert differs(tmp_path / "whole", family, "kind") < 1e-5


def load(model: Path, family: Path) -> Any:
    cls = getattr(transformers, json.loads((family / "made.json").read_text())["class"])
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    loaded, told = cls.from_pretrained(model, output_loading_info=True, **how)
    assert not told["missing_keys"], told
    return loaded.eval()


def differs(model: Path, family: Path, expected: str) -> float:
    """The largest difference to the logits of the model in memory, relative to the largest."""
    loaded, ids = load(model, family), torch.tensor([[1, 5, 9, 33, 21, 50, 7]])
    more = {"decoder_input_ids": ids} if loaded.config.is_encoder_decoder else {}
    with torch.no_grad():
        found = loaded(input_ids=ids, **more).logits.float()
    wanted = torch.load(family / f"{expected}.pt")
    return float((found - wanted).abs().max() / wanted.abs().max())


def average(one: Path, other: Path, out: Path) -> Path:
    sources = {"one": {"uri": str(one)}, "other": {"uri": str(other)}}
    mergeops.merge({"sources": sources, "method": "linear"}, out)
    return out


@needs_old
@pytest.mark.old_files
@pytest.mark.parametrize("name", FAMILIES)
def test_fine_tunes_of_the_old_version_are_averaged_with_both_spellings(
    name: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    family = written / name
    assert differs(average(family / "a", family / "b", tmp_path / "old"), family, "mean") < 1e-5
    b = load(family / "b", family)
    b.save_pretrained(tmp_path / "b", save_original_format=False)
    for first in (True, False):
        pair = (family / "a", tmp_path / "b")
        out = average(*(pair if first else pair[::-1]), tmp_path / f"mixed-{first}")
        assert differs(out, family, "mean") < 1e-5


@needs_old
@pytest.mark.old_files
@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_of_the_old_version_applies_to_both_spellings_of_its_base(
    name: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    family = written / name
    model = load(family / "base", family)
    model.save_pretrained(tmp_path / "base", save_original_format=False)
    for base in (family / "base", tmp_path / "base"):
        source = {"uri": str(family / "lora"), "base": str(base)}
        out = tmp_path / f"on-{base.parent.name}"
        mergeops.merge({"sources": {"a": source}, "method": "passthrough"}, out)
        assert differs(out, family, "lora") < 1e-5
    moved = torch.load(family / "lora.pt") - torch.load(family / "base.pt")
    assert moved.abs().max() > 0.01
