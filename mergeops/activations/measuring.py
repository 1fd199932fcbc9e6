"""One pass of a model over prompts, with hooks that add up what its layers see.

The numbers are added up in the file that keeps them, mapped into memory: so the process holds the
model in float32 and what one prompt takes, however much is measured. Each prompt is read on its
own: there is no padding that could count.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mergeops.activations.kept_activations import ABOUT, FILE, Measured, find, place_of
from mergeops.activations.looks import LOOKS, weights_of
from mergeops.activations.prompts import prompts_sha256, read_prompts
from mergeops.activations.sums import Sums
from mergeops.architectures import in_silence
from mergeops.checkpoint import file_sha256, locked, sync_directory, sync_file
from mergeops.errors import MergeError, SourceError
from mergeops.lazy_torch import Tensor, torch
from mergeops.progress import Tick

MOST_TOKENS = 4096
"""Of a prompt; the rest is cut off."""


def measure(
    model: Path,
    weights_sha256: str,
    prompts: Path,
    kind: str,
    work_dir: Path,
    *,
    device: str = "cpu",
    progress: Tick | None = None,
) -> Measured:
    """Measure a model's activations, or find them measured.

    Args:
        model: a full checkpoint of a causal language model, with its tokenizer.
        weights_sha256: of its weights.
        prompts: a file as ``read_prompts`` takes it.
        kind: one of ``KINDS``.
        work_dir: where they are kept.
        device: where the model runs: cpu or cuda:N.
        progress: told how many prompts are done.

    Raises:
        ConfigError: the prompts are none.
        SourceError: transformers cannot load model or tokenizer.
        MergeError: the disk is full.
    """
    digest = prompts_sha256(prompts)
    found = find(work_dir, kind, weights_sha256, digest)
    if found is not None:
        return found
    texts = read_prompts(prompts)
    place = place_of(work_dir, kind, weights_sha256, digest)
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    opened = contextlib.ExitStack()
    try:
        # What nobody locks was left by a process that was killed.
        opened.enter_context(locked(folder, is_directory=True))
        loaded, tokenizer = _load(model, device)
        tokens = [_tokens(tokenizer, loaded, text) for text in texts]
        whole = [ids for ids, _ in tokens if ids.numel()]
        if not whole:
            raise SourceError(f"the tokenizer of {model} makes no token of any prompt")
        look = LOOKS[kind](loaded, weights_of(loaded, model))
        look.prepare(whole)
        with Sums(folder / FILE, look.shapes) as sums:
            for number, ids in enumerate(whole):
                look.see(ids, number, sums)
                if progress is not None:
                    progress(number + 1, len(whole))
            look.finish(sums)
        about = {
            "sha256": file_sha256(folder / FILE),
            "kind": kind,
            "weights_sha256": weights_sha256,
            "prompts_sha256": digest,
            "prompts": len(texts),
            "tokens": sum(ids.numel() for ids in whole),
            "cut": sum(is_cut for _, is_cut in tokens),
            "layers": look.layers,
        }
        (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        sync_file(folder / ABOUT)
        sync_directory(folder)
        # Whoever was sooner has measured the same.
        with contextlib.suppress(OSError):
            os.rename(folder, place)
        sync_directory(place.parent)
    except OSError as error:
        raise MergeError(f"{place} cannot be written: {error.strerror or error}") from error
    finally:
        opened.close()
        shutil.rmtree(folder, ignore_errors=True)
    measured = find(work_dir, kind, weights_sha256, digest)
    if measured is None:
        raise MergeError(f"{place} cannot be written: something else is there; remove it")
    return measured


def _load(model: Path, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with in_silence():
            tokenizer = AutoTokenizer.from_pretrained(model)
            loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    except Exception as error:  # Whatever transformers raises of foreign files.
        reason = " ".join(str(error).split())[:300]
        raise SourceError(
            f"{model} cannot be run as a causal language model with its tokenizer, so its "
            f"activations cannot be measured: {reason}"
        ) from error
    return loaded.to(device).eval(), tokenizer


def _tokens(tokenizer: Any, model: Any, text: str) -> tuple[Tensor, bool]:
    """A prompt's ids ``[t]``, and whether its end was cut off."""
    most = min(MOST_TOKENS, getattr(model.config, "max_position_embeddings", MOST_TOKENS))
    ids = torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long)
    return ids[:most], len(ids) > most
