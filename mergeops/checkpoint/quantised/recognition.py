"""Whether a checkpoint's tensors are numbers, or codes that stand for numbers, and by which scheme.

Decided by the names and formats of the tensors, and by what config.json says of them. A config that
says "quantised" over plain weights, as QLoRA runs leave it, is no quantisation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.checkpoint.dtypes import FLOATS

QUANTISATION_KEYS = ("quantization_config", "compression_config", "quantization")
"""Where config.json speaks of its quantisation; the last is MLX's word."""
ORIGINAL = "take the 16-bit model that it was made from"
"""The way out that holds for every scheme."""
DEQUANTISED = (
    f"{ORIGINAL}, or dequantise it with transformers: "
    "AutoModelForCausalLM.from_pretrained(DIR).dequantize().save_pretrained(NEW_DIR)"
)
DECOMPRESSED = (
    f"{ORIGINAL}, or decompress it with transformers: AutoModelForCausalLM.from_pretrained(DIR, "
    "quantization_config=CompressedTensorsConfig(run_compressed=False)).save_pretrained(NEW_DIR)"
)
UNSCALED = (
    f"{ORIGINAL}; or, if the scales are applied, take quantization_config out of its config.json "
    "and save it with transformers, which leaves the scales out: "
    "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
)

_BITSANDBYTES = re.compile(
    r"\.(absmax|nested_absmax|quant_map|SCB)$|\.quant_state\.bitsandbytes__(?P<word>\w+)$"
)
_CODES = {
    "gptq": re.compile(r"\.(qweight|qzeros)$"),
    "torchao": re.compile(r"\._weight_\w+$|:_data$"),
    "hqq": re.compile(r"\.W_q$"),
    "quanto": re.compile(r"\.weight\._(data|scale)$"),
    "exl2": re.compile(r"\.q_(invperm|scale_max)$"),
    "exl3": re.compile(r"\.trellis$"),
    "spqr": re.compile(r"\.dense_weights$"),
}
"""Scheme -> names that only it writes; AWQ and AutoRound write GPTQ's, and config.json says so."""
_PACKED = re.compile(r"\.weight_packed$")
_BLOCKS = re.compile(r"_blocks$")
_SCALE = re.compile(r"[._](weight_)?scale(_inv)?$|\.qscale_weight$")
_OF_WEIGHTS = re.compile(r"\.(weight_scale(_inv)?|qscale_weight)$")
_BESIDE_NUMBERS = re.compile(
    r"[._](input_scale|input_scale_ub|input_global_scale|activation_scale|qscale_act|k_scale|"
    r"v_scale|q_scale|kv_scale|(?<!correct_)output_scale|weight_shape)$"
)
"""Scales of what flows through the model, and shapes of packed codes: plain weights do not need
them. Gemma 3n has a parameter ``correct_output_scale``."""
_WHOLE = ("U8", "I8", "I16", "U32", "I32")
_BESIDE = ("scales", "weight_scale", "weight_scales", "scale")
"""What modules call the scales of weights that are whole numbers."""
_PLAIN = (*FLOATS, "I64", "BOOL", "")
"""Formats that nobody keeps codes in."""
_READ_METHODS = {"fp8": "fp8", "fbgemm-fp8": "fp8", "mxfp4": "mxfp4"}
_READ_FORMS = {
    "float-quantized": "fp8",
    "mxfp8-quantized": "fp8",
    "mxfp4-pack-quantized": "mxfp4",
    "nvfp4-pack-quantized": "nvfp4",
}
"""What config.json calls what is read -> its scheme."""


@dataclass(frozen=True)
class Quantisation:
    """How a checkpoint's numbers are coded."""

    scheme: str
    """A short name, equal for checkpoints that are coded alike: ``fp8``, ``bitsandbytes-nf4``."""
    told: str
    """What it is, to follow "is quantised": ``bitsandbytes nf4``."""
    way_out: str = ""
    """How to get a checkpoint that merges; empty where it is read as the numbers it stands for."""

    @property
    def is_readable(self) -> bool:
        """Whether ``open_checkpoint`` gives the numbers that the codes stand for."""
        return not self.way_out


def recognise(config: Mapping[str, Any], dtypes: Mapping[str, str]) -> Quantisation | None:
    """How the tensors of a checkpoint are coded; None where they are simply numbers.

    Args:
        config: config.json's content.
        dtypes: tensor -> safetensors name of its format; an empty string where only its name is
            known. Without any tensors config.json alone decides.
    """
    said = said_of(config)
    method = str(said.get("quant_method") or "").replace("_", "-")
    if said.get("transform_config"):
        told = "compressed-tensors with a transform_config: its weights are in a rotated basis"
        return Quantisation("compressed-tensors-transformed", told, ORIGINAL)
    found = _by_names(said, method, dtypes)
    if found is not None or not said or (dtypes and all(d in _PLAIN for d in dtypes.values())):
        return found
    form = str(said.get("format") or "")
    if not dtypes and (method in _READ_METHODS or form in _READ_FORMS):
        return Quantisation(_READ_FORMS.get(form, _READ_METHODS.get(method, "")), method)
    return Quantisation(
        method or "unknown", f"{method or 'in an unknown way'}{_bits(said)}", ORIGINAL
    )


def said_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json says of its quantisation, be it of a model inside; empty where nothing."""
    for key in QUANTISATION_KEYS:
        said = config.get(key)
        if isinstance(said, Mapping) and said:
            return said
    inside = (said_of(part) for part in config.values() if isinstance(part, Mapping))
    return next((said for said in inside if said), {})


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the same model with plain weights."""
    return {
        key: without_quantisation(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in QUANTISATION_KEYS
    }


def is_beside_numbers(name: str) -> bool:
    """Whether a tensor is called like what quantising leaves beside weights that are numbers: the
    scales of activations and of the cache of keys and values."""
    return bool(_BESIDE_NUMBERS.search(name))


def gguf_models(names: Iterable[str]) -> list[str]:
    """The GGUF files of language models among a directory's names; the part that sees or hears
    lies beside one (``mmproj-...``)."""
    return sorted(name for name in names if name.endswith(".gguf") and "mmproj" not in name.lower())


def gguf_instead(names: Iterable[str]) -> str:
    """What to do with the llama.cpp files among a directory's names; empty where there are none."""
    files = gguf_models(names)
    if len(files) > 1:
        return f"has {len(files)} GGUF files ({', '.join(files[:4])}); name the one that is meant"
    if not files:
        return ""
    return (
        f"has {files[0]}, a GGUF file of llama.cpp, which is read on this machine only: copy it "
        "here, and name the file or its directory"
    )


def _by_names(
    said: Mapping[str, Any], method: str, dtypes: Mapping[str, str]
) -> Quantisation | None:
    """What the names and formats alone show; codes that cannot be read come first."""
    if (found := _bitsandbytes(dtypes)) is not None:
        return found
    for scheme, pattern in _CODES.items():
        if any(pattern.search(name) for name in dtypes):
            scheme = method if scheme == "gptq" and method else scheme
            told = _torchao(said) if scheme == "torchao" else f"{scheme}{_bits(said)}"
            return Quantisation(scheme, told, ORIGINAL)
    return (
        _packed(said, dtypes)
        or _four_bits(dtypes)
        or _whole_numbers(said, method, dtypes)
        or _eight_bits(method, dtypes)
        or _scales_left(dtypes)
    )


def _bitsandbytes(dtypes: Mapping[str, str]) -> Quantisation | None:
    matches = [match for name in dtypes if (match := _BITSANDBYTES.search(name))]
    if not matches:
        return None
    words = [match["word"] for match in matches if match["word"]]
    is_8bit = any(match[1] == "SCB" for match in matches)
    word = words[0] if words else "int8" if is_8bit else "4 bits"
    return Quantisation(f"bitsandbytes-{word}", f"bitsandbytes {word}", DEQUANTISED)


def _packed(said: Mapping[str, Any], dtypes: Mapping[str, str]) -> Quantisation | None:
    """compressed-tensors' packed codes: four-bit numbers in bytes are read, whole numbers not."""
    packed = [name for name in dtypes if _PACKED.search(name)]
    if not packed:
        return None
    form = str(said.get("format") or "pack-quantized")
    are_bytes = {dtypes[name] for name in packed} <= ({"U8", ""} if "fp4" in form else {"U8"})
    if are_bytes and not any(name.endswith(".weight_shape") for name in dtypes):
        if form.startswith("mxfp6"):
            return Quantisation("mxfp6", "mxfp6 (compressed-tensors)", DECOMPRESSED)
        has_global = any(name.endswith(".weight_global_scale") for name in dtypes)
        word = "nvfp4" if has_global else "mxfp4"
        return Quantisation(word, f"{word} (compressed-tensors)")
    told = f"compressed-tensors {form}{_bits(said)}"
    return Quantisation(f"compressed-tensors-{form}", told, DECOMPRESSED)


def _four_bits(dtypes: Mapping[str, str]) -> Quantisation | None:
    """GPT-OSS's MXFP4, and modelopt's NVFP4, whose second scale only its own loader applies."""
    for name, dtype in dtypes.items():
        scales = f"{name.removesuffix('_blocks')}_scales"
        if _BLOCKS.search(name) and dtype in ("U8", "") and scales in dtypes:
            return Quantisation("mxfp4", "mxfp4")
        if name.endswith(".weight_scale_2"):
            return Quantisation("modelopt-nvfp4", "modelopt nvfp4", ORIGINAL)
    return None


def _whole_numbers(
    said: Mapping[str, Any], method: str, dtypes: Mapping[str, str]
) -> Quantisation | None:
    """Weights that are whole numbers with scales beside them, as MLX and BitNet write them."""
    for name, dtype in dtypes.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or (dtype and dtype not in _WHOLE):
            continue
        if f"{module}.scales" in dtypes and f"{module}.biases" in dtypes:
            return Quantisation("mlx", f"mlx{_bits(said)}", ORIGINAL)
        scales = [f"{module}.{scale}" for scale in _BESIDE if f"{module}.{scale}" in dtypes]
        if dtype and scales:
            told = f"{name} is {dtype} with {scales[0]} beside it"
            told = f"{method}{_bits(said)} ({told})" if method else f"whole numbers ({told})"
            return Quantisation(method or "whole-numbers", told, ORIGINAL)
    return None


def _eight_bits(method: str, dtypes: Mapping[str, str]) -> Quantisation | None:
    """Weights in FP8 with scales beside them; without, nobody knows what they stand for."""
    has_scale = any(_SCALE.search(name) for name in dtypes)
    float8 = [name for name, dtype in dtypes.items() if dtype.startswith("F8")]
    codes = [name for name in float8 if not _SCALE.search(name)]
    if codes or (method in _READ_METHODS and has_scale and "" in dtypes.values()):
        by = f" ({method})" if method not in ("fp8", "") else ""
        if has_scale:
            return Quantisation("fp8", f"fp8{by}")
        told = (
            f"fp8 without scales ({codes[0]} is {dtypes[codes[0]]}, and no scale that is known "
            "lies beside it)"
        )
        return Quantisation("fp8-without-scales", told, ORIGINAL)
    return None


def _scales_left(dtypes: Mapping[str, str]) -> Quantisation | None:
    """Plain weights with scales: whether those are applied already, nothing says."""
    for name in dtypes:
        weight = _OF_WEIGHTS.sub(".weight", name)
        if weight != name and dtypes.get(weight) in FLOATS:
            told = (
                f"or was: {weight} is {dtypes[weight]} with {name} beside it, and whether that is "
                "applied to it already nobody can tell"
            )
            return Quantisation("scales-left", told, UNSCALED)
    return None


def _torchao(said: Mapping[str, Any]) -> str:
    kinds = [kind for kind in _values(said, "_type") if kind.endswith("Config")]
    return " ".join(["torchao", *kinds[:1]])


def _bits(said: Mapping[str, Any]) -> str:
    """`` 4 bits``, where the config says how many."""
    for key in ("bits", "w_bit", "num_bits", "nbits"):
        for value in _values(said, key):
            return f", {value} bits"
    return ""


def _values(content: Any, key: str) -> Iterator[Any]:
    """Every value of a key, however deep in config.json's objects."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            if name == key and isinstance(value, int | str):
                yield value
            else:
                yield from _values(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from _values(value, key)
