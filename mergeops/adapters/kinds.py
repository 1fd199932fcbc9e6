"""PEFT's kinds of adapters: of which base and adapter together are exactly a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PROMPT = "puts trained vectors before the input and leaves the weights as they are"
NOW_CALLED = {"BONE": "MISS"}
"""Kinds of older versions of PEFT -> what computes the same now."""
INPUT_DEPENDENT = {
    "PROMPT_TUNING": _PROMPT,
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "P_TUNING": _PROMPT,
    "PREFIX_TUNING": _PROMPT,
    "CPT": _PROMPT,
    "CARTRIDGE": _PROMPT,
    "ADAPTION_PROMPT": "adds trained vectors to the attention of every input",
    "XLORA": "weighs its adapters anew for every input",
    "POLY": "chooses among its skills by the task of every input",
    "LILY": "mixes its projections anew for every input",
    "SHADOW": "runs a small model beside the layers for every input",
}
"""Kinds that no weights stand for, and why."""
EXACT = {
    "LORA": "W + s B A",
    "ADALORA": "W + s B diag(E) A",
    "ADAMSS": "subspaces of W, each with its own low rank",
    "BEFT": "a trained bias",
    "BOFT": "an orthogonal butterfly times W",
    "C3A": "a block-circulant change",
    "DEFT": "a part of W's column space replaced",
    "DELORA": "a normalised low-rank change",
    "FOURIERFT": "a change that is sparse in frequency",
    "FROD": "a rotation shared by layers",
    "GLORA": "scale, shift and prompt of W",
    "GRALORA": "LoRA for each block of W",
    "HIRA": "W * (1 + B A), entry by entry",
    "HRA": "Householder reflections times W",
    "IA3": "rows or columns of W scaled",
    "LN_TUNING": "layer norms in full",
    "LOHA": "an entry-wise product of two low-rank changes",
    "LOKR": "a Kronecker product",
    "MISS": "shards of one matrix repeated",
    "OFT": "block-diagonal rotations times W",
    "OSF": "W's small singular part trained",
    "PEANUT": "a small network of W",
    "PSOFT": "a rotation inside W's principal subspace",
    "PVERA": "VeRA with a distribution, at its mean",
    "RANDLORA": "scaled sums of random bases",
    "ROAD": "pairs of outputs rotated",
    "SHIRA": "a sparse change",
    "SUPERTUNING": "a sparse change at chosen places",
    "TINYLORA": "a few numbers in W's singular frame",
    "TRAINABLE_TOKENS": "rows of the embeddings replaced",
    "UNILORA": "LoRA's factors from one shared vector",
    "VBLORA": "LoRA's factors from a shared bank of vectors",
    "VERA": "scaled random projections that layers share",
    "WAVEFT": "a change that is sparse in wavelets",
}
"""Kinds that mergeops applies, and what they do to a weight W."""
PLAIN_STARTS = ("gaussian", "orthogonal", "eva", "mica")
"""Values of init_lora_weights that leave the base's weights as they are."""
KNOWN_STARTS = ("pissa", "olora")
"""Those that change the base's weights in a way that follows from the base alone."""
LORA_SETTINGS = {
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_dtype",
    "lora_ga_config",
    "lorap_emb_lr",
    "lorap_lr_ratio",
    "megatron_core",
    "modules_to_save",
    "monteclora_config",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "use_rslora",
    "velora_config",
}
"""Settings of LoRA that are applied, or have no effect on what is saved."""
_WAY_OUT = (
    "leave this source out, or train it again with another kind; PEFT applies it at run time only"
)


def why_not_exact(peft_type: str, content: Mapping[str, Any]) -> str | None:
    """Why an adapter cannot be merged exactly, and a way out; None where it can.

    Args:
        peft_type: PEFT's word, in capitals.
        content: the adapter's config, checked.
    """
    if peft_type in INPUT_DEPENDENT:
        return f"{peft_type} {INPUT_DEPENDENT[peft_type]}, so no weights stand for it; {_WAY_OUT}"
    if peft_type not in EXACT:
        return f"peft_type is {peft_type!r}; allowed: {', '.join(sorted(EXACT))}"
    if peft_type == "FROD" and content.get("save_projection") is False:
        return (
            "save_projection is false: FRoD's projections then follow from the weights of all "
            "layers together; save the adapter again with save_projection=True"
        )
    if peft_type == "OFT" and _is_by_old_series(content):
        return (
            "OFT without peft_version is by a PEFT before 0.18, which computes its rotations by "
            "another series than later ones; load it with the PEFT that trained it, and name the "
            "directory that PeftModel.from_pretrained(BASE, DIR).merge_and_unload()"
            ".save_pretrained(NEW_DIR) makes as the source"
        )
    if peft_type == "ADAMSS" and "random_seed" not in content:
        return (
            "ADAMSS without random_seed is by a PEFT before 0.20, which drew its subspaces by "
            "chance and did not save them; leave this source out, or train it again"
        )
    return _lora_problem(content) if peft_type == "LORA" else None


def _is_by_old_series(content: Mapping[str, Any]) -> bool:
    """Of two terms, both series are the same."""
    terms = content.get("num_cayley_neumann_terms", 5)
    is_series = content.get("use_cayley_neumann", True) and terms not in (1, 2)
    return bool(is_series) and not content.get("peft_version")


def _lora_problem(content: Mapping[str, Any]) -> str | None:
    if content.get("alora_invocation_tokens"):
        return (
            "alora_invocation_tokens is set: an activated LoRA changes only what comes after those "
            f"tokens, so no weights stand for it; {_WAY_OUT}"
        )
    if content.get("arrow_config"):
        return f"arrow_config is set: it chooses among adapters for every token; {_WAY_OUT}"
    if content.get("use_qalora"):
        return (
            "use_qalora is true: its A sees groups of the input averaged, for a base that is "
            f"quantised in the same groups; {_WAY_OUT}"
        )
    start = content.get("init_lora_weights", True)
    if start is None or isinstance(start, bool) or start in (*PLAIN_STARTS, *KNOWN_STARTS):
        return None
    if start in ("corda", "lora_ga", "loftq") or str(start).startswith("pissa_niter_"):
        return (
            f"init_lora_weights is {start!r}, which changed the base's weights in a way that "
            "depended on data or on chance and is not in the adapter's files; leave this source "
            "out, or train it again with another init_lora_weights"
        )
    return f"init_lora_weights is {start!r}, which mergeops does not know; leave this source out"
