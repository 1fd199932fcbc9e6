"""What mergekit's methods take, by its names and with its defaults, and what that is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergeops import methods

REQUIRED = None
"""In place of a default: the config must say it."""
Default = float | bool | int | None
IGNORED = ("int8_mask", "weight")
"""Read and without effect, as in mergekit, where a method does not take them: the first saves
memory there and changes no number; the second stands in many files of methods that weigh all models
alike."""
FORMER = ("embed_slerp",)
"""Parameters of earlier versions, which have no effect in 0.1.5."""
RENAMED = {"lambda": "scale"}

NEEDED, OPTIONAL, FIRST, POINT, LISTED = "needed", "optional", "first", "point", "listed"


@dataclass(frozen=True)
class Described:
    """One of mergekit's methods."""

    base: str
    """What base_model is: needed or optional, the origin of task vectors; first, of the two
    sources; point, one source more; listed, a source only if models lists it."""
    shared: Mapping[str, Default] = field(default_factory=dict)
    """Parameters that are one value for all models."""
    per_model: Mapping[str, Default] = field(default_factory=dict)
    """Parameters that each model may set."""


_VECTORS: dict[str, Default] = {"weight": REQUIRED, "density": 1.0}
_OUTLIERS: dict[str, Default] = {**_VECTORS, "gamma": 0.01}
_RANKS: dict[str, Default] = {**_VECTORS, "epsilon": 0.15}


def _arithmetic(normalize: bool, rescale: bool) -> dict[str, Default]:
    return {"normalize": normalize, "rescale": rescale, "lambda": 1.0}


METHODS: Mapping[str, Described] = {
    "arcee_fusion": Described(NEEDED),
    "breadcrumbs": Described(NEEDED, _arithmetic(False, False), _OUTLIERS),
    "breadcrumbs_ties": Described(NEEDED, _arithmetic(False, False), _OUTLIERS),
    "dare_linear": Described(NEEDED, _arithmetic(False, True), _VECTORS),
    "dare_ties": Described(NEEDED, _arithmetic(False, True), _VECTORS),
    "della": Described(NEEDED, _arithmetic(True, True), _RANKS),
    "della_linear": Described(NEEDED, _arithmetic(False, True), _RANKS),
    "karcher": Described(POINT, {"max_iter": 10, "tol": 1e-5}),
    "linear": Described(LISTED, {"normalize": True}, {"weight": REQUIRED}),
    "model_stock": Described(NEEDED, {"filter_wise": False}),
    "multislerp": Described(
        OPTIONAL, {"normalize_weights": True, "eps": 1e-8}, {"weight": REQUIRED}
    ),
    "nearswap": Described(NEEDED, {"t": REQUIRED}),
    "nuslerp": Described(
        OPTIONAL,
        {"nuslerp_flatten": True, "nuslerp_row_wise": False},
        {"weight": REQUIRED},
    ),
    "passthrough": Described(LISTED, {}, {"scale": 1.0}),
    "ram": Described(NEEDED, {"epsilon": 1e-5}),
    "ramplus_tl": Described(NEEDED, {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}),
    "sce": Described(NEEDED, {"select_topk": 1.0}),
    "slerp": Described(FIRST, {"t": REQUIRED}),
    "task_arithmetic": Described(NEEDED, _arithmetic(False, False), _VECTORS),
    "ties": Described(NEEDED, _arithmetic(True, False), _VECTORS),
}

PARAMETERS = {
    *IGNORED,
    *FORMER,
    *(name for one in METHODS.values() for name in (*one.shared, *one.per_model)),
}
"""Every parameter that some method has."""


def ours(method: str, parameter: str) -> str | None:
    """What a parameter is called here; None if it has no effect, here as there."""
    name = RENAMED.get(parameter, parameter)
    return name if name in {p.name for p in methods.get(method).describe()} else None
