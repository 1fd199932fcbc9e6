"""Adapters of full fine-tunes, loaded by PEFT itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mergeops.checkpoint import verify_checkpoint
from mergeops.cli.main import cli
from mergeops.errors import ConfigError, MergeError
from mergeops.extraction.low_rank import Rank, factorize

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def pair(tiny_llama: Make) -> tuple[Path, Path]:
    """A base and a fine-tune that changed everything."""
    base = tiny_llama()
    return base, tiny_llama(like=base, seed=1)


def run(*words: Any) -> Any:
    """The JSON that the command prints."""
    result = CliRunner().invoke(cli, ["extract", *map(str, words), "--json"])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


def refused(error: type[Exception], *words: Any) -> str:
    """What the command says."""
    with pytest.raises(error) as caught:
        run(*words)
    return str(caught.value)


def logits(path: Path, adapter: Path | None = None) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(torch.arange(40)[None]).logits
    return answer


def are_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


def test_an_adapter_of_full_rank_is_the_fine_tune(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    said = run(base, tuned, tmp_path / "out", "--rank", 64)
    assert said["relative_error"] < 1e-6 and said["left_out"] == {}
    assert {m["module"] for m in said["matrices"]} >= {"model.layers.0.mlp.down_proj"}
    assert {"model.embed_tokens", "lm_head", "model.norm"} <= set(said["saved"])
    assert are_close(logits(base, tmp_path / "out"), logits(tuned))
    assert verify_checkpoint(tmp_path / "out") == []
    # And the same command again finds it.
    again = run(base, tuned, tmp_path / "out", "--rank", 64)
    assert again.pop("was_there") and not said.pop("was_there") and again == said


def test_what_is_known_of_an_input_is_said(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    shutil.copytree(tuned, tmp_path / "tuned")
    file = tmp_path / "tuned" / "model.safetensors"
    scale = {"model.layers.0.self_attn.k_scale": torch.ones(1)}
    save_file({**load_file(file), **scale}, file, metadata={"format": "pt"})
    words = ["extract", base, tmp_path / "tuned", tmp_path / "out", "--rank", 64]
    result = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert "1 scale(s) of activations are left out" in result.output
    assert are_close(logits(base, tmp_path / "out"), logits(tuned))


def test_a_low_rank_is_the_nearest_one_and_its_error_is_said(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = pair
    out = tmp_path / "out"
    said = run(base, tuned, out, "--rank", 3, "--others", "leave_out")
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    adapter = load_file(out / "adapter_model.safetensors")
    lost = whole = 0.0
    matrices = {matrix["module"]: matrix for matrix in said["matrices"]}
    for name in before:
        change = (after[name] - before[name]).double()
        whole += float(change.square().sum())
        module = name.removesuffix(".weight")
        if module not in matrices:
            assert said["left_out"][name] == pytest.approx(float(change.norm()))
            lost += float(change.square().sum())
            continue
        key = f"base_model.model.{module}.lora"
        product = adapter[f"{key}_B.weight"].double() @ adapter[f"{key}_A.weight"].double()
        best = torch.linalg.svdvals(change)[3:].norm()
        error = float((change - product).norm())
        assert error == pytest.approx(float(best), rel=1e-5)
        assert matrices[module]["error"] == pytest.approx(error) and matrices[module]["rank"] == 3
        lost += error**2
    assert said["relative_error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-5)
    assert said["saved"] == []


def test_auto_takes_as_few_directions_as_the_energy_needs(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = pair
    said = run(base, tuned, tmp_path / "out", "--energy", 0.7, "--max-rank", 9)
    ranks = {matrix["rank"] for matrix in said["matrices"]}
    assert len(ranks) > 1 and max(ranks) <= 9
    for matrix in said["matrices"]:
        assert matrix["relative_error"] ** 2 <= 0.3 or matrix["rank"] == 9
    merged = logits(base, tmp_path / "out")
    # Patterns of ranks reach PEFT: nearer to the fine-tune than the base is.
    apart = (logits(tuned) - merged).norm()
    assert float(apart) < 0.8 * float((logits(tuned) - logits(base)).norm())


def test_a_change_of_low_rank_is_found_whole(tiny_llama: Make, tmp_path: Path) -> None:
    base = tiny_llama(tied=True)
    tuned = Path(shutil.copytree(base, tmp_path / "tuned"))
    tensors = load_file(base / "model.safetensors")
    key = "model.layers.1.self_attn.q_proj.weight"
    rows, columns = tensors[key].shape
    tensors[key] += 0.1 * torch.randn(rows, 2) @ torch.randn(2, columns)
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    said = run(base, tuned, tmp_path / "out", "--energy", 1.0 - 1e-9)
    (matrix,) = said["matrices"]
    assert matrix["module"] == "model.layers.1.self_attn.q_proj" and matrix["rank"] == 2
    assert said["saved"] == [] and are_close(logits(base, tmp_path / "out"), logits(tuned))


def test_tied_embeddings_are_saved_tied(tiny_llama: Make, tmp_path: Path) -> None:
    base = tiny_llama(tied=True)
    tuned = tiny_llama(like=base, seed=2)
    said = run(base, tuned, tmp_path / "out", "--rank", 64)
    assert "model.embed_tokens" in said["saved"] and "lm_head" not in said["saved"]
    assert are_close(logits(base, tmp_path / "out"), logits(tuned))


def test_conv1d_of_gpt2_is_turned(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=64))
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 2 and ".h." in name:
                value += 0.05 * torch.randn_like(value)
    model.save_pretrained(tmp_path / "tuned")
    run(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", "--rank", 16)
    assert are_close(logits(tmp_path / "base", tmp_path / "out"), logits(tmp_path / "tuned"))


def test_the_adapter_is_a_source_of_a_merge(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    run(base, tuned, tmp_path / "adapter", "--rank", 64)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"method: {{name: linear}}\nsources: {{one: {{uri: {tmp_path}/adapter, base: {base}}}}}\n"
    )
    result = CliRunner().invoke(cli, ["merge", str(recipe), str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    assert are_close(logits(tmp_path / "merged"), logits(tuned))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rank", "0"], "--rank is '0'; allowed: auto, or a whole number from 1"),
        (["--rank", "1.5"], "--rank is '1.5'; allowed: auto, or a whole number from 1"),
        (["--energy", "1.5"], "--energy is 1.5; allowed: above 0 to 1"),
        (["--max-rank", "0"], "--max-rank is 0; allowed: at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(
    words: list[str], message: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    assert message in refused(ConfigError, *pair, tmp_path / "out", *words)


def test_what_cannot_be_an_adapter_is_refused(
    pair: tuple[Path, Path], tiny_llama: Make, tmp_path: Path
) -> None:
    base, tuned = pair
    out = tmp_path / "out"
    assert "there is nothing to extract" in refused(MergeError, base, base, out)
    wider = tiny_llama(vocabulary_size=160)
    assert "an adapter keeps every shape" in refused(MergeError, base, wider, out)
    assert "--others=leave_out leaves it" in refused(
        MergeError, base, tuned, out, "--others", "refuse"
    )
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "is not empty" in refused(MergeError, base, tuned, out)
    assert (out / "notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"out", ".out.extracting"}


def test_factors_share_out_the_singular_values() -> None:
    change = torch.diag(torch.tensor([4.0, 3.0, 0.0])).double()
    factors = factorize(change, Rank(number=8))
    assert torch.allclose(factors.b @ factors.a, change.float(), atol=1e-6)
    assert factorize(change, Rank(energy=0.64)).rank == 1
    assert factorize(change, Rank(energy=0.65)).rank == 2
    one = factorize(change, Rank(number=1))
    assert (one.length, one.error) == pytest.approx((5.0, 3.0))
