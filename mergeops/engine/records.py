"""What a merge writes about itself: index, manifest content and a short model card.

All of it goes where the checkpoint goes, so no credentials are in it.
"""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

from mergeops import methods
from mergeops.planning import Plan, PlannedInput
from mergeops.redact import redact
from mergeops.sources import short_name
from mergeops.version import __version__


def manifest_content(plan: Plan) -> dict[str, Any]:
    """What mergeops.json says besides the files."""
    return {
        "plan_digest": plan.digest,
        "method": {"name": plan.method, "version": plan.method_version, **plan.parameters},
        "base": _describe(plan.base) if plan.base else None,
        "sources": [_describe(source) for source in plan.sources],
        "recipe": redact(plan.recipe),
        "versions": {"mergeops": __version__, "torch": metadata.version("torch")},
    }


def default_card(plan: Plan, *, is_adapter: bool = False) -> str:
    """A README.md with the metadata that model hubs read.

    Args:
        plan: of the merge.
        is_adapter: whether it is written as an adapter of its base.
    """
    inputs = [*([plan.base] if plan.base else []), *plan.sources]
    uris = [str(redact(planned.uri)) for planned in inputs]
    names = [(short_name(uri) or uri).split("@")[0] for uri in uris]
    metadata = {
        "base_model": names[:1] if is_adapter else names,
        "base_model_relation": "adapter" if is_adapter else "merge",
        "library_name": "peft" if is_adapter else "transformers",
        "tags": ["merge", "mergeops"],
    }
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())
    rows = "\n".join(f"| {p.name} | `{redact(p.uri)}` | `{p.sha256[:16]}` |" for p in inputs)
    documentation = methods.get(plan.method).documentation
    recipe = json.dumps(redact(plan.recipe), indent=2)
    return (
        f"---\n{head}\n---\n\n# Merge by {plan.method}\n\n{documentation}\n\n"
        f"| input | uri | sha256 of the weights |\n|---|---|---|\n{rows}\n\n"
        f"Plan `{plan.digest}`. Recipe:\n\n```json\n{recipe}\n```\n"
    )


def _describe(planned: PlannedInput) -> dict[str, Any]:
    known = {
        "name": planned.name,
        "uri": redact(planned.uri),
        "sha256": planned.sha256,
        "is_adapter": planned.adapter_base is not None,
        "run_id": planned.run_id,
        "model_id": planned.model_id,
        "registered": planned.registered,
        "revision": planned.revision,
    }
    return {key: value for key, value in known.items() if value is not None}
