"""Make ``lm_eval --model mergeops`` known to lm-eval.

lm-eval 0.4.13 looks for no plugins: a model exists once something has put it into its registry. Its
programs import torch, though, and torch loads the entry points of the group ``torch.backends``;
``register`` is one of them. It costs an import of torch some microseconds, and does nothing where
lm-eval is not being imported.

Stands on: nothing.
"""

from __future__ import annotations

import contextlib
import sys


def register() -> None:
    """Name our model in lm-eval's registry, without importing it."""
    if "lm_eval" not in sys.modules:
        return
    # An error here would end every import of torch, in programs that did not ask for this.
    with contextlib.suppress(Exception):
        # lm-eval names its own models only while its registry is empty: they have to come first.
        import lm_eval.models  # noqa: F401
        from lm_eval.api.registry import model_registry

        if "mergeops" not in model_registry:
            model_registry.register("mergeops", target="mergeops.evaluate.lm:TreeLM")
