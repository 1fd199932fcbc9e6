"""Merge methods: a registry that fills itself from the files of this package and from plug-ins.

Adding a file with a decorated function adds the method everywhere: recipes, command line,
documentation and contract tests. Another package adds its own by entry points (``plugins``), and
``mergeops.testing`` holds them to the same laws.

A method sees chunks of one parameter tensor, flattened and already in the compute dtype; it never
sees files, devices or threads. So the engine may cut a tensor anywhere, and the result may not
depend on where:

* ``merge`` is element-wise: entry i of the result depends on entry i of the inputs, on the
  parameters and on ``MethodView`` (offset of the chunk, random keys, statistics of the tensor);
* ``statistics``, where a method needs it, runs first: it scans the whole tensor, as often as it
  likes, and its result is handed to every ``merge`` of the tensor;
* ``whole_rows``, where a method needs it, makes chunks of whole rows of the last dimension, in
  ``merge`` and in ``statistics`` alike: entry i may then depend on all of its row;
* ``activations``, where a method needs them, are measured of the sources before the merge.

Stands on: errors, kernels, lazy_torch, schema.
"""

from mergeops.methods.registry import (
    FusedLook,
    Look,
    Method,
    MethodView,
    Scan,
    get,
    method,
    names,
)
from mergeops.methods.steps.fused import Bits, Formula, kernels
from mergeops.methods.steps.layer_activations import LayerActivations
from mergeops.methods.steps.randomness import random_key
from mergeops.methods.steps.whole import check_source_count, merge_tensors

__all__ = [
    "Bits",
    "Formula",
    "FusedLook",
    "LayerActivations",
    "Look",
    "Method",
    "MethodView",
    "Scan",
    "check_source_count",
    "get",
    "kernels",
    "merge_tensors",
    "method",
    "names",
    "random_key",
]
