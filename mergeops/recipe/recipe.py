"""The recipe: everything a user can write, as frozen dataclasses that are also its documentation.

``Recipe.from_dict`` is the only way in: it takes the plain dict that Hydra (or a YAML file)
produced, and refuses unknown keys, wrong types and values out of range with the key's full path.
``weights_dict`` is the part that decides the merged bytes; scoring, tracking and promotion
settings never change a plan digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops import methods
from mergeops.errors import ConfigError
from mergeops.recipe.executor_settings import ExecutorSpec
from mergeops.recipe.merge_uris import check_uris
from mergeops.recipe.method_spec import MethodSpec, check_measured, check_prompts, read_method
from mergeops.recipe.settings import (
    EvaluateSpec,
    OutputSpec,
    PromoteSpec,
    SearchSpec,
    TrackingSpec,
)
from mergeops.recipe.slices import (
    Module,
    Slice,
    plain_modules,
    plain_slices,
    read_modules,
    read_slices,
)
from mergeops.recipe.source_spec import SourceSpec, read_sources
from mergeops.recipe.tokenizer import TokenizerSpec, check_names
from mergeops.recipe.tool_record import ToolSpec
from mergeops.recipe.values import Value, plain, read_value
from mergeops.schema import build, check_choice, unknown_key

WEIGHT_KEYS = ("base", "sources", "method", "rules", "tokenizer", "dtype", "seed")
"""What decides the merged bytes."""
LAYOUT_KEYS = (
    "base_adapter",
    "slices",
    "modules",
    "tied_head",
    "missing",
    "mixed_architectures",
    "compat",
    "merges",
)
"""What decides them, too, but is left out of records where it is not set."""
TOOL_KEYS = ("base", "sources", "tool")
"""What decides them where a tool makes them."""
UNWRITTEN = ("origins", "notes")
"""What is known of the file that a recipe was read from."""
RECORDED = ("tool",)
"""What only the recipe of a trial has, and no user writes."""
REFUSE = "refuse"


@dataclass(frozen=True)
class Rule:
    """Parameters for the tensors whose name matches; the first rule that matches a tensor and sets
    a parameter decides it."""

    match: str
    """A glob over tensor names, e.g. ``*.mlp.*``."""
    parameters: Mapping[str, Value | Mapping[str, Value]]
    """A number, a list (gradient over depth), or one of these for each source by name."""


@dataclass(frozen=True)
class DtypeSpec:
    """Number formats."""

    compute: str = "float32"
    """float32 or float64: what the arithmetic is done in; float64 where a file holds that."""
    save: str = "auto"
    """auto (each tensor as the base, or the first source, has it), bfloat16, float16, float32."""

    def __post_init__(self) -> None:
        check_choice("dtype.compute", self.compute, ("float32", "float64"))
        check_choice("dtype.save", self.save, ("auto", "bfloat16", "float16", "float32"))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One merge, how to score it, where to log it, and when to promote it."""

    method: MethodSpec
    sources: Mapping[str, SourceSpec]
    base: str | None = None
    """The common ancestor, as a source URI; null for methods that need none."""
    base_adapter: str | None = None
    """A LoRA adapter that is applied to ``base`` on the fly, as a source URI."""
    rules: tuple[Rule, ...] = ()
    slices: tuple[Slice, ...] = ()
    """Where the result's layers come from, where that is not each layer from the same of all
    sources."""
    modules: Mapping[str, Module] = field(default_factory=dict)
    """The same for each stack of layers of a model that has several, e.g. encoder and decoder."""
    tied_head: str = REFUSE
    """Where some inputs have an output head (lm_head) and others use their embeddings as such:
    refuse; untie, the result has a head, merged with the others' embeddings; or tie, it has none.
    """
    missing: str = REFUSE
    """Where some inputs lack a tensor: refuse, or leave_out, it is merged from those that have it.
    """
    mixed_architectures: str = REFUSE
    """Where config.json files name different architectures or settings that change what weights
    mean: refuse, or allow, the merge gets the base's, or the first source's."""
    compat: str | None = None
    """``mergekit`` repeats what mergekit 0.1 does where mergeops differs by choice: a gradient's
    first value, not its last, for the tensors after the layers."""
    merges: Mapping[str, Recipe] = field(default_factory=dict)
    """Merges that are made first; ``merge:NAME`` is a URI for base and sources."""
    tokenizer: TokenizerSpec = field(default_factory=TokenizerSpec)
    dtype: DtypeSpec = field(default_factory=DtypeSpec)
    seed: int = 0
    """Seed of random methods."""
    trust_remote_code: bool = False
    """Let transformers run code that a source carries."""
    name: str | None = None
    """Name of the trial in MLflow; null makes one from the method and its parameters."""
    path_map: Mapping[str, str] = field(default_factory=dict)
    """Moved storage: prefix of a logged path -> where it is now."""
    output: OutputSpec = field(default_factory=OutputSpec)
    evaluate: EvaluateSpec = field(default_factory=EvaluateSpec)
    tracking: TrackingSpec = field(default_factory=TrackingSpec)
    search: SearchSpec = field(default_factory=SearchSpec)
    promote: PromoteSpec = field(default_factory=PromoteSpec)
    executor: ExecutorSpec = field(default_factory=ExecutorSpec)
    tool: ToolSpec | None = None
    """In the recipe of a trial: the command that made the model, in place of ``method``."""
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Key -> file, line and key that it was read from, for errors; no part of what is written."""
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """What the file says without effect, for warnings; no part of what is written."""

    @classmethod
    def keys(cls) -> list[str]:
        """What a user can write."""
        left_out = (*UNWRITTEN, *RECORDED)
        return [f.name for f in dataclasses.fields(cls) if f.name not in left_out]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], made: Iterable[str] = ()) -> Recipe:
        """Check a plain dict and make it a recipe.

        Args:
            raw: what the user wrote.
            made: names of merges that it may use besides its own.

        Raises:
            ConfigError: with the full key, the value and what is allowed.
        """
        known = cls.keys()
        for key in raw:
            if key not in known and key not in RECORDED:
                raise unknown_key("", str(key), known)

        spec, method = read_method(raw.get("method"))
        sources = read_sources(raw.get("sources") or {}, method)
        check_prompts(spec, {name: source.prompts for name, source in sources.items()})
        given = {
            "method": spec,
            "sources": sources,
            "rules": _rules(raw.get("rules") or [], method, sources),
            "slices": read_slices(raw.get("slices") or [], "slices", method, sources),
            "modules": read_modules(raw.get("modules") or {}, method, sources),
            "merges": _merges(raw.get("merges") or {}),
            "search": SearchSpec.from_dict(raw.get("search")),
            "executor": ExecutorSpec.from_dict(raw.get("executor")),
        }
        rest = {k: v for k, v in raw.items() if k not in given}
        built: Recipe = build(cls, rest, "", given=given)
        if built.slices and built.modules:
            raise ConfigError("slices and modules are both given; write the slices into modules")
        check_measured(built.method, {n: merge.method for n, merge in built.merges.items()})
        if built.base_adapter is not None and built.base is None:
            raise ConfigError(
                f"base_adapter is {built.base_adapter!r}, but base is missing: the model that it "
                "is applied to"
            )
        read = [(label, merge.uris) for label, merge in built.merges.items()]
        check_uris([*read, ("", built.uris)], made)
        check_names(built.tokenizer, sources, has_base=built.base is not None)
        return built

    @property
    def made_by(self) -> str:
        """The method's name, or the tool's."""
        return self.tool.name if self.tool else self.method.name

    @property
    def prompts(self) -> dict[str, Path]:
        """Source -> the file of prompts that its activations are measured by; nothing where the
        method needs none."""
        if not methods.get(self.method.name).activations:
            return {}
        files = {name: spec.prompts or self.method.prompts for name, spec in self.sources.items()}
        return {name: Path(str(file)) for name, file in files.items()}

    @property
    def uris(self) -> list[str | None]:
        """What it reads: base, base adapter, and each source with its own base."""
        of_sources = (uri for spec in self.sources.values() for uri in (spec.uri, spec.base))
        return [self.base, self.base_adapter, *of_sources]

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON types, in the shape that ``from_dict`` reads."""
        bare = dataclasses.replace(self, origins={}, notes=())
        raw = {k: v for k, v in dataclasses.asdict(bare).items() if k not in UNWRITTEN}
        raw["method"] = self.method.to_dict()
        raw["sources"] = {
            name: {
                "uri": s.uri,
                **({"base": s.base} if s.base else {}),
                **({"prompts": s.prompts} if s.prompts else {}),
                **{key: plain(value) for key, value in s.parameters.items()},
            }
            for name, s in self.sources.items()
        }
        raw["rules"] = [{"match": rule.match, **rule.parameters} for rule in self.rules]
        raw["slices"] = plain_slices(self.slices)
        raw["modules"] = plain_modules(self.modules)
        raw["output"] = self.output.to_dict()
        raw["search"] = self.search.to_dict()
        raw["executor"] = self.executor.to_dict()
        raw["merges"] = {name: merge.weights_dict() for name, merge in self.merges.items()}
        if self.tool is None:
            # What every recipe had before there were tools.
            del raw["tool"]
        as_json: dict[str, Any] = json.loads(json.dumps(raw))
        return as_json

    def weights_dict(self) -> dict[str, Any]:
        """The part of ``to_dict`` that decides the merged bytes."""
        plain_recipe = self.to_dict()
        if self.tool is not None:
            keys = (*TOOL_KEYS, *(["base_adapter"] if self.base_adapter else []))
            return {key: plain_recipe[key] for key in keys}
        kept = {key: plain_recipe[key] for key in WEIGHT_KEYS}
        unset: tuple[Any, ...] = ([], {}, None, REFUSE)
        return kept | {k: plain_recipe[k] for k in LAYOUT_KEYS if plain_recipe[k] not in unset}

    def __post_init__(self) -> None:
        check_choice("tied_head", self.tied_head, (REFUSE, "untie", "tie"))
        check_choice("missing", self.missing, (REFUSE, "leave_out"))
        check_choice("mixed_architectures", self.mixed_architectures, (REFUSE, "allow"))
        if self.compat is not None:
            check_choice("compat", self.compat, ("mergekit",))

    def sha256(self) -> str:
        """Hex digest of the recipe in canonical JSON, but for where its work is done."""
        content = self.to_dict()
        del content["executor"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _rules(raw: Any, method: methods.Method, sources: Mapping[str, SourceSpec]) -> tuple[Rule, ...]:
    tunable = method.tensor_parameters
    if not isinstance(raw, list | tuple):
        raise ConfigError(f"rules is {raw!r}; write a list of {{match: GLOB, PARAMETER: VALUE}}")
    rules = []
    for i, rule in enumerate(raw):
        where = f"rules[{i}]"
        if not isinstance(rule, Mapping) or not isinstance(rule.get("match"), str):
            raise ConfigError(f"{where} is {rule!r}; it needs match, a glob over tensor names")
        parameters: dict[str, Any] = {}
        for key, value in rule.items():
            if key == "match":
                continue
            if key not in tunable:
                raise unknown_key(f"{where}.", str(key), ("match", *tunable), method=method.name)
            if isinstance(value, Mapping):
                if key not in method.source_parameters:
                    raise ConfigError(
                        f"{where}.{key} is given for each source, but {key} of {method.name} is "
                        "one value for all"
                    )
                for source in value:
                    if source not in sources:
                        raise unknown_key(f"{where}.{key}.", str(source), tuple(sources))
                parameters[key] = {
                    str(s): read_value(f"{where}.{key}.{s}", v) for s, v in value.items()
                }
            else:
                parameters[key] = read_value(f"{where}.{key}", value)
        rules.append(Rule(rule["match"], parameters))
    return tuple(rules)


def _merges(raw: Any) -> dict[str, Recipe]:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"merges is {raw!r}; write {{NAME: RECIPE}}")
    merges: dict[str, Recipe] = {}
    for name, recipe in raw.items():
        try:
            if not isinstance(recipe, Mapping):
                raise ConfigError(f"it is {recipe!r}; write a recipe")
            merge = merges[str(name)] = Recipe.from_dict(recipe, made=tuple(merges))
            if merge.output.is_adapter:
                raise ConfigError("output.as is adapter, and what is merged again is a model")
        except ConfigError as error:
            raise ConfigError(f"merges.{name}: {error}") from error
    return merges
