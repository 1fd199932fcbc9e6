"""Resolve and merge on this machine; nothing is scored or tracked.

Finished work is found first: a plan that was merged, a source that was hashed.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

from mergeops.activations import Measured, find, measure, prompts_sha256
from mergeops.checkpoint import has_tokenizer, hold, read_manifest, weights_sha256
from mergeops.engine import (
    MERGING,
    WorkPlan,
    check_output,
    choose_devices,
    merge_and_pin,
    merge_on,
    note_pace,
    plan_work,
)
from mergeops.errors import ConfigError
from mergeops.extraction import (
    Extracted,
    adapter_digest,
    check_made_here,
    merge_as_adapter,
)
from mergeops.methods import get
from mergeops.planning import (
    Digests,
    Plan,
    dir_of_digest,
    make_plan,
    merge_dir,
    resolve_with_merges,
)
from mergeops.progress import Progress
from mergeops.recipe import MethodSpec, Recipe, SourceSpec, TokenizerSpec
from mergeops.sources import Resolved, Source, resolve_uri, resolve_with_bar


@dataclasses.dataclass
class Spent:
    """What was done for a command; what was found done is no part of it."""

    merges: int = 0
    written: int = 0
    """Bytes."""
    merging_s: float = 0.0
    models: int = 0
    """That were asked something."""
    answers: int = 0
    """Items that were asked, of all models together."""
    scoring_s: float = 0.0


class Workshop:
    """Where the merges of one command are made.

    Args:
        recipe: its output settings hold for all merges.
        progress: where to show what is being done.
    """

    def __init__(self, recipe: Recipe, progress: Progress) -> None:
        self.progress = progress
        self.work_dir = Path(recipe.output.dir)
        self.device = recipe.output.device
        self.executor = recipe.executor
        self.spent = Spent()
        self._resolved: dict[str, Resolved] = {}
        self.notes: list[str] = []
        """What was said of plans and merges, once each."""

    def resolve(
        self, recipe: Recipe, *, hash_later: bool = False, measure: bool = True
    ) -> Resolved:
        """Find and pin the recipe's base and sources, once; merges among them are made first.

        Args:
            recipe: what names them.
            hash_later: leave those unhashed that ``merge`` may hash while it merges them.
            measure: measure the sources' activations, where the method needs them.
        """
        if not recipe.prompts:
            return self._resolve(recipe, hash_later=hash_later)
        resolved = self._resolve(recipe)
        if measure:
            self.measure(recipe, resolved)
        return resolved

    def measure(self, recipe: Recipe, resolved: Resolved) -> list[Measured]:
        """Measure the activations of each source that the method needs, or find them measured.

        Args:
            recipe: with prompts for each source.
            resolved: its sources, pinned.
        """
        kind, measured = get(recipe.method.name).activations, []
        for name, prompts in recipe.prompts.items():
            source, digest = resolved.sources[name], prompts_sha256(prompts)
            found = find(self.work_dir, kind, source.sha256, digest)
            if found is None:
                model = self.full_checkpoint(recipe, source)
                with self.progress.bar(f"measuring {name}") as tick:
                    found = measure(
                        model,
                        source.sha256,
                        prompts,
                        kind,
                        self.work_dir,
                        device=choose_devices(self.device)[0],
                        progress=tick,
                    )
            measured.append(found)
        return measured

    def _resolve(self, recipe: Recipe, *, hash_later: bool = False) -> Resolved:
        # Random numbers are drawn for a source's digest, and merges are found by it; workers hash
        # before they merge.
        is_late = not get(recipe.method.name).is_random or not self.executor.is_here
        if hash_later and not recipe.merges and is_late:
            read = functools.partial(self._read, hash_later=True)
            return resolve_with_merges(recipe, read, self._merge_first)
        sources = sorted(recipe.sources.items(), key=lambda item: item[0])
        key = repr((recipe.base, recipe.base_adapter, sources, recipe.merges))
        if key not in self._resolved:
            self._resolved[key] = resolve_with_merges(recipe, self._read, self._merge_first)
        return self._resolved[key]

    def _read(self, recipe: Recipe, digests: Digests, *, hash_later: bool = False) -> Resolved:
        return resolve_with_bar(
            recipe,
            self.progress,
            cache_dir=self.work_dir / "cache",
            digests=digests,
            hash_later=hash_later,
        )

    def _merge_first(self, plan: Plan, label: str) -> Path:
        self.warn(plan)
        return self.merge(plan, label)

    def resolve_one(
        self, recipe: Recipe, uri: str, *, name: str = "source", base: str | None = None
    ) -> Source:
        """Find and pin one checkpoint outside the recipe, e.g. a registered merge.

        Args:
            recipe: its tracking and output settings hold.
            uri: names the checkpoint.
            name: what it is called.
            base: of an adapter, where its own config does not lead there.
        """
        return resolve_uri(
            uri,
            name=name,
            base=base,
            cache_dir=self.work_dir / "cache",
            tracking=recipe.tracking,
            path_map=recipe.path_map,
            output=recipe.output,
        )

    def merge(self, plan: Plan, label: str, into: Path | None = None) -> Path:
        """Execute a plan, or find it done.

        Args:
            plan: what to do.
            label: what the progress bar calls it.
            into: the directory; None takes the plan's own below the work directory.
        """
        return self.merge_and_pin(plan, label, into or merge_dir(self.work_dir, plan))[0]

    def merge_and_pin(self, plan: Plan, label: str, folder: Path) -> tuple[Path, Plan]:
        """As ``merge``, of a plan whose inputs need not be hashed yet; the plan with their digests
        comes with the directory."""
        was_there, began = read_manifest(folder) is not None, time.monotonic()
        with self.progress.bar(f"merging {label}", is_bytes=True) as tick:
            cache_dir = self.work_dir / "cache"
            if self.executor.is_here:
                plan = merge_and_pin(
                    plan, folder, cache_dir=cache_dir, device=self.device, progress=tick
                )
            else:
                plan = merge_on(
                    self.executor,
                    plan,
                    folder,
                    cache_dir=cache_dir,
                    device=self.device,
                    progress=tick,
                    told=self.progress,
                )
        if not was_there:
            size, seconds = self.size_of(folder), time.monotonic() - began
            note_pace(self.work_dir, MERGING, size, seconds)
            self.spent.merges += 1
            self.spent.written += size
            self.spent.merging_s += seconds
        return folder.absolute(), plan

    def merge_as_adapter(
        self, plan: Plan, base: Source | None, into: Path | None = None
    ) -> Extracted:
        """Execute a plan and write its result as an adapter of its base, or find it done.

        Args:
            plan: what to do.
            base: what the adapter is for.
            into: as ``merge``.
        """
        folder = into or dir_of_digest(self.work_dir, adapter_digest(plan))
        began = time.monotonic()
        made = merge_as_adapter(plan, base, folder, device=self.device, progress=self.progress)
        hold(folder)
        if not made.was_there:
            self.spent.merges += 1
            self.spent.written += made.bytes
            self.spent.merging_s += time.monotonic() - began
        return made

    def size_of(self, checkpoint: Path) -> int:
        """Bytes of a checkpoint's weights."""
        files = [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.bin")]
        return sum(path.stat().st_size for path in files)

    def weights_sha256(self, path: Path) -> str:
        """Digest of a full checkpoint's weights; files are hashed once."""
        return weights_sha256(path, cache_dir=self.work_dir / "cache")

    def warn(self, plan: Plan) -> None:
        """Say what the plan found odd but possible, once each."""
        for warning in plan.warnings:
            self.note(warning)

    def note(self, text: str) -> None:
        """Say what the user should know, once."""
        if text not in self.notes:
            self.notes.append(text)
            self.progress.step(f"note: {text}")

    def tokenizer_for(self, recipe: Recipe, path: Path) -> Path | None:
        """The directory itself where it has a tokenizer, else the base's where that has one."""
        base = self.resolve(recipe).base
        places = [path, base.path, base.adapter_base] if base else [path]
        return next((place for place in places if place and has_tokenizer(place)), None)

    def full_checkpoint(self, recipe: Recipe, source: Source) -> Path:
        """The source's directory, or for an adapter the full model that it stands for."""
        if not source.is_adapter:
            return source.path
        # "base" is no source's name.
        name = source.name if source.name in recipe.sources else "adapted_base"
        spec = recipe.sources.get(name) or SourceSpec(str(recipe.base_adapter), recipe.base)
        applied = dataclasses.replace(
            recipe,
            base=None,
            base_adapter=None,
            method=MethodSpec("linear", get("linear").parameters()),
            sources={name: SourceSpec(spec.uri, spec.base)},
            rules=(),
            slices=(),
            modules={},
            merges={},
            tokenizer=TokenizerSpec(name),
        )
        plan = make_plan(applied, None, {name: dataclasses.replace(source, name=name)})
        return self.merge(plan, source.name)


@dataclasses.dataclass(frozen=True)
class Merged:
    """What ``merge_only`` did."""

    checkpoint: Path
    """The directory, in Hugging Face layout."""
    plan: Plan = dataclasses.field(repr=False)
    was_there: bool
    """Whether the merge was in the directory already; its bytes were not read again."""
    adapter: Extracted | None = None
    """What it consists of where it is written as an adapter of its base."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        result = {
            "checkpoint": str(self.checkpoint),
            "plan_digest": self.plan.digest,
            "was_there": self.was_there,
            "warnings": list(self.plan.warnings),
        }
        if self.adapter is not None:
            result["adapter"] = self.adapter.noted()
        return result


def merge_only(recipe: Recipe, out: Path, progress: Progress) -> Merged:
    """Merge into a directory of the user's; nothing is scored or tracked.

    Raises:
        MergeopsError: the class says at which step.
    """
    before = check_output(out)
    check_made_here(recipe)
    workshop = Workshop(recipe, progress)
    resolved = workshop.resolve(recipe, hash_later=not recipe.output.is_adapter)
    plan = make_plan(recipe, resolved.base, resolved.sources)
    workshop.warn(plan)
    if recipe.output.is_adapter:
        made = workshop.merge_as_adapter(plan, resolved.base, out)
        return Merged(out, plan, made.was_there, made)
    plan = workshop.merge_and_pin(plan, f"into {out}", out)[1]
    # Another merge would have been refused.
    return Merged(out, plan, before is not None)


def plan_only(recipe: Recipe, progress: Progress, *, bandwidth: float | None = None) -> WorkPlan:
    """What each worker of a merge will read, write and hold, and how long it takes.

    Args:
        recipe: what to merge; only headers and configs are read.
        progress: where to show what is being done.
        bandwidth: bytes a second that a worker reads or writes; None measures it here, by reading
            some of the largest input.

    Raises:
        ConfigError: the recipe makes merges first.
        MergeopsError: as ``merge_only`` before the first tensor is read.
    """
    if recipe.output.is_adapter:
        raise ConfigError(
            "output.as is adapter, and --plan says what full weights take; leave one of them out"
        )
    if recipe.merges:
        first = next(iter(recipe.merges))
        raise ConfigError(
            f"the recipe makes merges.{first} first, and what that writes is not there to be "
            "planned with; plan each merge by its own recipe"
        )
    workshop = Workshop(recipe, progress)
    resolved = workshop.resolve(recipe, hash_later=True, measure=False)
    plan = make_plan(recipe, resolved.base, resolved.sources)
    workshop.warn(plan)
    return plan_work(plan, recipe.executor, bandwidth=bandwidth)
