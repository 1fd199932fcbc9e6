"""Every kind of adapter that PEFT knows, merged, computes what PEFT computes, or is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapted_models import Adapted, adapt, merged, tiny

from mergeops.adapters import EXACT, INPUT_DEPENDENT, open_adapter
from mergeops.errors import SourceError

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


def test_page_of_formats_has_every_kind_and_what_happens_to_it() -> None:
    page = Path(__file__).parents[2] / "docs" / "formats.md"
    rows = re.findall(r"^\| `([A-Z_0-9]+)` \| (.+) \|$", page.read_text("utf-8"), re.MULTILINE)
    expected = EXACT | {kind: f"it {why}" for kind, why in INPUT_DEPENDENT.items()}
    assert dict(rows) == expected


def test_every_exact_kind_is_tried() -> None:
    # What BEFT adds is a bias, which the models of these tests have no place for.
    assert {name.split()[0] for name in KINDS} == EXACT.keys() - {"BEFT"}


def test_beft_is_exact_where_the_model_has_biases(tmp_path: Path) -> None:
    import peft

    config = peft.BeftConfig(target_modules=["q_proj"])
    adapted = adapt(tiny(attention_bias=True), config, tmp_path)
    found = merged(adapted, tmp_path / "out")
    assert (found - adapted.logits).abs().max() <= 1e-5 * adapted.logits.abs().max()


def edit(adapted: Adapted, *left_out: str, **changes: Any) -> None:
    file = adapted.adapter / "adapter_config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if k not in left_out}))


@pytest.mark.parametrize("start", [True, "bat"])
def test_bone_is_what_miss_was_called(start: bool | str, tmp_path: Path) -> None:
    import peft

    adapted = adapt(tiny(), peft.MissConfig(r=4, init_weights=start, target_modules=TWO), tmp_path)
    file = adapted.adapter / "adapter_model.safetensors"
    save_file({k.replace("miss_", "bone_"): v for k, v in load_file(file).items()}, file)
    edit(adapted, peft_type="BONE")
    found = merged(adapted, tmp_path / "out")
    assert (found - adapted.logits).abs().max() <= 1e-5 * adapted.logits.abs().max()


def test_lokr_of_the_versions_that_did_not_scale_is_not_scaled(tmp_path: Path) -> None:
    import peft

    config = peft.LoKrConfig(r=4, alpha=4, rank_pattern={"q_proj": 2}, target_modules=TWO)
    config.alpha_pattern = {"q_proj": 2}
    adapted = adapt(tiny(), config, tmp_path)
    edit(adapted, "rank_dropout_scale", alpha=12, alpha_pattern={})
    found = merged(adapted, tmp_path / "out")
    assert (found - adapted.logits).abs().max() <= 1e-5 * adapted.logits.abs().max()


@pytest.mark.parametrize(
    ("kind", "left_out", "match"),
    [
        ("OFT", "peft_version", "another series than later ones; load it with the PEFT that"),
        ("ADAMSS", "random_seed", "drew its subspaces by chance and did not save them"),
    ],
)
def test_what_older_versions_computed_otherwise_is_refused(
    kind: str, left_out: str, match: str, tmp_path: Path
) -> None:
    import peft

    adapted = adapt(tiny(), KINDS[kind](peft), tmp_path)
    edit(adapted, left_out)
    with pytest.raises(SourceError, match=match):
        open_adapter(adapted.adapter, adapted.base)


def test_what_peft_cannot_load_is_refused_with_the_module_and_its_reason(tmp_path: Path) -> None:
    import peft

    adapted = adapt(tiny(), peft.LoHaConfig(r=4, target_modules=TWO), tmp_path)
    file = adapted.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 3}))
    with pytest.raises(SourceError, match=r"PEFT cannot apply LOHA to model.layers.*size mismatch"):
        merged(adapted, tmp_path / "out")


def test_tensors_that_peft_does_not_know_are_refused(tmp_path: Path) -> None:
    import peft

    adapted = adapt(tiny(), peft.LoHaConfig(r=4, target_modules=TWO), tmp_path)
    file = adapted.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    odd = {next(iter(tensors)).replace("hada_w1_a", "hada_w9"): torch.zeros(2)}
    save_file(tensors | odd, file)
    with pytest.raises(SourceError, match=r"the adapter has .*hada_w9.*not as PEFT saves LOHA"):
        merged(adapted, tmp_path / "out")


def test_projections_of_frod_that_were_not_saved_are_refused(tmp_path: Path) -> None:
    import peft

    config = peft.FrodConfig(target_modules=["q_proj"], progressbar=False, save_projection=False)
    adapted = adapt(tiny(), config, tmp_path)
    with pytest.raises(SourceError, match="save the adapter again with save_projection=True"):
        open_adapter(adapted.adapter, adapted.base)


def test_order_of_modules_is_asked_of_transformers(tmp_path: Path) -> None:
    import peft

    config = peft.UniLoraConfig(r=4, theta_d_length=32, target_modules=TWO)
    adapted = adapt(tiny(), config, tmp_path)
    (adapted.base / "config.json").write_text(json.dumps({"model_type": "new"}))
    with pytest.raises(SourceError, match="depends on the order of the model's modules"):
        open_adapter(adapted.adapter, adapted.base)
