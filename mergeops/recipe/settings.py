"""Settings that never change merged bytes: output, scoring, tracking, search and the gate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError
from mergeops.schema import (
    build,
    check_choice,
    check_range,
    convert,
    key_of_field,
    unknown_key,
)

AS = MODEL, ADAPTER = ("model", "adapter")
"""What a merge may be written as."""

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


@dataclass(frozen=True)
class OutputSpec:
    """Where work is kept, and how checkpoints are written."""

    dir: str = "mergeops-work"
    """Merges, scores and caches; safe to delete once everything is in MLflow."""
    shard_size: str = "5GB"
    """Largest safetensors file: a number with KB, MB, GB (powers of 1000) or KiB, MiB, GiB."""
    device: str = "auto"
    """Device of the merge arithmetic: auto, cpu, cuda or cuda:N."""
    cache_limit: str | None = None
    """What downloads may take on disk, as shard_size is written; the longest unused leave first.
    Null takes what the disk has."""
    as_: str = MODEL
    """What ``mergeops merge`` writes: model, the full weights; or adapter, a LoRA adapter of the
    base, where the merge is one."""

    def __post_init__(self) -> None:
        check_choice("output.as", self.as_, AS)

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is wanted."""
        return self.as_ == ADAPTER

    def to_dict(self) -> dict[str, Any]:
        """As ``build`` reads it; what every recipe had before there was a choice is left out."""
        plain = {key_of_field(name): value for name, value in asdict(self).items()}
        if self.as_ == MODEL:
            del plain["as"]
        return plain


@dataclass(frozen=True)
class EvaluateSpec:
    """What is scored with the lm-eval harness, and how."""

    tasks: tuple[str, ...] = ()
    """lm-eval task, group or tag names, paths of task YAML files, patterns like * for tasks in
    include_path, or a text file (.txt, .md), which is scored in bits per byte."""
    include_path: str | None = None
    """A directory of task YAML files whose names ``tasks`` may use."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Metric of a task, e.g. {my_task: exact_match}; else acc where the task has it, else its
    first metric."""
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    """Whether more of a task's metric is better, e.g. {my_task: false}, where neither the task's
    file nor lm-eval says so."""
    num_fewshot: int | None = None
    """In-context examples; null keeps what the task says."""
    limit: int | float | None = None
    """At most this many items of each part of each task, or below 1 this share of them (for a quick
    look)."""
    batch_size: int = 32
    """Fixed for every model, since the batch size moves scores in the last digits."""
    max_length: int | None = None
    """Context length in tokens; null takes the model's own."""
    dtype: str = "auto"
    """auto (as stored), bfloat16, float16 or float32."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; with auto and cuda, several models are scored on all GPUs."""
    backend: str = "auto"
    """auto and mergeops compute what requests share once, and where a model does not allow it leave
    it to lm-eval; hf is lm-eval's own model to the last digit; vllm is lm-eval's, and has to be
    installed."""
    apply_chat_template: bool = False
    """Wrap prompts in the tokenizer's chat template."""
    system_instruction: str | None = None
    """Said first in every prompt, before the task's own description: the system's turn, or with no
    chat template plain text."""
    fewshot_as_multiturn: bool = True
    """In a chat template, examples are turns of their own, as in lm-eval; else one user turn."""
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is given beside the turns, e.g. {reasoning_effort: low}."""
    enable_thinking: bool | None = None
    """Given to the chat template where it is set; true needs think_end_token, and tasks that let
    the model write."""
    think_end_token: str | int | None = None
    """What ends a thinking model's thoughts, e.g. </think>, or its token id: the answer is what
    comes after the last one. Null leaves thoughts in the answer, as lm-eval does."""
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Over the generation_kwargs of every task that lets the model write, e.g. {max_gen_toks: 4096}
    for a model that thinks."""
    confirm_fraction: float = 0.5
    """Share of each task's items kept for the confirm part, which no choice may see."""
    split_salt: str = ""
    """Another salt gives another split of the items into dev and confirm."""
    seed: int = 1234
    """Seed of the few-shot draws, and of answers that are drawn."""
    clusters: Mapping[str, str] = field(default_factory=dict)
    """Task -> the field of its items that names what they share, e.g. {squad: title}: standard
    errors then count clusters, not items."""
    agreement: str | None = None
    """A text file (.txt, .md): how often the merge and each parent would go on with the same token.
    It says how far the merge is from them; nothing is chosen by it."""

    def __post_init__(self) -> None:
        check_range("evaluate.batch_size", self.batch_size, 1, None)
        check_range("evaluate.confirm_fraction", self.confirm_fraction, 0.0, 0.95)
        if self.limit is not None and not (0 < self.limit < 1 or isinstance(self.limit, int)):
            raise ConfigError(
                f"evaluate.limit is {self.limit!r}; it takes a whole number of items, or a share "
                "of them between 0 and 1"
            )
        if isinstance(self.limit, int):
            check_range("evaluate.limit", self.limit, 1, None)
        if self.num_fewshot is not None:
            check_range("evaluate.num_fewshot", self.num_fewshot, 0, None)
        if self.enable_thinking and self.think_end_token is None:
            raise ConfigError(
                "evaluate.enable_thinking is true, which needs evaluate.think_end_token: what ends "
                "the thoughts, e.g. evaluate.think_end_token='</think>'"
            )
        if self.backend == "vllm" and isinstance(self.think_end_token, int):
            raise ConfigError(
                f"evaluate.think_end_token is {self.think_end_token}, and evaluate.backend=vllm "
                "takes the text, not the token's id; e.g. evaluate.think_end_token='</think>'"
            )
        if (self.enable_thinking is not None or self.chat_template_args) and (
            not self.apply_chat_template
        ):
            key = "chat_template_args" if self.chat_template_args else "enable_thinking"
            raise ConfigError(
                f"evaluate.{key} is for a chat template; set evaluate.apply_chat_template=true too"
            )
        check_choice("evaluate.dtype", self.dtype, ("auto", "bfloat16", "float16", "float32"))
        check_choice("evaluate.backend", self.backend, ("auto", "mergeops", "hf", "vllm"))

    @property
    def texts(self) -> list[Path]:
        """That of ``agreement``, where it names one."""
        return [] if self.agreement is None else [Path(self.agreement).expanduser()]


@dataclass(frozen=True)
class TrackingSpec:
    """Where trials are logged."""

    uri: str | None = None
    """MLflow tracking URI; null takes MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here."""
    registry_uri: str | None = None
    """MLflow registry URI; null takes the tracking URI."""
    workspace: str | None = None
    """Workspace of the MLflow server; null takes MLFLOW_WORKSPACE, else the server's default."""
    experiment: str = "mergeops"
    """The experiment that holds trials and the scores of their parents."""
    registered_model: str = "merged"
    """The registered model whose versions are the merges."""
    register: str = "scored"
    """scored: only a merge with scores becomes a version; unscored: one without them too."""
    timeout_s: int = 20
    """How long to wait for the server before saying that it cannot be reached."""
    offline: bool = False
    """Work without the server: trials are kept on disk until `mergeops sync` logs them."""
    heat_maps: bool = True
    """Log norms, cosines and sign conflicts of the task vectors per layer with each trial; costs a
    pass over the sources' weights."""

    def __post_init__(self) -> None:
        for key in ("experiment", "registered_model"):
            if len(getattr(self, key)) > 250:
                raise ConfigError(
                    f"tracking.{key} has {len(getattr(self, key))} characters; at most 250 are "
                    "allowed, as MLflow's databases hold no more"
                )
        if not self.registered_model or set(self.registered_model) & set("/:"):
            raise ConfigError(
                f"tracking.registered_model is {self.registered_model!r}; MLflow allows any name "
                "without '/' and ':'"
            )
        check_choice("tracking.register", self.register, ("scored", "unscored"))


@dataclass(frozen=True)
class SearchSpec:
    """How ``mergeops search`` proposes trials."""

    strategy: str = "greedy_soup"
    """A file of mergeops/search, or what a plug-in registers."""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"grid": {}})
    """The strategy's own, written beside its name; it alone knows which there are."""

    @classmethod
    def from_dict(cls, raw: Any) -> SearchSpec:
        """Read the names and values; the strategy checks them with ``read``.

        Raises:
            ConfigError: no mapping, or a strategy that is no text.
        """
        parameters = convert("search", {} if raw is None else raw, Mapping[str, Any])
        strategy = convert("search.strategy", parameters.pop("strategy", cls.strategy), str)
        if strategy in ("greedy_soup", "grid"):
            # Recipes of these two always have a grid, and a recipe's digest names its search.
            parameters = {"grid": {}, **parameters}
        return cls(strategy, parameters)

    def to_dict(self) -> dict[str, Any]:
        """In the shape that ``from_dict`` reads."""
        return {"strategy": self.strategy, **self.parameters}

    def read(self, parameters: type[Any]) -> Any:
        """The parameters as the dataclass of the strategy.

        Raises:
            ConfigError: an unknown key, or a value that the dataclass refuses.
        """
        known = [f.name for f in fields(parameters)]
        for key in self.parameters:
            if key not in known:
                raise unknown_key("search.", key, ("strategy", *known))
        return build(parameters, self.parameters, "search.")

    def filled(self, parameters: type[Any]) -> SearchSpec:
        """The same with every parameter of the strategy; raises as ``read``."""
        return SearchSpec(self.strategy, asdict(self.read(parameters)))


@dataclass(frozen=True)
class HooksSpec:
    """What is told of a promotion or rollback, after it is done."""

    command: tuple[str, ...] = ()
    """A program and its arguments; the change is JSON on its standard input."""
    webhook: str | None = None
    """An http(s) URL that the change is posted to, signed with HMAC-SHA256."""
    secret_env: str = "MERGEOPS_WEBHOOK_SECRET"
    """The environment variable that holds the webhook's secret."""
    attempts: int = 4
    """Tries of one command; what still fails is tried again by the next one."""
    backoff_s: float = 1.0
    """Wait before the second try, doubled before each further one."""
    timeout_s: float = 30.0
    """Of one try."""

    def __post_init__(self) -> None:
        check_range("promote.hooks.attempts", self.attempts, 1, 20)
        check_range("promote.hooks.backoff_s", self.backoff_s, 0.0, 600.0)
        check_range("promote.hooks.timeout_s", self.timeout_s, 0.1, 3600.0)
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise ConfigError(f"promote.hooks.webhook is {self.webhook!r}; write an http(s):// URL")


@dataclass(frozen=True)
class PromoteSpec:
    """The gate: what a merge must show on the confirm part to become @champion."""

    alpha: float = 0.05
    """The chance of ever promoting a merge that is not better, over all uses of the confirm part
    together; the k-th use is tested at alpha / (k (k + 1))."""
    against: tuple[str, ...] = ("best_parent", "champion", "base")
    """References to beat, of those that there are: best_parent (by dev score), champion, base."""
    primary: tuple[str, ...] = ()
    """Tasks whose items, pooled, must be better; empty means all of evaluate.tasks."""
    retain: tuple[str, ...] = ()
    """Tasks that may not be lost on; empty means all of evaluate.tasks."""
    margin: float = 0.05
    """None of them may be worse than on the reference by more than this (score units) ..."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """... or by this, for a single task, e.g. {spelling: 0.1} ..."""
    confidence: float = 0.95
    """... with this one-sided confidence; it holds for floors and bits_per_byte too."""
    floors: Mapping[str, float] = field(default_factory=dict)
    """Scores that must be reached whatever the references do, e.g. {arithmetic: 0.6}; where lower
    is better, scores that may not be exceeded."""
    bits_per_byte: Mapping[str, float] = field(default_factory=dict)
    """Perplexity tasks, scored at promotion only, and by how many bits per byte each may rise over
    each reference, e.g. {wikitext: 0.02}."""
    approval: bool = False
    """Promote only proposes (@challenger); another user completes with `mergeops approve`."""
    hooks: HooksSpec = field(default_factory=HooksSpec)

    def __post_init__(self) -> None:
        check_range("promote.alpha", self.alpha, 1e-9, 0.5)
        check_range("promote.margin", self.margin, 0.0, 1.0)
        for task, margin in self.margins.items():
            check_range(f"promote.margins.{task}", margin, 0.0, 1.0)
        for task, rise in self.bits_per_byte.items():
            check_range(f"promote.bits_per_byte.{task}", rise, 0.0, 8.0)
        check_range("promote.confidence", self.confidence, 0.5, 0.999999)
        for i, reference in enumerate(self.against):
            check_choice(f"promote.against[{i}]", reference, ("best_parent", "champion", "base"))


def parse_size(where: str, text: str) -> int:
    """``5GB`` -> bytes.

    Raises:
        ConfigError: no number, no known unit, or nothing at all.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    size = int(float(found.group(1)) * _UNITS.get(found.group(2), 0)) if found else 0
    if size < 1:
        raise ConfigError(
            f"{where} is {text!r}; write a number with one of {', '.join(_UNITS)}, e.g. 5GB"
        )
    return size
