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
