"""A Hugging Face directory as a model in memory, whose weights may be replaced, or in vLLM."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint import CONFIG, read_json, weight_files
from mergeops.errors import EvaluationError, MergeopsError, SourceError
from mergeops.evaluate.catalogue import first_line
from mergeops.lazy_torch import torch
from mergeops.recipe import EvaluateSpec

CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How transformers calls classes of causal language models."""
_ONE_AT_A_TIME = threading.Lock()
"""transformers switches tying off for the whole process while it loads a model; two threads that
load at once would leave it off."""


@dataclass(frozen=True)
class Model:
    """A model to score."""

    path: Path
    """A Hugging Face checkpoint directory."""
    weights_sha256: str
    """Names the weights in the store."""
    tokenizer: Path | None = None
    """Its directory; None is ``path``."""

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's directory."""
        return self.tokenizer or self.path


def load_model(
    path: Path, spec: EvaluateSpec, device: torch.device, *, trust_remote_code: bool
) -> Any:
    """A causal language model in eval mode on its device.

    Raises:
        EvaluationError: the directory cannot be loaded, lacks weights, or holds NaN or Inf.
    """
    from transformers import AutoModelForCausalLM

    dtype = spec.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
    try:
        with _ONE_AT_A_TIME:
            model, report = AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:
        # transformers lists every class that it knows.
        what = first_line(error).partition(" Model type should be one of")[0]
        raise EvaluationError(
            f"model {path} cannot be loaded: {what}{_other_kind(path)}"
        ) from error
    # transformers fills what is missing or misshapen with random numbers and only warns.
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise EvaluationError(
            f"model {path}: {name} has shape {list(stored)}, but its config.json asks for "
            f"{list(wanted)}"
        )
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise EvaluationError(
            f"model {path} lacks {len(lacking)} tensors that its config.json asks for, "
            f"e.g. {lacking[0]}{_other_kind(path)}"
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise not_finite(path, name)
    try:
        return model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise EvaluationError(
            f"model {path} does not fit into the memory of {device}; try evaluate.dtype=bfloat16"
        ) from error


def _other_kind(path: Path) -> str:
    """To follow what is wrong with a model that its config.json does not call a causal one."""
    try:
        named = read_json(path / CONFIG).get("architectures")
    except SourceError:
        return ""
    name = named[0] if isinstance(named, list) and named else ""
    if not isinstance(name, str) or not name or name.endswith(CAUSAL):
        return ""
    return (
        f"; it is a {name}, and causal language models are scored: set evaluate.tasks=[] to merge, "
        "track and register it without scores"
    )


def load_tokenizer(path: Path, *, trust_remote_code: bool, chat: bool) -> Any:
    """The tokenizer of a directory.

    Args:
        chat: whether a chat template is needed.

    Raises:
        EvaluationError: none there, unreadable, or without a chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise EvaluationError(
            f"the tokenizer in {path} cannot be loaded: {first_line(error)}"
        ) from error
    if chat and not tokenizer.chat_template:
        raise EvaluationError(
            f"evaluate.apply_chat_template is on, but the tokenizer in {path} has no chat template"
        )
    return tokenizer


def replace_weights(model: Any, path: Path) -> bool:
    """Give a model in memory the weights of another checkpoint with the same configuration.

    Returns:
        Whether that was possible: every tensor of the files is one of the model's, by name and
        shape, and none is left over. If not, nothing was changed.

    Raises:
        EvaluationError: a tensor holds NaN or Inf; the model's weights are then a mixture.
    """
    from safetensors import SafetensorError, safe_open

    stored: dict[str, Path] = {}
    shapes: dict[str, Sequence[int]] = {}
    try:
        for file in weight_files(path):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    shapes[name] = opened.get_slice(name).get_shape()
                    stored[name] = file
    except (MergeopsError, OSError, SafetensorError):
        return False  # loading says what is wrong
    own = places_for(model, shapes)
    if own is None:
        return False
    with torch.no_grad():
        for file in sorted(set(stored.values())):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    own[name].copy_(opened.get_tensor(name).to(own[name].dtype))
                    if not torch.isfinite(own[name]).all():
                        raise not_finite(path, name)
    return True


def places_for(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
    """Where a checkpoint's tensors lie in a model.

    Args:
        model: a transformers model.
        shapes: tensor of the checkpoint -> its shape.

    Returns:
        Tensor of the checkpoint -> the model's own; None where one is not the model's by name and
        shape, or the model has one that the checkpoint does not.
    """
    own = model.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for name, tensor in own.items():
        tied.setdefault(tensor.data_ptr(), []).append(name)
    if any(n not in own or list(own[n].shape) != list(shape) for n, shape in shapes.items()):
        return None
    # Tied tensors are stored once; two copies could differ.
    if any(sum(name in shapes for name in names) != 1 for names in tied.values()):
        return None
    if not all(own[name].is_contiguous() for name in shapes):
        return None
    return {name: own[name] for name in shapes}


def says_dtype(path: Path) -> bool:
    """Whether the configuration, not the files, says which number format ``auto`` is."""
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    return bool(config.get("dtype") or config.get("torch_dtype"))


def check_vllm() -> None:
    """Say so before anything else is done, where vLLM is missing.

    Raises:
        EvaluationError: vLLM cannot be imported here.
    """
    if importlib.util.find_spec("vllm") is None:
        raise EvaluationError(
            "evaluate.backend is vllm, but vLLM is not installed here; pip install "
            "'mergeops[vllm]', or set evaluate.backend=auto"
        )


def open_vllm(path: Path, tokenizer: Path, spec: EvaluateSpec, trust_remote_code: bool) -> Any:
    """A checkpoint in vLLM, as lm-eval asks it.

    Raises:
        EvaluationError: vLLM cannot serve it.
    """
    from lm_eval.models.vllm_causallms import VLLM

    try:
        return VLLM(
            pretrained=str(path),
            tokenizer=str(tokenizer),
            dtype=spec.dtype,
            batch_size=spec.batch_size,
            max_model_len=spec.max_length,
            seed=spec.seed,
            trust_remote_code=trust_remote_code,
            think_end_token=spec.think_end_token,
            enable_thinking=spec.enable_thinking,
            chat_template_args=dict(spec.chat_template_args),
        )
    except Exception as error:
        raise EvaluationError(f"vLLM cannot load {path}: {first_line(error)}") from error


def not_finite(path: Path, name: str) -> EvaluationError:
    """The error for a model that holds NaN or Inf."""
    return EvaluationError(f"model {path} holds NaN or Inf in {name}; it cannot be scored")
