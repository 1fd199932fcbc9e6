"""Rows of docs/mergekit.md about mergekit-moe: experts of dense models by both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.mergekit_oracle import PYTHON, run_there, tensors_of

import mergeops
from mergeops.errors import ConfigError

pytestmark = pytest.mark.parity

CONFIG = """
base_model: {base}
gate_mode: random
dtype: float32
experts:
  - source_model: {a}
    positive_prompts: []
  - source_model: {b}
    positive_prompts: []
"""
KEY = "expert_per_token: 1\n"
NOISE = "    noise_scale: 0.5\n"
GATE = "model.layers.{}.mlp.gate.weight"
EXPERTS = "model.layers.{}.mlp.experts.{}"
ONE = "model.layers.{}.block_sparse_moe.experts.{}.w{}.weight"


@pytest.fixture(scope="module")
def written(
    family: Callable[..., dict[str, Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """What both make, mergekit twice: with a key that it does not know, and with noise on b."""
    folder = tmp_path_factory.mktemp("moe")
    config = CONFIG.format(**family("llama", "float32", ""))
    for name, more in (("mergeops", ""), ("key", KEY), ("noise", NOISE)):
        (folder / f"{name}.yml").write_text(config + more)
    for name in ("key", "noise"):
        command = (PYTHON.parent / "mergekit-moe", folder / f"{name}.yml", folder / name)
        run_there(*command, "--i-understand-this-is-not-useful-without-training")
    mergeops.moe(folder / "mergeops.yml", folder / "mergeops")
    return {name: folder / name for name in ("mergeops", "key", "noise")}


def joined(tensors: dict[str, Any], layer: int) -> dict[str, torch.Tensor]:
    """Our experts of a layer as mergekit writes them: one tensor for all."""
    up, down = [], []
    for expert in (0, 1):
        up.append(torch.cat([tensors[ONE.format(layer, expert, part)] for part in (1, 3)]))
        down.append(tensors[ONE.format(layer, expert, 2)])
    names = (EXPERTS.format(layer, part) for part in ("gate_up_proj", "down_proj"))
    return dict(zip(names, (torch.stack(up), torch.stack(down)), strict=True))


def test_all_but_the_routers_has_the_bits_of_mergekit(written: dict[str, Path]) -> None:
    ours, theirs = tensors_of(written["mergeops"]), tensors_of(written["key"])
    for layer in range(4):
        for name, tensor in joined(ours, layer).items():
            assert theirs.pop(name).equal(tensor), name
        assert theirs.pop(GATE.format(layer)).shape == (2, 32)
    assert theirs and all(ours[name].equal(tensor) for name, tensor in theirs.items())


def test_random_gates_are_standard_normal_in_mergekit_and_another_draw_each_time(
    written: dict[str, Path],
) -> None:
    one, other = (tensors_of(written[name]) for name in ("key", "noise"))
    drawn = torch.stack([one[GATE.format(layer)] for layer in range(4)])
    # Six standard deviations of that of 256 normal values.
    assert abs(float(drawn.std()) - 1.0) < 0.27
    assert not any(one[GATE.format(i)].equal(other[GATE.format(i)]) for i in range(4))
    ours = tensors_of(written["mergeops"])
    gates = torch.stack([ours[f"model.layers.{i}.block_sparse_moe.gate.weight"] for i in range(4)])
    assert abs(float(gates.std()) / 0.02 - 1.0) < 0.27


def test_a_key_that_mergekit_does_not_know_is_ignored_there(
    written: dict[str, Path], tmp_path: Path
) -> None:
    config = json.loads((written["key"] / "config.json").read_text())
    assert config["num_experts_per_tok"] == 2
    with pytest.raises(ConfigError, match="expert_per_token is an unknown key"):
        mergeops.moe(written["key"].with_suffix(".yml"), tmp_path / "out")


def test_noise_is_put_on_the_expert_in_mergekit_and_refused_here(
    written: dict[str, Path], tmp_path: Path
) -> None:
    plain, noisy = (
        tensors_of(written[n])[EXPERTS.format(0, "down_proj")] for n in ("key", "noise")
    )
    assert plain[0].equal(noisy[0]) and not plain[1].equal(noisy[1])
    with pytest.raises(ConfigError, match="noise_scale"):
        mergeops.moe(written["noise"].with_suffix(".yml"), tmp_path / "out")


PROMPTS = """
base_model: {base}
gate_mode: hidden
dtype: float32
experts:
  - source_model: {a}
    positive_prompts: ["the cat sat on a mat", "a dog"]
  - source_model: {b}
    positive_prompts: ["12 + 3 = 15"]
"""


def test_hidden_gates_are_of_the_last_token_in_mergekit_and_of_all_that_reaches_the_router_here(
    family: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    places = family("llama", "float32", "")
    (tmp_path / "moe.yml").write_text(PROMPTS.format(**places))
    run_there(PYTHON.parent / "mergekit-moe", tmp_path / "moe.yml", tmp_path / "theirs")
    mergeops.moe(tmp_path / "moe.yml", tmp_path / "ours")
    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    enters, reaches = entering_and_reaching(places["base"], "12 + 3 = 15")
    for layer in range(4):
        gate = theirs[GATE.format(layer)][1].float()
        own = ours[f"model.layers.{layer}.block_sparse_moe.gate.weight"][1].float()
        assert torch.cosine_similarity(gate, enters[layer], 0) > 0.9
        assert torch.cosine_similarity(own, reaches[layer], 0) > 0.9999
        assert torch.cosine_similarity(gate, own, 0) < 0.9


SHARED = """
base_model: {base}
gate_mode: random
architecture: qwen
dtype: float32
experts:
  - source_model: {a}
    positive_prompts: []
  - source_model: {b}
    positive_prompts: []
shared_experts:
  - source_model: {base}
    positive_prompts: []
    residual_scale: 0.5
"""


def test_a_shared_expert_is_a_random_share_in_mergekit_and_half_here(
    family: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    places = family("qwen2", "float32", "")
    (tmp_path / "moe.yml").write_text(SHARED.format(**places))
    command = (PYTHON.parent / "mergekit-moe", tmp_path / "moe.yml", tmp_path / "theirs")
    run_there(*command, "--i-understand-this-is-not-useful-without-training")
    mergeops.moe(tmp_path / "moe.yml", tmp_path / "ours")
    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    for layer in range(4):
        name = f"model.layers.{layer}.mlp.shared_expert_gate.weight"
        assert theirs[name].std() > 0.5
        # sigmoid(0)
        assert not ours[name].any()


def test_a_llama_with_a_shared_expert_needs_code_in_mergekit_and_loads_here(
    family: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    places = family("llama", "float32", "")
    config = SHARED.format(**places).replace("residual_scale: 0.5", "residual_scale: 1.0")
    for name in ("qwen", "deepseek"):
        (tmp_path / f"{name}.yml").write_text(config.replace("qwen", name))
    command = (PYTHON.parent / "mergekit-moe", tmp_path / "deepseek.yml", tmp_path / "theirs")
    run_there(*command, "--i-understand-this-is-not-useful-without-training")
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert theirs["model_type"] == "deepseek" and "--" in theirs["auto_map"]["AutoConfig"]
    mergeops.moe(tmp_path / "qwen.yml", tmp_path / "ours")
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())


def entering_and_reaching(
    place: Path, prompt: str
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each layer of a model: what enters it at a prompt's last token, and the mean over all
    tokens of what reaches its MLP."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(place).eval()
    tokens = AutoTokenizer.from_pretrained(place)(prompt, return_tensors="pt")
    reaches: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, x: reaches.append(x[0][0].mean(0)))
    with torch.no_grad():
        states = model(tokens["input_ids"], output_hidden_states=True).hidden_states
    return [state[0, -1] for state in states[:-1]], reaches
