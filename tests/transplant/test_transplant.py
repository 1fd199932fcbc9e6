"""Models with another vocabulary, loaded by transformers itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergeops
from mergeops.checkpoint import verify_checkpoint
from mergeops.cli.main import cli
from mergeops.errors import ConfigError, MergeError
from mergeops.transplant.pursuit import pursue
from mergeops.transplant.shared_tokens import Tokens

Make = Callable[..., Path]
TEXT = "the sea is on"
EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are kept below the working directory."""
    monkeypatch.chdir(tmp_path)


def answers(path: Path) -> dict[str, float]:
    """Token -> its logit after the text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0, -1]
    return {token: float(logits[i]) for token, i in tokenizer.get_vocab().items()}


def ids_of(path: Path) -> dict[str, int]:
    vocabulary = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    return {token: int(i) for token, i in vocabulary.items()}


def with_rows(path: Path, to: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A copy with other embeddings."""
    shutil.copytree(path, to)
    tensors = load_file(to / "model.safetensors")
    tensors[EMBEDDINGS] = change(tensors[EMBEDDINGS]).contiguous()
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("tied", [False, True])
def test_the_same_tokens_under_other_ids_give_the_same_answers(
    tied: bool, tiny_llama: Make, tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny_llama(tied=tied)
    donor = tiny_llama(seed=1, hidden=16, tokenizer=tiny_tokenizer(128, first="zyx"))
    assert ids_of(model) != ids_of(donor)
    made = mergeops.transplant(model, donor, tmp_path / "out")
    assert (made.shared, made.new, made.rows) == (128, 0, 128)
    ours, theirs = answers(model), answers(tmp_path / "out")
    largest = max(map(abs, ours.values()))
    assert ours.keys() == theirs.keys()
    assert all(abs(theirs[token] - value) <= 1e-5 * largest for token, value in ours.items())
    assert ("lm_head.weight" in load_file(tmp_path / "out/model.safetensors")) is not tied
    assert verify_checkpoint(tmp_path / "out") == []


def test_what_is_known_of_the_model_is_said(tiny_llama: Make, tmp_path: Path) -> None:
    model = with_rows(tiny_llama(), tmp_path / "model", lambda rows: rows)
    tensors = load_file(model / "model.safetensors")
    scale = {"model.layers.0.self_attn.k_scale": torch.ones(1)}
    save_file({**tensors, **scale}, model / "model.safetensors", metadata={"format": "pt"})
    made = mergeops.transplant(model, tiny_llama(seed=1, hidden=16), tmp_path / "out")
    assert any("1 scale(s) of activations are left out" in note for note in made.plan.warnings)
    assert load_file(tmp_path / "out/model.safetensors").keys() == tensors.keys()


def test_a_new_token_is_the_same_sum_of_tokens_as_in_the_donor(
    tiny_llama: Make, tmp_path: Path
) -> None:
    model, plain = tiny_llama(), tiny_llama(seed=1, vocabulary_size=144)
    ours, theirs = ids_of(model), ids_of(plain)
    new = sorted(theirs[token] for token in theirs if token not in ours)
    shared = [token for token in theirs if token in ours]
    rows = load_file(model / "model.safetensors")[EMBEDDINGS]
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    sums = {i: torch.randperm(len(shared), generator=generator)[:3].tolist() for i in new}

    def lie_alike(table: torch.Tensor) -> torch.Tensor:
        for token in shared:
            table[theirs[token]] = rows[ours[token]] @ turned
        for i, (a, b, c) in sums.items():
            parts = [table[theirs[shared[n]]] for n in (a, b, c)]
            table[i] = parts[0] + 2 * parts[1] - 0.5 * parts[2]
        return table

    donor = with_rows(plain, tmp_path / "donor", lie_alike)
    made = mergeops.transplant(model, donor, tmp_path / "out", k=8)
    assert (made.shared, made.new, made.rows) == (len(shared), len(new), 144)
    found = load_file(tmp_path / "out/model.safetensors")[EMBEDDINGS]
    for token in shared:
        assert torch.equal(found[theirs[token]], rows[ours[token]])
    for i, numbers in sums.items():
        a, b, c = (rows[ours[shared[n]]] for n in numbers)
        assert torch.allclose(found[i], a + 2 * b - 0.5 * c, atol=1e-4)
    assert all(np.isfinite(value) for value in answers(tmp_path / "out").values())


def test_the_mean_is_that_of_the_pieces_in_the_models_tokenizer(
    tiny_llama: Make, tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny_llama(vocabulary_size=101, tokenizer=tiny_tokenizer(101))
    donor = tiny_llama(seed=1)
    ours, theirs = ids_of(model), ids_of(donor)
    assert "th" in ours and "is" not in ours
    mergeops.transplant(model, donor, tmp_path / "out", method="mean")
    before, after = (load_file(path / "model.safetensors") for path in (model, tmp_path / "out"))
    for name in (EMBEDDINGS, "lm_head.weight"):
        mean = (before[name][ours["i"]] + before[name][ours["s"]]) / 2
        assert torch.allclose(after[name][theirs["is"]], mean, atol=1e-7)
    layer = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(before[layer], after[layer])


def test_ids_rows_and_tokenizer_are_the_donors(
    tiny_llama: Make, tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny_llama(dtype="bfloat16")
    tokenizer = tiny_tokenizer(120, first="cba")
    # More rows than tokens, as kernels like it.
    donor = tiny_llama(seed=1, vocabulary_size=160, tokenizer=tokenizer)
    settings = json.loads((donor / "config.json").read_text()) | {"eos_token_id": 5}
    (donor / "config.json").write_text(json.dumps(settings))
    (donor / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    made = mergeops.transplant(model, donor, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert made.rows == config["vocab_size"] == 160 and config["eos_token_id"] == 5
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["eos_token_id"] == [5, 2]
    tokens = (tmp_path / "out/tokenizer.json").read_bytes()
    assert tokens == (donor / "tokenizer.json").read_bytes()
    rows = load_file(tmp_path / "out/model.safetensors")[EMBEDDINGS]
    assert rows.dtype == torch.bfloat16 and rows.shape == (160, 32)
    # Rows of no token are the mean of those that both have.
    before = load_file(model / "model.safetensors")[EMBEDDINGS].float()
    shared = [before[i] for token, i in ids_of(model).items() if token in ids_of(donor)]
    assert torch.allclose(rows[150].float(), torch.stack(shared).mean(dim=0), atol=1e-3)


def test_special_tokens_of_other_names_stand_for_each_other(
    tiny_llama: Make, tmp_path: Path
) -> None:
    model, plain = tiny_llama(), tiny_llama(seed=1)
    donor = Path(shutil.copytree(plain, tmp_path / "donor"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (donor / name).read_text()
        (donor / name).write_text(text.replace("</s>", "<|end|>"))
    made = mergeops.transplant(model, donor, tmp_path / "out")
    assert made.new == 0
    before, after = (load_file(path / "model.safetensors") for path in (model, tmp_path / "out"))
    number = ids_of(donor)["<|end|>"]
    assert torch.equal(after[EMBEDDINGS][number], before[EMBEDDINGS][ids_of(model)["</s>"]])


def naive(target: np.ndarray[Any, Any], atoms: np.ndarray[Any, Any], k: int) -> dict[int, float]:
    """Orthogonal matching pursuit as it is written down: one atom, then least squares again."""
    units = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    chosen: list[int] = []
    weights = np.zeros(0)
    left = target
    for _ in range(k):
        chosen.append(int(np.abs(units @ left).argmax()))
        weights = np.linalg.lstsq(atoms[chosen].T, target, rcond=None)[0]
        left = target - atoms[chosen].T @ weights
    return dict(zip(chosen, weights.tolist(), strict=True))


def test_the_pursuit_is_the_one_in_the_papers() -> None:
    generator = np.random.default_rng(0)
    atoms = generator.standard_normal((60, 40)).astype(np.float32)
    targets = generator.standard_normal((20, 40)).astype(np.float32)
    found = pursue(torch.from_numpy(targets), torch.from_numpy(atoms), 6)
    for target, indices, weights in zip(targets, found.atoms, found.weights, strict=True):
        wanted = naive(target, atoms, 6)
        assert indices.tolist() == list(wanted)
        assert weights.tolist() == pytest.approx(list(wanted.values()), abs=1e-4)


def test_what_is_a_sum_is_found_in_a_sketch_of_many_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(300, 600, generator=generator)
    targets = torch.stack([atoms[i] - 2 * atoms[i + 7] for i in range(20)])
    found = pursue(targets, atoms, 4)
    made = torch.einsum("nk,nkd->nd", found.weights, atoms[found.atoms])
    assert torch.allclose(made, targets, atol=1e-4)
    nothing = pursue(torch.zeros(1, 600), atoms, 4)
    assert not nothing.weights.any()
    # Equal atoms say the same: only one of them has a weight.
    twice = pursue(targets[:1], torch.cat([atoms[:8], atoms[:8]]), 4)
    assert torch.isfinite(twice.weights).all()


def test_tokens_of_bytes_and_of_sentencepiece_are_the_same_text(tmp_path: Path) -> None:
    model = {"type": "BPE", "merges": []}
    for name, tokens, extra in (
        ("bytes", {"\u0120the": 0, "\u00c3\u00a9": 1, "\u010a": 2}, {"type": "ByteLevel"}),
        ("pieces", {"\u2581the": 0, "\u00e9": 1, "<0x0A>": 2}, None),
    ):
        (tmp_path / name).mkdir()
        content = {"model": model | {"vocab": tokens}, "decoder": extra, "added_tokens": []}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
    one, other = (Tokens.read(tmp_path / name) for name in ("bytes", "pieces"))
    texts = [[t.content(token) for token in t.vocabulary.ids] for t in (one, other)]
    assert texts == [[b" the", "\u00e9".encode(), b"\n"]] * 2


def test_what_cannot_be_transplanted_is_refused(
    tiny_llama: Make, tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    model, donor = tiny_llama(), tiny_llama(seed=1, vocabulary_size=160)

    def said(error: type[Exception], *places: Path, **more: Any) -> str:
        with pytest.raises(error) as caught:
            mergeops.transplant(*places, tmp_path / "out", **more)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    unknown = said(ConfigError, model, donor, method="zero")
    assert "--method is 'zero'; allowed: omp, mean" in unknown
    assert "--k is 0; allowed: from 1" in said(ConfigError, model, donor, k=0)
    few = "share 128 token(s), and omp takes 200 of them at least"
    assert few in said(MergeError, model, donor, k=100)
    other = Path(shutil.copytree(donor, tmp_path / "other"))
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"] = {f"{t}{t}\u00e9": i for t, i in content["model"]["vocab"].items()}
    content["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(content))
    assert "mean takes 64 of them at least" in said(MergeError, model, other, method="mean")
    without = Path(shutil.copytree(donor, tmp_path / "without"))
    (without / "tokenizer.json").unlink()
    assert "by which tokens are matched" in said(MergeError, model, without)
    short = tiny_llama(seed=2, tokenizer=tiny_tokenizer(160))
    assert "160 ids and its embeddings 128 rows" in said(MergeError, model, short)
    broken = with_rows(model, tmp_path / "broken", lambda table: table * float("nan"))
    assert "holds NaN or infinity" in said(MergeError, broken, donor)
    nested = Path(shutil.copytree(model, tmp_path / "nested"))
    config = json.loads((nested / "config.json").read_text())
    config = {"text_config": config, "model_type": "nobody"}
    (nested / "config.json").write_text(json.dumps(config))
    assert "no vocab_size at its top" in said(MergeError, nested, donor)
    biased = Path(shutil.copytree(model, tmp_path / "biased"))
    tensors = load_file(biased / "model.safetensors") | {"lm_head.bias": torch.zeros(128)}
    save_file(tensors, biased / "model.safetensors", metadata={"format": "pt"})
    assert "one head without a bias" in said(MergeError, biased, donor)
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:120].clone()
    save_file(tensors, biased / "model.safetensors", metadata={"format": "pt"})
    unlike = "a vocabulary of 128 rows, and its lm_head.weight has another number"
    assert unlike in said(MergeError, biased, donor)


def test_the_command_says_what_it_made(tiny_llama: Make, tmp_path: Path) -> None:
    model, donor = tiny_llama(), tiny_llama(seed=1, vocabulary_size=140)
    words = ["transplant", str(model), str(donor), str(tmp_path / "out"), "--k", "4"]
    for verb in ("holds", "holds already"):
        result = CliRunner().invoke(cli, words)
        assert f"out {verb} {model} with 140 rows: 128 of tokens" in result.stdout, result.output
    asked = CliRunner().invoke(cli, [*words, "--json"])
    assert json.loads(asked.stdout)["new"] == 12
    other = CliRunner().invoke(cli, [*words, "--method", "mean"])
    assert isinstance(other.exception, MergeError)
