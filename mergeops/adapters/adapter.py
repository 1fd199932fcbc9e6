"""An adapter and its base: which tensor of the base becomes what, from headers and configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.adapters.adapter_config import (
    AdapterConfig,
    in_full_precision,
    read_adapter_config,
)
from mergeops.adapters.adapter_tensors import ModuleTensors, SortedTensors, sort_tensors
from mergeops.adapters.base_names import EMBEDDINGS, BaseNames
from mergeops.adapters.kinds import LORA_SETTINGS
from mergeops.adapters.lora_factors import PLAIN_PARTS, LoraFactors, check_parts, check_shape
from mergeops.adapters.module_patterns import is_ending, module_pattern
from mergeops.adapters.replicated_layers import with_replicated_layers
from mergeops.adapters.single_experts import with_single_experts
from mergeops.adapters.task_heads import TrainedHead, is_of_labels, with_labels
from mergeops.adapters.vocabularies import settle_vocabulary
from mergeops.adapters.weight_changes import AdaptedLayer, ByPeft, Change, TensorOrigin, TokenRows
from mergeops.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    FLOATS,
    PICKLED_ADAPTER,
    Checkpoint,
    StoredTensor,
    check_filled,
    open_checkpoint,
    read_headers,
    read_json,
)
from mergeops.errors import SourceError

IN_ORDER = ("UNILORA", "TINYLORA")
"""Kinds in which what a module gets depends on its place among the modules."""
WITHOUT_EFFECT = ("lora_velora_embed", "lora_monteclora_sampler.", "ranknum")
"""Parts that matter while training only."""


@dataclass(frozen=True)
class Adapter:
    """The headers of an adapter and of its base, and what becomes of the base's tensors."""

    config: AdapterConfig
    base: Checkpoint
    adapter: Checkpoint
    tensors: dict[str, StoredTensor]
    """Those of both together, by their names on disk."""
    origins: Mapping[str, TensorOrigin] = field(default_factory=dict)
    """Tensor -> where its values come from, where that is not the base's tensor of this name."""
    changes: Mapping[str, Change] = field(default_factory=dict)
    layers: Mapping[str, AdaptedLayer] = field(default_factory=dict)
    """What PEFT's own layers make, in the order of the model."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """As in ``SortedTensors``."""
    config_changes: Mapping[str, Any] = field(default_factory=dict)
    """What differs in the base's config.json."""
    notes: tuple[str, ...] = ()
    """What the user should know."""


def open_adapter(path: Path, base: Path) -> Adapter:
    """Read and check an adapter's config and headers against its base's headers.

    Raises:
        SourceError: something is missing, does not fit, or cannot be applied exactly.
    """
    if not (path / ADAPTER).exists():
        pickled = f" it has {PICKLED_ADAPTER};" if (path / PICKLED_ADAPTER).exists() else ""
        raise SourceError(
            f"{path} has no {ADAPTER};{pickled} save the adapter again with safe_serialization=True"
        )
    config = read_adapter_config(path)
    if config.problem is not None:
        raise SourceError(f"{path}: {config.problem}")
    own = read_headers(path, [ADAPTER])
    check_filled(path, own.tensors)
    return _Opening(path, config, open_checkpoint(base), own).opened()


class _Opening:
    """One adapter while it is worked out."""

    def __init__(
        self, path: Path, config: AdapterConfig, base: Checkpoint, own: Checkpoint
    ) -> None:
        self._path = path
        self._config = config
        self._own = own
        settings = read_json(base.path / CONFIG) if (base.path / CONFIG).is_file() else {}
        self._config_changes: dict[str, Any] = {}
        base = self._base = with_single_experts(base, settings, own.tensors)
        if ranges := config.content.get("layer_replication"):
            base, self._config_changes = with_replicated_layers(str(path), ranges, base, settings)
            settings |= self._config_changes
            self._base = base
        trained = TrainedHead(str(config.setting("task_type", "")), own.tensors)
        self._names = BaseNames(str(path), base, settings, trained)
        self._factors = LoraFactors(config, own, self._names)
        self._origins: dict[str, TensorOrigin] = {}
        self._changes: dict[str, Change] = {}
        self._layers: dict[str, AdaptedLayer] = {}
        self._bypassed: list[str] = []
        """Outputs of a torch.nn.MultiheadAttention, whose weight torch takes without its layer."""
        self._labels: set[int] = set()
        """Numbers of rows of heads that differ from the base's."""

    def opened(self) -> Adapter:
        kind = self._config.peft_type
        if kind == "LORA":
            self._check_settings()
        found = sort_tensors(kind, self._own.tensors)
        self._check_complete(found)
        for name, key in found.replaced.items():
            self._replace(name, key, found.untrained.get(name))
        for group in found.modules:
            self._apply(group)
        for module, key in found.rows.items():
            self._replace_rows(module, key)
        if kind in IN_ORDER:
            self._order_layers()
        for name in self._names.tensors.keys() - self._base.tensors.keys():
            self._origins.setdefault(name, TensorOrigin(self._names.tied[name]))
        settled = settle_vocabulary(
            self._names, self._config, self._own, self._origins, self._changes
        )
        relabelled, told = with_labels(str(self._path), self._names.config, self._labels)
        return Adapter(
            config=self._config,
            base=self._base,
            adapter=self._own,
            tensors=settled.tensors,
            origins=settled.origins,
            changes=settled.changes,
            layers=self._layers,
            shared=found.shared,
            config_changes={**self._config_changes, **settled.config_changes, **relabelled},
            notes=(*settled.notes, *told, *self._notes(found)),
        )

    def _check_complete(self, found: SortedTensors) -> None:
        """What the config says was trained is in the file."""
        setting = self._config.setting
        missing = []
        if setting("trainable_token_indices") and not found.rows:
            missing.append("trainable_token_indices")
        if setting("target_parameters") and not found.modules:
            missing.append("target_parameters")
        kept = {name.rpartition(".")[0] for name in found.replaced}
        modules = {name.rpartition(".")[0] for name in self._base.tensors}
        named = setting("modules_to_save", [])
        for name in [named] if isinstance(named, str) else named:
            is_in = [any(is_ending(m, name) for m in group) for group in (modules, kept)]
            if is_in == [True, False]:
                missing.append(f"modules_to_save {name}")
        if missing:
            raise SourceError(
                f"{self._path}: {ADAPTER_CONFIG} names {', '.join(missing)}, but {ADAPTER} has "
                "nothing of it: the save was not whole; take another checkpoint of this training"
            )

    def _notes(self, found: SortedTensors) -> list[str]:
        notes = []
        name = self._config.base_name or ""
        if in_full_precision(name) != name:
            notes.append(
                f"{self._path} was trained on {name}, the same model with weights of 4 bits; it is "
                f"applied to the weights of {self._base.path}"
            )
        if self._bypassed:
            notes.append(
                f"{self._path} adapts {self._bypassed[0]} alone, the output of a "
                "torch.nn.MultiheadAttention, which computes without that: it stays as in the base"
            )
        named = self._config.setting("target_modules", [])
        if isinstance(named, str) or self._config.setting("layers_to_transform") is not None:
            return notes
        there = {*self._changes, *self._origins, *(f"{m}.weight" for m in self._bypassed)}
        modules = {t.removesuffix(".weight"): t for t in self._base.tensors}
        lacking = [m for m, t in modules.items() if m != t and t not in there and self._is_named(m)]
        saved = self._config.setting("modules_to_save", [])
        lacking = [m for m in lacking if not any(is_ending(m, name) for name in saved)]
        if found.modules and lacking:
            notes.append(
                f"{self._path}: {ADAPTER_CONFIG} names modules that {ADAPTER} has nothing for "
                f"({len(lacking)}, e.g. {lacking[0]}); they stay as in the base"
            )
        return notes

    def _order_layers(self) -> None:
        """Bring all modules that the config names into the order of the model, in which PEFT hands
        out what they share; the file need not have a tensor for each."""
        fit = self._names.fit
        if fit is None:
            raise SourceError(
                f"{self._path}: {self._config.peft_type} depends on the order of the model's "
                f"modules, and transformers does not know the model of {self._base.path}; leave "
                "this source out"
            )
        modules = [
            name.removesuffix(".weight")
            for name, shape in fit.parameters.items()
            if name.endswith(".weight") and len(shape) == 2
        ]
        named = [module for module in modules if self._is_named(module)]
        if self._config.peft_type == "UNILORA":
            for module in named:
                if module not in self._layers:
                    self._by_peft(ModuleTensors(module, 0, {}))
        self._layers = {
            module: self._layers[module] for module in modules if module in self._layers
        }

    def _is_named(self, module: str) -> bool:
        """Whether target_modules names a module, as PEFT reads it."""
        for key, expected in (("exclude_modules", False), ("target_modules", True)):
            named = self._config.setting(key, [])
            if isinstance(named, str):
                where = f"{self._path}: {key}"
                found = module_pattern(where, named, False).matches(module)
            else:
                found = any(is_ending(module, name) for name in named)
            if found is not expected:
                return False
        return True

    def _check_settings(self) -> None:
        for key, value in self._config.content.items():
            if key not in LORA_SETTINGS and value:
                raise SourceError(
                    f"{self._path}: {key} is {value!r}, which mergeops cannot apply: it is a "
                    "setting of another version of PEFT, or of another library"
                )

    def _replace(self, name: str, key: str, untrained: str | None = None) -> None:
        """A tensor of the adapter takes the place of one of the base."""
        stored = self._own.tensors[key]
        target = self._names.on_disk(name, key)
        expected = self._names.tensors[target].shape
        if is_of_labels(name, stored.shape, expected, self._names.config):
            self._labels.add(stored.shape[0])
        elif stored.shape[1:] != expected[1:] or not self._names.is_vocabulary(target):
            check_shape(self._config, key, stored.shape, expected)
        self._names.tensors[target] = dataclasses.replace(stored, name=target)
        self._origins[target] = TensorOrigin(key, own=True, untrained=untrained)

    def _apply(self, group: ModuleTensors) -> None:
        parts = {
            part: key
            for part, key in group.parts.items()
            if not part.startswith(WITHOUT_EFFECT) or self._config.peft_type != "LORA"
        }
        if self._config.peft_type == "LORA":
            check_parts(self._config, group.module, parts)
        attention, _, last = group.module.rpartition(".")
        if last == "out_proj" and not group.depth and self._names.is_attention(attention):
            self._bypassed.append(group.module)
        elif self._config.peft_type == "LN_TUNING":
            for part, key in parts.items():
                self._replace(f"{group.module}.{part.removeprefix('ln_tuning_layers.')}", key)
        elif self._config.peft_type != "LORA" or not self._is_plain(parts):
            self._by_peft(dataclasses.replace(group, parts=parts))
        else:
            self._changes |= self._factors.changes(dataclasses.replace(group, parts=parts))

    def _is_plain(self, parts: Mapping[str, str]) -> bool:
        """Whether it is W + s B A and nothing else; a part that is missing is found missing."""
        content = self._config.content
        starts = self._config.setting("init_lora_weights", True) in ("pissa", "olora")
        special = ("use_dora", "lora_bias", "kasa_config", "use_bdlora")
        if starts or any(content.get(key) for key in special):
            return False
        return any(parts.keys() <= plain for plain in PLAIN_PARTS)

    def _by_peft(self, group: ModuleTensors) -> None:
        """PEFT's layer makes the weight, and the bias where there is one."""
        key = next(iter(group.parts.values()), self._config.peft_type)
        weight = self._names.on_disk(f"{group.module}.weight", key)
        stored = self._names.tensors[weight]
        if stored.dtype not in FLOATS or len(stored.shape) != 2:
            raise SourceError(
                f"{self._path}: {weight} is {stored.dtype} {list(stored.shape)}; "
                f"{self._config.peft_type} is supported on matrices of real numbers"
            )
        bias: str | None = f"{weight.removesuffix('.weight')}.bias"
        bias = bias if bias in self._names.tensors else None
        if bias is None and any("bias" in part for part in group.parts):
            raise SourceError(
                f"{self._path}: {key} adds a bias to {group.module}, which has none in "
                f"{self._base.path}: the model has no place for it; leave this source out"
            )
        kind = self._names.layer(group.module)
        if kind is None and self._names.fit is None:
            kind = "conv1d" if self._config.content.get("fan_in_fan_out") else None
            if EMBEDDINGS.search(weight):
                kind = "embedding"
        layer = AdaptedLayer(group.module, kind or "linear", weight, bias, group.parts)
        self._layers[group.module] = layer
        self._changes[weight] = ByPeft(group.module)
        if bias is not None:
            self._changes[bias] = ByPeft(group.module, is_bias=True)

    def _replace_rows(self, module: str, key: str) -> None:
        tensor = self._names.on_disk(f"{module}.weight", key)
        named = self._config.setting("trainable_token_indices")
        if self._config.peft_type == "TRAINABLE_TOKENS":
            named = self._config.setting("token_indices")
        if isinstance(named, Mapping):
            found = [v for k, v in named.items() if is_ending(module, k)]
            if not found and len(named) == 1:
                # A head that PEFT tied with the embeddings that are named.
                found = list(named.values())
            named = found[0] if len(found) == 1 else None
        rows, columns = self._names.tensors[tensor].shape
        tokens = tuple(named) if isinstance(named, list) else ()
        if not tokens or not all(type(t) is int and 0 <= t < rows for t in tokens):
            raise SourceError(
                f"{self._path}: the tokens of {key} are {named!r}; they are a list of whole "
                f"numbers from 0 to {rows - 1}; where the vocabulary grew, save the adapter again "
                "with save_embedding_layers=True"
            )
        check_shape(self._config, key, self._own.tensors[key].shape, (len(tokens), columns))
        if tensor in self._changes:
            raise SourceError(
                f"{self._path}: {key} and another change of {tensor} lie on top of each other"
            )
        self._changes[tensor] = TokenRows(key, tokens)
