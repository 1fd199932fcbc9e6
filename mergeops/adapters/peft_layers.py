"""One module at a time through PEFT's own layer: what base and adapter are together.

The module is built alone, with its real name and weights; so the whole model is never in memory.
Kinds whose modules share something (projections, a bank of vectors, places that a seed draws for
the whole model) are built as a model of all adapted modules, whose other weights take no memory.
PEFT never sees a pattern of the config: modules are named one by one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mergeops.adapters.adapter import Adapter
from mergeops.adapters.adapter_config import OWN_RANKS
from mergeops.adapters.adapter_tensors import PREFIX
from mergeops.adapters.module_patterns import module_pattern, of_pattern
from mergeops.adapters.weight_changes import AdaptedLayer
from mergeops.errors import SourceError
from mergeops.lazy_torch import torch

SHARING = ("VERA", "PVERA", "RANDLORA", "VBLORA", "UNILORA", "TINYLORA")
"""Kinds whose modules share something."""
DRAWN = ("vera_A", "vera_B", "pvera_A", "pvera_B", "randlora_A", "randlora_B", "tinylora_P")
"""Tensors that are drawn again from a seed where they are not saved."""
IN_FLOAT32 = ("pissa", "olora", "PSOFT")
"""Starts of LoRA and kinds that PEFT makes in float32 only."""
PATTERNS = (
    "rank_pattern",
    "alpha_pattern",
    "lambda_pattern",
    "block_size_pattern",
    "n_frequency_pattern",
)
OF_TRAINING = {
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "exclude_modules": None,
    "inference_mode": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "modules_to_save": None,
    "revision": None,
    "task_type": None,
    "trainable_token_indices": None,
}
"""Settings that are about other modules, about training or already decided."""
PROBES, MOST_OFF = 4, 1e-4

Read = Callable[[str], "torch.Tensor"]
_ALONE = threading.Lock()


class PeftLayers:
    """Makes an adapter's layers, one after the other.

    Args:
        adapter: from ``open_adapter``.
        read: gives a tensor of the adapter's file by its key.
    """

    def __init__(self, adapter: Adapter, read: Read) -> None:
        self._adapter = adapter
        self._read = read
        self._together: Any = None

    @property
    def _is_saved(self) -> bool:
        return bool(self._adapter.config.setting("save_projection", True))

    def merged(
        self, module: str, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of one module with its adapter.

        Args:
            module: its name in memory.
            weight: float64, as on disk.
            bias: float64, where it has one.

        Raises:
            SourceError: PEFT cannot build the layer, the file has other tensors than it needs, or
                what it merges is not what it computes.
        """
        layer = self._adapter.layers[module]
        config = self._adapter.config
        if {config.peft_type, config.content.get("init_lora_weights")} & set(IN_FLOAT32):
            weight, bias = weight.float(), None if bias is None else bias.float()
        # PEFT is told to be silent, which holds for all threads.
        with _ALONE, _in_silence(), torch.no_grad():
            try:
                if config.peft_type in SHARING:
                    return self._merged_together(layer, weight, bias)
                model = self._model([layer], {module: (weight, bias)})
                return self._take(model, layer)
            except SourceError:
                raise
            except Exception as error:  # Whatever PEFT raises of foreign values.
                told = " ".join(str(error).split())[:300]
                raise SourceError(
                    f"{config.shown}: PEFT cannot apply {config.peft_type} to {module}: {told}"
                ) from error

    def _merged_together(
        self, layer: AdaptedLayer, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._together is None:
            self._together = self._model(list(self._adapter.layers.values()), {})
        base = self._together.base_model.model.get_submodule(layer.module).get_base_layer()
        empty = base.weight, base.bias if hasattr(base, "bias") else None
        _set(base, weight, bias)
        try:
            return self._take(self._together, layer)
        finally:
            _set(base, *empty)

    def _model(
        self,
        layers: Iterable[AdaptedLayer],
        weights: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]],
    ) -> Any:
        """A model of these modules with the adapter on them; without weights, they are zeros that
        take no memory."""
        from peft import get_peft_model, set_peft_model_state_dict

        layers = list(layers)
        tree = torch.nn.Module()
        for layer in layers:
            _put(tree, layer.module, self._bare(layer, weights.get(layer.module)))
        model = get_peft_model(tree, self._peft_config(layers))
        given = {
            f"base_model.{name.removeprefix('base_model.')}": key
            for name, key in self._adapter.shared.items()
        }
        for layer in layers:
            given |= {f"{PREFIX}{layer.module}.{p}": key for p, key in layer.parts.items()}
        told = set_peft_model_state_dict(
            model, {name: self._read(key) for name, key in given.items()}
        )
        # Every module names what all share, too, and what PEFT computes itself is not saved.
        known = {name.removeprefix("base_model.").split(".")[0] for name in self._adapter.shared}
        known |= {"base_layer", "ranknum", *(DRAWN if not self._is_saved else ())}
        own = [name for name in told.missing_keys if not known & set(name.split("."))]
        if told.unexpected_keys or own:
            odd = [*told.unexpected_keys, *own][0]
            what = "lacks" if own and not told.unexpected_keys else "has"
            raise SourceError(
                f"{self._adapter.config.shown}: the adapter {what} {odd.replace('.default', '')}, "
                f"which is not as PEFT saves {self._adapter.config.peft_type}"
            )
        if self._adapter.config.peft_type == "FROD":
            for layer in layers:
                _turn_as_saved(model.base_model.model.get_submodule(layer.module))
        return model.eval()

    def _bare(
        self, layer: AdaptedLayer, weights: tuple[torch.Tensor, torch.Tensor | None] | None
    ) -> Any:
        rows, columns = self._adapter.tensors[layer.weight].shape
        if weights is None:
            zero = torch.zeros(1, dtype=torch.float64)
            bias = zero.expand(self._adapter.tensors[layer.bias].shape) if layer.bias else None
            weights = zero.expand(rows, columns), bias
        if layer.kind == "conv1d":
            from transformers.pytorch_utils import Conv1D

            module: Any = Conv1D(1, 1)
            module.nf, module.nx = columns, rows
        elif layer.kind == "embedding":
            module = torch.nn.Embedding(rows, columns, device="meta")
        else:
            module = torch.nn.Linear(columns, rows, bias=layer.bias is not None, device="meta")
        _set(module, *weights)
        return module

    def _peft_config(self, layers: list[AdaptedLayer]) -> Any:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

        config = self._adapter.config
        cls = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(config.peft_type)]
        known = {field.name for field in dataclasses.fields(cls)}
        content = {key: value for key, value in config.content.items() if key in known}
        content |= {key: value for key, value in OF_TRAINING.items() if key in known}
        content["target_modules"] = [layer.module for layer in layers]
        content.pop("peft_type")
        module = layers[0].module
        for key in PATTERNS:
            if content.get(key) and config.peft_type not in OWN_RANKS:
                value = of_pattern(f"{config.shown}: {key}", content[key], module, None)
                content[key] = {} if value is None else {module: value}
        if config.peft_type == "ADALORA" and content.get("rank_pattern"):
            ranks = content["rank_pattern"].items()
            own = {key: rank for key, rank in ranks if key.startswith(f"{module}.lora_E")}
            content["rank_pattern"] = own or None
        if config.peft_type == "LOKR" and "rank_dropout_scale" not in content:
            # Before version 0.14, which began to write that, PEFT did not scale by alpha / r.
            rank = (content.get("rank_pattern") or {}).get(module, content.get("r"))
            content |= {"alpha": rank, "alpha_pattern": {}}
        if config.peft_type == "OSF":
            content["rank_pattern"] = self._searched(content.get("rank_pattern") or {}, module)
        if config.peft_type == "IA3":
            rows = [key for part, key in layers[0].parts.items() if part == "ia3_l"]
            feeds = [self._adapter.adapter.tensors[key].shape[0] == 1 for key in rows]
            content["feedforward_modules"] = [module] if any(feeds) else []
        return cls(**content)

    def _searched(self, patterns: Mapping[str, Any], module: str) -> dict[str, Any]:
        """The first pattern that is anywhere in a name: OSF asks so, and no other kind."""
        where = f"{self._adapter.config.shown}: rank_pattern"
        for pattern, value in patterns.items():
            if module_pattern(where, f".*(?:{pattern}).*", False).matches(module):
                return {f"^{module}$": value}
        return {}

    def _take(self, model: Any, layer: AdaptedLayer) -> tuple[torch.Tensor, torch.Tensor | None]:
        adapted = model.base_model.model.get_submodule(layer.module)
        base = adapted.get_base_layer()
        generator = torch.Generator().manual_seed(0)
        if layer.kind == "embedding":
            probe = torch.randint(base.num_embeddings, (PROBES,), generator=generator)
        else:
            inputs = base.weight.shape[0 if layer.kind == "conv1d" else 1]
            probe = torch.randn(PROBES, inputs, generator=generator).to(base.weight.dtype)
        before = adapted(probe)
        adapted.merge(safe_merge=True)
        weight, bias = base.weight.data, getattr(base, "bias", None)
        after = base(probe)
        adapted.merged_adapters.clear()
        off = (after - before).abs().max()
        if not off <= MOST_OFF * before.abs().max():
            raise SourceError(
                f"{self._adapter.config.shown}: what PEFT merges of {layer.module} is not what the "
                f"adapted layer computes (off by {float(off):.3g}); leave this source out"
            )
        return weight.clone(), None if bias is None else bias.data.clone()


def _turn_as_saved(adapted: Any) -> None:
    """PEFT makes FRoD's U of the V that it computes of all layers; here V is the saved one."""
    base = adapted.get_base_layer()
    weight = base.weight.T if adapted.fan_in_fan_out else base.weight
    turned, _ = adapted._calculate_frod_u_and_lambda(adapted.frod_V["default"], weight)
    adapted.frod_U["default"] = turned.to(weight.dtype)


def _set(module: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = torch.nn.Parameter(bias, requires_grad=False)
    elif "bias" in dict(module.named_parameters()):
        module.bias = None


def _put(tree: Any, name: str, module: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in tree._modules:
            tree.add_module(parent, torch.nn.Module())
        tree = tree._modules[parent]
    tree.add_module(last, module)


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """PEFT warns of what is meant here, e.g. of a model without a config."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)
