"""GGUF: a model as llama.cpp stores it, as the checkpoint that transformers makes of it.

Names, layouts, config and tokenizer are transformers' own conversion; the numbers are those that
the blocks stand for, rounded once to bfloat16 (a file without blocks keeps its format). One matrix
is in memory at a time, or the experts of one layer.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mergeops.architectures.gguf_headers import GgufHeader, check_settings, read_gguf_header
from mergeops.architectures.transformers_models import classes_of, in_silence, read_config
from mergeops.checkpoint import (
    CONFIG,
    ORIGINAL,
    SINGLE,
    encode_header,
    has_tokenizer,
    kept_conversion,
    lacking,
    read_json,
    without_quantisation,
    word,
)
from mergeops.errors import SourceError
from mergeops.lazy_torch import torch
from mergeops.progress import Tick

_ROTATIONS = re.compile(r"^rope_(freqs|factors_\w+)\.weight$")
"""What scaled rotations make of the config; config.json has them as settings."""
_FORMATS = {0: "F32", 1: "F16", 30: "BF16"}
"""ggml's numbers of the formats that are no blocks."""
CHUNK = 1 << 22
"""Elements that are dequantised at a time, where nothing moves them."""


@dataclass(frozen=True)
class _Model:
    """A file's tensors as transformers places them."""

    class_name: str
    shapes: Mapping[str, tuple[int, ...]]
    """Parameter -> shape, of all that the file gives."""
    read: Callable[[str], Iterable[torch.Tensor]]
    """Parameter -> its numbers, in one piece or in several of whole rows."""


def converted_gguf(file: Path, cache_dir: Path, progress: Tick | None = None) -> Path:
    """A directory with a GGUF file's model as safetensors, and links to the files beside it.

    A config.json or a tokenizer beside the file is taken before the ones that are made of it.

    Args:
        file: one whole model.
        cache_dir: the conversion is kept below it, and found again while the file is the same.
        progress: told how many bytes are written.

    Raises:
        SourceError: transformers does not know the model, or would make another one of it.
    """
    beside = file.parent / CONFIG
    read = [file, *([beside] if beside.is_file() else [])]

    def convert(folder: Path) -> None:
        _convert(file, beside if beside.is_file() else None, folder, progress)

    return kept_conversion(file.parent, read, cache_dir, "weights in a GGUF file", convert)


def _convert(file: Path, beside: Path | None, folder: Path, progress: Tick | None) -> None:
    header = read_gguf_header(file)
    with in_silence():
        if beside is None:
            check_settings(file, header)
            config = _config_of(file)
        else:
            config = without_quantisation(read_json(beside))
        reader = _opened(file)
        stored = _format_of(reader)
        model = _placed(reader, file, header, config, stored, has_own_config=beside is not None)
        _write(model, stored, folder, progress)
        if beside is None:
            config |= {"architectures": [model.class_name], "dtype": word(stored)}
            text = json.dumps(config, indent=2, sort_keys=True, default=str) + "\n"
            (folder / CONFIG).write_text(text, encoding="utf-8")
        if header.has_tokenizer and not has_tokenizer(file.parent):
            _write_tokenizer(file, folder)


def _config_of(file: Path) -> dict[str, Any]:
    """The config.json that transformers makes of the file's metadata."""
    from transformers import AutoConfig

    try:
        made = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    except Exception as error:  # Whatever it meets in foreign metadata.
        raise SourceError(_unknown(file, error)) from error
    config: dict[str, Any] = json.loads(made.to_json_string(use_diff=True))
    names = ("_name_or_path", "_model_name_or_path", "transformers_version")
    return {key: value for key, value in config.items() if key not in names}


def _opened(file: Path) -> Any:
    """llama.cpp's own reader of the file."""
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except Exception as error:  # What a damaged file runs into depends on where it is damaged.
        raise SourceError(f"{file} cannot be read as a GGUF file: {_line(error)}") from error


def _format_of(reader: Any) -> str:
    """The format of the result: bfloat16 for blocks, else the file's own."""
    kinds = {int(tensor.tensor_type) for tensor in reader.tensors}
    if not kinds <= _FORMATS.keys() or 30 in kinds:
        return "BF16"
    return "F16" if 1 in kinds else "F32"


def _placed(
    reader: Any,
    file: Path,
    header: GgufHeader,
    config: Mapping[str, Any],
    stored: str,
    *,
    has_own_config: bool,
) -> _Model:
    """The file's tensors in the first class of the config that has a place for all.

    Raises:
        SourceError: none has, or parameters would be left without numbers.
    """
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    problem = ""
    try:
        settings = read_config(config)
        for cls in () if settings is None else classes_of(config, settings):
            with torch.device("meta"):
                bare = cls._from_config(settings, attn_implementation="eager")
            dtype = getattr(torch, word(stored))
            if is_gguf_arch_supported(header.architecture):
                found, read = _by_conversions(file, header, bare, dtype)
            else:
                found, read = _by_name_table(reader, header, bare, dtype)
            expected = {name: tuple(value.shape) for name, value in bare.state_dict().items()}
            passed = [re.compile(p) for p in bare._keys_to_ignore_on_load_unexpected or ()]
            lost = [
                name
                for name, to in found.items()
                if to not in expected and not any(pattern.search(to) for pattern in passed)
            ]
            if has_own_config:
                lost = [name for name in lost if not _ROTATIONS.match(name)]
            given = {to for to in found.values() if to in expected}
            missing = sorted(expected.keys() - given - set(bare.all_tied_weights_keys))
            if not lost and not missing:
                shapes = {name: expected[name] for name in expected if name in given}
                return _Model(cls.__name__, shapes, read)
            if lost:
                told = f"has no place for {len(lost)} of its tensors, e.g. {lost[0]}"
            else:
                told = f"has {len(missing)} parameters that it does not give, e.g. {missing[0]}"
            problem = problem or f"{cls.__name__}, which config.json makes, {told}"
    except Exception as error:  # Whatever transformers meets in foreign metadata.
        raise SourceError(_unknown(file, error)) from error
    raise SourceError(
        _unknown(file, problem or f"it knows no model_type {config.get('model_type')!r}")
    )


def _by_name_table(
    reader: Any, header: GgufHeader, bare: Any, dtype: torch.dtype
) -> tuple[dict[str, str], Callable[[str], Iterable[torch.Tensor]]]:
    """Name in the file -> parameter, and what reads one; as transformers' table of names has it."""
    from gguf import dequantize
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    settings = bare.config.to_dict()
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=settings)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    places = _names_of(bare, processor, tensors)
    # Some processors put their result here, by the name of the parameter.
    direct: dict[str, Any] = {}
    found = {name: _place_in(places, name) for name in tensors}

    def processed(name: str, numbers: Any) -> Any:
        kept = {"tensors": direct}
        return processor.process(
            weights=numbers, name=name, tensor_key_mapping=places, parsed_parameters=kept
        ).weights

    def is_kept(name: str) -> bool:
        """Whether a matrix's numbers are neither moved nor changed, so that parts will do."""
        probe = np.broadcast_to(np.float32(-1), tuple(reversed(tensors[name].shape)))
        same = processed(name, probe) is probe
        direct.clear()
        return same

    def read(parameter: str) -> Iterator[torch.Tensor]:
        for name in (name for name, to in found.items() if to == parameter):
            data, kind = tensors[name].data, tensors[name].tensor_type
            if len(tensors[name].shape) < 3 and is_kept(name):
                rows = max(1, CHUNK // int(tensors[name].shape[0]))
                for start in range(0, len(data), rows):
                    part = dequantize(data[start : start + rows], kind)
                    yield torch.from_numpy(np.array(part)).to(dtype)
                continue
            numbers = processed(name, dequantize(data, kind))
            if parameter not in direct:
                yield torch.from_numpy(np.array(numbers)).to(dtype)
        if parameter in direct:
            yield direct.pop(parameter).to(dtype)

    return found, read


def _names_of(bare: Any, processor: Any, tensors: Iterable[str]) -> Mapping[str, str]:
    """Name in the file -> parameter, by the model's own names or by those of the models in it."""
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    # The table is made anew for every module inside, which takes seconds and is seldom needed.
    alone = SimpleNamespace(
        config=bare.config, state_dict=bare.state_dict, named_children=lambda: ()
    )
    places: Mapping[str, str] = get_gguf_hf_weights_map(alone, processor)
    if not all(_place_in(places, name) for name in tensors):
        places = get_gguf_hf_weights_map(bare, processor)
    return places


def _place_in(places: Mapping[str, str], name: str) -> str:
    """The parameter of a tensor; empty where there is none. Experts have no ``.weight`` there."""
    return places.get(name, places.get(name.removesuffix(".weight"), ""))


def _by_conversions(
    file: Path, header: GgufHeader, bare: Any, dtype: torch.dtype
) -> tuple[dict[str, str], Callable[[str], Iterable[torch.Tensor]]]:
    """As ``_by_name_table``, for the architectures that transformers converts by operations."""
    from copy import deepcopy

    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    from transformers.integrations.gguf.reader import GgufHeader as Stored
    from transformers.integrations.gguf.reader import load_gguf_state_dict
    from transformers.integrations.gguf.utils import (
        add_gguf_load_ops,
        get_gguf_conversion_mapping,
        get_gguf_plan,
    )

    stored = Stored.from_file(str(file))
    mapping = get_gguf_conversion_mapping(header.architecture, bare.config)
    blocks = get_gguf_plan(stored, mapping)[0]
    mapping = add_gguf_load_ops(mapping, blocks, stored, dtype)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
    values = load_gguf_state_dict(stored)
    renamed = {name: rename_source_key(name, renamings, converters) for name in values}

    def read(parameter: str) -> Iterator[torch.Tensor]:
        sources = {name: pattern for name, (to, pattern) in renamed.items() if to == parameter}
        converter = deepcopy(by_pattern[next(iter(sources.values()))])
        for name, pattern in sources.items():
            tensor = values[name]
            converter.add_tensor(parameter, name, pattern, lambda tensor=tensor: tensor[...])
        made = converter.convert(parameter, model=bare, config=bare.config)
        (value,) = made.values()
        yield value[0] if isinstance(value, list) else value

    return {name: to for name, (to, _) in renamed.items()}, read


def _write(model: _Model, stored: str, folder: Path, progress: Tick | None) -> None:
    """The weights as one safetensors file, tensor by tensor."""
    encoded = encode_header({name: (stored, shape) for name, shape in model.shapes.items()})
    item = torch.empty(0, dtype=getattr(torch, word(stored))).element_size()
    total = len(encoded) + item * sum(torch.Size(shape).numel() for shape in model.shapes.values())
    free = shutil.disk_usage(folder).free
    if free < total:
        raise SourceError(
            f"the GGUF file's weights are converted to {folder}: that needs "
            f"{lacking(total, free)} are free there"
        )
    with open(folder / SINGLE, "wb") as out:
        out.write(encoded)
        for name, shape in model.shapes.items():
            rows, inner = 0, shape[1:]
            for part in model.read(name):
                if tuple(part.shape[1:]) != inner:
                    break
                rows += len(part)
                out.write(part.contiguous().view(torch.uint8).numpy().data)
            if rows != shape[0]:
                raise SourceError(
                    f"the GGUF file's {name} has another shape than {list(shape)}, which "
                    f"config.json makes; put the config.json of the model beside it, or {ORIGINAL}"
                )
            if progress is not None:
                progress(out.tell(), total)


def _write_tokenizer(file: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        made.save_pretrained(folder)
    except Exception as error:  # Whatever it meets in foreign metadata.
        raise SourceError(
            f"{file}: transformers cannot make a tokenizer of it ({_line(error)}); put the "
            "tokenizer's files of the model that was quantised beside it, which are used then"
        ) from error


def _unknown(file: Path, why: object) -> str:
    return (
        f"{file} cannot be read as a model of transformers: {_line(why)}; {ORIGINAL}, or put its "
        "config.json beside the file"
    )


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
