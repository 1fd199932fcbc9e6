"""What a model's linear layers see of a file of prompts, measured once and kept by digest.

A method that declares ``activations`` is given what was measured of each of its sources: the
second moments of the inputs of each linear layer (``gram``), or how much each weight matters for
the model's own predictions (``fisher``). Texts are read, tokenised and forgotten: what is kept
holds their number, the number of their tokens and the digest of their file.

Stands on: architectures, checkpoint, errors, lazy_torch, methods, progress, version.
"""

from mergeops.activations.kept_activations import (
    ABOUT,
    FOLDER,
    KINDS,
    Measured,
    OpenMeasured,
    find,
    kept_in,
)
from mergeops.activations.measuring import measure
from mergeops.activations.prompts import prompts_sha256

__all__ = [
    "ABOUT",
    "FOLDER",
    "KINDS",
    "Measured",
    "OpenMeasured",
    "find",
    "kept_in",
    "measure",
    "prompts_sha256",
]
