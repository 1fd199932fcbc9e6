"""LoRA on a torch.nn.MultiheadAttention, as in the pooling head of SigLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.adapted_models import shaken

from mergeops.adapters import open_adapter
from mergeops.api import merge
from mergeops.errors import SourceError

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "patch_size": 4}
SIZES |= {"num_attention_heads": 2, "image_size": 8}
PATTERNS = {"rank_pattern": {"attention": 3}, "alpha_pattern": {"attention": 5}}


def trained(folder: Path, **config: Any) -> Any:
    """What the model in memory computes, with base and adapter saved."""
    import transformers
    from peft import LoraConfig, get_peft_model

    settings = transformers.SiglipVisionConfig(**SIZES)
    shaken(transformers.SiglipVisionModel(settings)).save_pretrained(folder / "base")
    model = transformers.SiglipVisionModel.from_pretrained(folder / "base")
    peft = get_peft_model(model, LoraConfig(**{"r": 4, "init_lora_weights": False, **config}))
    shaken(peft, 5, trained_only=True).save_pretrained(folder / "adapter")
    return pooled(peft)


def pooled(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.linspace(-1, 1, 192).view(1, 3, 8, 8)).pooler_output


def merged(folder: Path) -> tuple[Any, Any]:
    import transformers

    source = {"uri": str(folder / "adapter"), "base": str(folder / "base")}
    done = merge({"sources": {"a": source}, "method": {"name": "passthrough"}}, folder / "out")
    return pooled(transformers.SiglipVisionModel.from_pretrained(folder / "out").eval()), done.plan


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["attention"]},
        {"target_modules": ["attention", "q_proj"], "use_rslora": True, **PATTERNS},
        {"target_modules": ["attention"], "bias": "all"},
        # The usual targets of a vision tower; torch takes this output's weight without its layer.
        {"target_modules": ["q_proj", "out_proj"]},
    ],
    ids=["plain", "patterns", "bias", "output-alone"],
)
def test_the_merge_computes_what_the_model_in_memory_computes(
    config: dict[str, Any], tmp_path: Path
) -> None:
    expected = trained(tmp_path, **config)
    found, plan = merged(tmp_path)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    alone = [note for note in plan.warnings if "head.attention.out_proj alone" in note]
    assert len(alone) == ("out_proj" in config["target_modules"])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"lora_bias": True}, r"only plain LoRA is applied.*without lora_bias"),
        ({"fan_in_fan_out": True}, r"PEFT turns the change of one half"),
    ],
)
def test_what_is_not_exact_is_refused(config: dict[str, Any], says: str, tmp_path: Path) -> None:
    trained(tmp_path, target_modules=["attention"], **config)
    with pytest.raises(SourceError, match=says):
        open_adapter(tmp_path / "adapter", tmp_path / "base")
