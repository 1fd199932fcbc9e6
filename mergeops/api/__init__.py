"""mergeops in Python: the words of the command line, as functions that return typed objects.

A recipe is a file, the name of one in the config directory, a mapping of the same keys, or a
``Recipe``. ``overrides`` are those of the command line; ``config_dir`` is the directory whose files
win over the packaged ones. Every result has ``to_dict``, which is what the command prints with
``--json``. Errors are ``mergeops.errors.MergeopsError``, whose classes say at which step.

    >>> import mergeops
    >>> recipe = {
    ...     "base": "models/base",
    ...     "sources": {"math": "models/math", "code": "models/code"},
    ...     "method": {"name": "ties", "density": 0.5},
    ... }
    >>> merged = mergeops.merge(recipe, "out")
    >>> merged.checkpoint.name, merged.was_there
    ('out', False)
    >>> mergeops.merge(recipe, "out").was_there
    True
    >>> mergeops.verify("out").problems
    ()

Stands on: adoption, checkpoint, derived, errors, extraction, inspection, lineage, mixture,
pipeline, progress, promotion, recipe, recover, report, search, sources, store, tracking,
transplant, workshop.
"""

from mergeops.api.merging import (
    Verification,
    extract,
    inspect,
    merge,
    moe,
    recover,
    run,
    search,
    transplant,
    verify,
)
from mergeops.api.registered import adopt, compare, lineage, promote, rollback

__all__ = [
    "Verification",
    "adopt",
    "compare",
    "extract",
    "inspect",
    "lineage",
    "merge",
    "moe",
    "promote",
    "recover",
    "rollback",
    "run",
    "search",
    "transplant",
    "verify",
]
