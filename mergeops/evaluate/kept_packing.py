"""How far a kind of model was seen to answer packed requests as lm-eval's way does, kept on disk.

``$XDG_CACHE_HOME/mergeops/packing/KEY.json`` (``~/.cache`` by default). The key stands for all that
decides how a model computes, but for its weights: its classes, its configuration, number format,
device, the versions of the libraries and the code here. A model is kept only where that is so: it
is made of modules of transformers and torch, whose methods nobody replaced and nobody hooked into.
"""

from __future__ import annotations

import functools
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergeops.checkpoint import keep_text
from mergeops.evaluate.identity import VOLATILE
from mergeops.kernels import user_cache
from mergeops.lazy_torch import torch

Sizes = tuple[int, int]
"""Tokens of the longest request, and of the widest row, that were compared."""
_KNOWN = ("transformers.", "torch.nn.")


class KeptPacking:
    """What is kept of one kind of model.

    Args:
        model: a transformers model on its device.
        mixed_dtype: that it computes in, where that is not its own.
    """

    def __init__(self, model: Any, mixed_dtype: torch.dtype | None) -> None:
        self._key = _key(model, mixed_dtype) if _is_as_shipped(model) else None

    def sizes(self) -> Sizes:
        """Up to which sizes it agreed; zeros where nothing is known."""
        if self._key is None:
            return 0, 0
        try:
            kept = json.loads(self._file().read_text(encoding="utf-8"))
            if kept["key"] == self._key:
                return int(kept["longest"]), int(kept["widest"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return 0, 0

    def keep(self, sizes: Sizes) -> None:
        """Sizes up to which it agreed; where nothing can be written, it is compared again."""
        if self._key is not None:
            longest, widest = sizes
            kept = {"key": self._key, "longest": longest, "widest": widest}
            keep_text(self._file(), json.dumps(kept))

    def _file(self) -> Path:
        return user_cache("packing") / f"{self._key}.json"


def _is_as_shipped(model: Any) -> bool:
    return all(_is_known(module) for module in model.modules())


def _is_known(module: Any) -> bool:
    kind = type(module)
    written_in = {kind.__module__, kind.forward.__module__, kind.__call__.__module__}
    has_own_methods = any(callable(getattr(kind, name, None)) for name in vars(module))
    is_hooked = module._forward_hooks or module._forward_pre_hooks
    return (
        all(f"{place}.".startswith(_KNOWN) for place in written_in)
        and not has_own_methods
        and not is_hooked
    )


def _key(model: Any, mixed_dtype: torch.dtype | None) -> str:
    config = json.loads(model.config.to_json_string(use_diff=False))
    device = model.device
    is_cuda = device.type == "cuda"
    kinds = {type(module) for module in model.modules()}
    about = {
        "classes": sorted({f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}),
        "config": {k: v for k, v in config.items() if k not in VOLATILE},
        "attention": model.config._attn_implementation,
        "dtypes": sorted({str(p.dtype) for p in model.parameters()} | {str(mixed_dtype)}),
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "precision": torch.get_float32_matmul_precision(),
        "versions": [version(name) for name in ("torch", "transformers", "lm-eval")],
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


@functools.cache
def _code() -> str:
    """Stands for how requests are packed and compared."""
    digest = hashlib.sha256()
    for name in ("lm", "log_probabilities", "tree"):
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()
