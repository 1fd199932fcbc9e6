"""The options of mergekit-yaml as those of ``mergeops merge``, so that users' scripts go on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from mergeops.errors import ConfigError

SAME = {
    "--cuda": ["--device", "cuda"],
    "--no-cuda": ["--device", "cpu"],
    "--gpu-rich": ["--device", "cuda"],
    "--trust-remote-code": ["trust_remote_code=true"],
    "--no-trust-remote-code": ["trust_remote_code=false"],
    "--allow-crimes": ["mixed_architectures=allow"],
    "--no-allow-crimes": [],
    "--no-quiet": [],
    "--no-unsafe-truncate-embeddings": [],
}
"""Option -> the words here that say the same."""
NEEDLESS = {
    "--async-write": "reading, merging and writing always overlap",
    "--clone-tensors": "layers are always written as often as they occur",
    "--copy-tokenizer": "the tokenizer is always copied",
    "--lazy-unpickle": "tensors are always read piece by piece",
    "--low-cpu-memory": "memory is bounded on every device",
    "--multi-gpu": "all GPUs are used; choose one with --device cuda:N",
    "--read-to-gpu": "pieces go to the GPU as they are read",
    "--safe-serialization": "weights are always written as safetensors",
    "--write-model-card": "a model card is always written",
    "--no-copy-tokenizer": "the tokenizer is always copied; remove its files from OUT",
    "--no-write-model-card": "a model card is always written; remove README.md from OUT",
    "-v": "errors say what is wrong; --debug adds the traceback",
    "--verbose": "errors say what is wrong; --debug adds the traceback",
}
"""Option without a value -> why nothing is to do."""
NEEDLESS_WITH_VALUE = {
    "--lora-merge-cache": "adapters are applied on the fly, and no merged copy is kept",
    "--lora-merge-dtype": "adapters are applied in dtype.compute, float32 by default",
    "--num-threads": "all processors are used; OMP_NUM_THREADS=N makes it N of them",
    "-j": "all processors are used; OMP_NUM_THREADS=N makes it N of them",
    "--write-threads": "one thread writes as fast as the disk",
}
REFUSED = {
    "--no-safe-serialization": "pickled weights are not written; leave it out",
    "--transformers-cache": "set the environment variable HF_HUB_CACHE to the directory instead",
    "--unsafe-truncate-embeddings": "rows are matched by token instead: write tokenizer_source: "
    "base, union or a model into the YAML, or add tokenizer.source=base here",
}
BYTES_PER_PARAMETER = 2
"""mergekit's shards are counted in parameters: most are saved in 16 bits."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def translated(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The words of a command line as ours, and notes about those without effect.

    Raises:
        ConfigError: an option asks for what is not done here; says what to do instead.
    """
    result: list[str] = []
    notes: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if not option.startswith("-"):
            result.append(word)
        elif option in SAME:
            result += SAME[option]
        elif option in NEEDLESS or re.fullmatch("-v+", option):
            notes.append(f"{option} has no effect: {NEEDLESS.get(option, NEEDLESS['-v'])}")
        elif option in NEEDLESS_WITH_VALUE:
            _value(option, equals, value, rest)
            notes.append(f"{option} has no effect: {NEEDLESS_WITH_VALUE[option]}")
        elif option in REFUSED:
            raise ConfigError(f"{option} is an option of mergekit-yaml: {REFUSED[option]}")
        elif option == "--random-seed":
            result += ["--seed", _value(option, equals, value, rest)]
        elif option == "--out-shard-size":
            size = _bytes(option, _value(option, equals, value, rest))
            result.append(f"output.shard_size={size}B")
        else:
            result.append(word)
    return result, notes


def _value(option: str, equals: str, value: str, rest: Iterator[str]) -> str:
    text = value if equals else next(rest, None)
    if not text:
        raise ConfigError(f"{option} has no value")
    return text


def _bytes(option: str, text: str) -> int:
    spelled = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbg]?)", text.lower())
    size = int(float(spelled[1]) * _UNITS[spelled[2]]) if spelled else 0
    if size < 1:
        raise ConfigError(f"{option} is {text!r}; it takes a number of parameters, e.g. 5B or 900M")
    return size * BYTES_PER_PARAMETER
