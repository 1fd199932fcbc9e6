"""A Hugging Face directory as a model in memory, whose weights may be replaced.

Heavy imports at the top: imported only when something has to be scored.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers

from mergeops.checkpoint.layout import weight_files
from mergeops.errors import EvaluationError, MergeopsError
from mergeops.evaluate.catalogue import first_line
from mergeops.settings import EvaluateSpec

_ONE_AT_A_TIME = threading.Lock()
"""transformers switches tying off for the whole process while it loads a model; two threads that
load at once would leave it off."""


def load_model(
    path: Path, spec: EvaluateSpec, device: torch.device, *, trust_remote_code: bool
) -> Any:
    """A causal language model in eval mode on its device.

    Raises:
        EvaluationError: the directory cannot be loaded, lacks weights, or holds NaN or Inf.
    """
    dtype = spec.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
    try:
        with _ONE_AT_A_TIME:
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:
        raise EvaluationError(f"model {path} cannot be loaded: {first_line(error)}") from error
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
            f"e.g. {lacking[0]}"
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise _not_finite(path, name)
    try:
        return model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise EvaluationError(
            f"model {path} does not fit into the memory of {device}; try evaluate.dtype=bfloat16"
        ) from error


def load_tokenizer(path: Path, *, trust_remote_code: bool, chat: bool) -> Any:
    """The tokenizer of a directory.

    Args:
        chat: whether a chat template is needed.

    Raises:
        EvaluationError: none there, unreadable, or without a chat template.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
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
    wanted = model.state_dict(keep_vars=True)
    twins: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        twins.setdefault(tensor.data_ptr(), []).append(name)
    places: dict[str, Path] = {}
    try:
        for file in weight_files(path):
            with safetensors.safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    shape = opened.get_slice(name).get_shape()
                    if name not in wanted or list(wanted[name].shape) != shape:
                        return False
                    places[name] = file
    except (MergeopsError, OSError, safetensors.SafetensorError):
        return False  # loading says what is wrong
    # Tied tensors are stored once; two copies could differ.
    if any(sum(name in places for name in names) != 1 for names in twins.values()):
        return False
    with torch.no_grad():
        for file in sorted(set(places.values())):
            with safetensors.safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    wanted[name].copy_(opened.get_tensor(name).to(wanted[name].dtype))
                    if not torch.isfinite(wanted[name]).all():
                        raise _not_finite(path, name)
    return True


def says_dtype(path: Path) -> bool:
    """Whether the configuration, not the files, says which number format ``auto`` is."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("dtype") or config.get("torch_dtype"))


def _not_finite(path: Path, name: str) -> EvaluationError:
    return EvaluationError(f"model {path} holds NaN or Inf in {name}; it cannot be scored")
