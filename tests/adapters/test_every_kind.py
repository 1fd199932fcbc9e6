"""Every kind of adapter that PEFT knows, merged, computes what PEFT computes, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.adapted_models import adapt, merged, tiny

TWO = ["q_proj", "down_proj"]


def _lora(**more: Any) -> Callable[[Any], Any]:
    return lambda peft: peft.LoraConfig(**{"r": 4, "target_modules": TWO, **more})


def _kind(name: str, **more: Any) -> Callable[[Any], Any]:
    return lambda peft: getattr(peft, name)(**{"target_modules": TWO, **more})


BD = {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["down_proj"], "nblocks": 2}
KINDS = {
    "LORA": _lora(),
    "LORA dora": _lora(use_dora=True),
    "LORA dora rslora": _lora(use_dora=True, use_rslora=True, alpha_pattern={"q_proj": 3}),
    "LORA pissa": _lora(init_lora_weights="pissa"),
    "LORA olora": _lora(init_lora_weights="olora"),
    "LORA mica": _lora(init_lora_weights="mica"),
    "LORA velora": _lora(velora_config={"num_groups": 4}),
    "LORA monteclora": _lora(monteclora_config={"num_samples": 4}),
    "LORA kasa": _lora(kasa_config={}),
    "LORA bdlora": _lora(use_bdlora=BD),
    "ADALORA": _kind("AdaLoraConfig", init_r=4, target_r=2, total_step=10),
    "ADAMSS": _kind("AdamssConfig", r=8, num_subspaces=2, subspace_rank=1),
    "BOFT": _kind("BOFTConfig", boft_block_size=4),
    "C3A": _kind("C3AConfig", block_size=8, block_size_pattern={"down_proj": 16}),
    "DEFT": _kind("DeftConfig", r=4),
    "DELORA": _kind("DeloraConfig", r=4, rank_pattern={"q_proj": 2}, lambda_pattern={"q_proj": 9}),
    "FOURIERFT": _kind("FourierFTConfig", n_frequency=20, n_frequency_pattern={"q_proj": 30}),
    "FROD": _kind("FrodConfig", target_modules=["q_proj"], progressbar=False),
    "GLORA": _kind("GloraConfig", r=4),
    "GRALORA": _kind("GraloraConfig", r=4, gralora_k=2),
    "HIRA": _kind("HiraConfig", r=4, rank_pattern={"q_proj": 2}),
    "HRA": _kind("HRAConfig", r=4),
    "IA3": _kind("IA3Config", feedforward_modules=["down_proj"]),
    "LN_TUNING": _kind("LNTuningConfig", target_modules=["input_layernorm"]),
    "LOHA": _kind("LoHaConfig", r=4, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 3}),
    "LOKR": _kind("LoKrConfig", r=4),
    "MISS": _kind("MissConfig", r=4),
    "MISS bat": _kind("MissConfig", r=4, init_weights="bat"),
    "OFT": _kind("OFTConfig", oft_block_size=8),
    "OSF": _kind("OSFConfig", effective_rank=8, rank_pattern={"down_proj": 4}),
    "PEANUT": _kind("PeanutConfig", r=4),
    "PSOFT": _kind("PsoftConfig", r=4),
    "PVERA": _kind("PveraConfig", r=4),
    "RANDLORA": _kind("RandLoraConfig", r=4),
    "ROAD": _kind("RoadConfig", group_size=8),
    "SHIRA": _kind("ShiraConfig", r=4, random_seed=1),
    "SUPERTUNING": _kind("SupertuningConfig", sparsity=0.9),
    "TINYLORA": _kind("TinyLoraConfig", r=2, u=8, weight_tying=0.5),
    "TRAINABLE_TOKENS": _kind(
        "TrainableTokensConfig", token_indices=[3, 5, 10, 15], target_modules=["embed_tokens"]
    ),
    "UNILORA": _kind("UniLoraConfig", r=4, theta_d_length=32),
    "VBLORA": _kind("VBLoRAConfig", r=4, num_vectors=16, vector_length=8),
    "VERA": _kind("VeraConfig", r=4),
    "VERA unsaved": _kind("VeraConfig", r=4, save_projection=False),
    "WAVEFT": _kind("WaveFTConfig", n_frequency=32),
}


@pytest.mark.parametrize("kind", KINDS)
def test_merge_of_base_and_adapter_computes_what_the_adapted_model_computes(
    kind: str, tmp_path: Path
) -> None:
    import peft

    adapted = adapt(tiny(), KINDS[kind](peft), tmp_path)
    largest = adapted.logits.abs().max()
    assert (adapted.logits - adapted.base_logits).abs().max() > 1e-4 * largest
    found = merged(adapted, tmp_path / "out")
    assert (found - adapted.logits).abs().max() <= 1e-5 * largest
