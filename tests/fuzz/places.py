"""What is mutated: one small valid file of every kind that mergeops reads, and what reads it."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzz.mlflow_answers import ANSWERS, MODEL_ID, RUN_ID, answering
from fuzz.s3_answers import ENVIRONMENT, storing, write_answers

if TYPE_CHECKING:
    from mergeops.recipe import Recipe

SERVER = hashlib.sha256(b"http://server").hexdigest()[:32]
SOURCES = ("in/a", "in/b")
MERGEKIT = """merge_method: ties
base_model: in/base
models:
- model: in/a
  parameters:
    weight: [0.2, 0.8]
    density: 0.5
- model: in/b
  parameters:
    weight:
    - filter: mlp
      value: 0.3
    - value: 0.7
parameters:
  normalize: true
tokenizer:
  source: union
  tokens:
    <s>:
      source: in/a
dtype: float32
slices:
"""
RECIPE = """# @package _global_
method: {name: ties, density: 0.5}
base: in/base
seed: 3
name: of-${seed}
sources:
  a:
    uri: in/a
    weight: 0.5
  b: {uri: in/b}
rules:
- match: '*mlp*'
  density: 0.3
evaluate:
  tasks: [arc_easy]
  metrics: {arc_easy: acc}
promote:
  alpha: 0.05
tracking:
  experiment: e
path_map: {/old: /new}
dtype: {compute: float32}
"""
STATE = {
    "best_metric": 0.5,
    "best_model_checkpoint": "out/checkpoint-2",
    "global_step": 4,
    "log_history": [
        {"epoch": 1.0, "loss": 2.0, "step": 1},
        {"epoch": 2.0, "eval_loss": 1.5, "step": 2},
        {"epoch": 4.0, "eval_loss": 1.25, "step": 4},
    ],
}
MLMODEL = """artifact_path: model
flavors:
  python_function:
    env: {virtualenv: python_env.yaml}
    loader_module: mlflow.transformers
    python_version: 3.11.0
  transformers:
    peft_adaptor: peft
    source_model_name: in/base
    model_binary: model
    task: text-generation
model_uuid: m-0123456789abcdef0123456789abcdef
run_id: 0123456789abcdef0123456789abcdef
signature: null
"""


class AcceptedError(AssertionError):
    """What was accepted is not right."""


@dataclass(frozen=True)
class FuzzKind:
    """One kind of file."""

    name: str
    files: tuple[str, ...]
    """Patterns of paths that are mutated, relative to the place."""
    act: Callable[[random.Random], None]
    """Reads them, in the place as current directory."""
    weight: int = 1
    """How often it comes up."""
    beside: tuple[str, ...] = ("in/base", *SOURCES)
    """What is read beside the files: patterns of directories and files."""

    def copy(self, template: Path, place: Path) -> None:
        """Copy what is read of the template, which takes less time than all of it."""
        own = (file.split("/")[: 2 if file.startswith("in/") else 1] for file in self.files)
        for name in {*map("/".join, own), *self.beside}:
            for found in template.glob(name):
                target = place / found.relative_to(template)
                target.parent.mkdir(parents=True, exist_ok=True)
                if found.is_dir():
                    shutil.copytree(found, target, symlinks=True, dirs_exist_ok=True)
                else:
                    shutil.copy(found, target)

    def paths(self, place: Path) -> list[Path]:
        """The files of a place that this kind mutates."""
        names = sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file())
        return [place / name for name in names if any(fnmatch.fnmatch(name, f) for f in self.files)]


def build(place: Path) -> None:
    """Make the files, once; takes some seconds."""
    import torch
    from conftest import build_tokenizer
    from peft import LoraConfig, get_peft_model
    from support.gguf_writers import tiny_model, write_gguf
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    import mergeops
    from mergeops.recipe import compose

    logging.disable_progress_bar()
    inputs = place / "in"
    tokenizer = build_tokenizer(110)
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=110, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=16)  # fmt: skip
    for name in ("base", "a", "b"):
        LlamaForCausalLM(config).save_pretrained(inputs / name)
        tokenizer.save_pretrained(inputs / name)
    LlamaForCausalLM(config).save_pretrained(inputs / "shards", max_shard_size="2KB")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(inputs / "base"),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    )
    adapted.save_pretrained(inputs / "lora")
    (inputs / "pickled").mkdir()
    torch.save(LlamaForCausalLM(config).state_dict(), inputs / "pickled" / "pytorch_model.bin")
    config.save_pretrained(inputs / "pickled")
    _leave_pieces(inputs, LlamaForCausalLM(config))
    (inputs / "gguf").mkdir()
    write_gguf(tiny_model("Qwen2"), inputs / "gguf" / "tiny.gguf")
    (place / "recipe.yaml").write_text(RECIPE)
    (place / "mergekit.yml").write_text(MERGEKIT)
    (inputs / "checkpoint-4").mkdir()
    (inputs / "checkpoint-4" / "trainer_state.json").write_text(json.dumps(STATE))
    (inputs / "logged").mkdir()
    (inputs / "logged" / "MLmodel").write_text(MLMODEL)
    for part in ("model", "peft"):
        shutil.copytree(inputs / "lora", inputs / "logged" / part)
    for path, answer in ANSWERS.items():
        file = place / "answers" / f"{path}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(answer))
    write_answers(inputs / "a", place / "s3")
    (place / "notes").mkdir()
    (place / "notes" / "finished.json").write_text(json.dumps(_finished()))
    (place / "notes" / "seen.json").write_text(json.dumps({SERVER: {"runs:/1": "math"}}))
    os.chdir(place)
    # Mutations of what is refused anyway would show nothing.
    for file in ("recipe.yaml", "mergekit.yml"):
        compose(recipe_file=Path(file))
    mergeops.merge(_composed(), "merged")
    _leave_partial(place)
    _keep_trial(place)


def _leave_pieces(inputs: Path, model: Any) -> None:
    """What sharded trainings leave, of one process each."""
    import torch
    import torch.distributed.checkpoint as dcp
    from support.zero_files import make_universal, write_zero2, write_zero3

    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    dcp.save(
        {"model": weights, "optimizer": {"state": {0: torch.ones(3)}}, "step": 2},
        checkpoint_id=inputs / "fsdp" / "pytorch_model_fsdp_0",
        no_dist=True,
    )
    slices = dcp.HuggingFaceStorageWriter(str(inputs / "slices"), save_distributed=True)
    dcp.save(weights, storage_writer=slices, no_dist=True)
    write_zero2(inputs / "zero2", weights)
    write_zero3(inputs / "zero3", weights, 2)
    make_universal(write_zero3(inputs / "universal", weights, 2), weights, flat=True)
    (inputs / "verl").mkdir()
    torch.save(weights, inputs / "verl" / "model_world_size_1_rank_0.pt")
    for folder in ("iter_0000001", "iter_0000002"):
        dcp.save({**weights, "x._extra_state": b"x"}, checkpoint_id=inputs / folder, no_dist=True)
        (inputs / folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')


def _leave_partial(place: Path) -> None:
    """A merge into ``cut`` that died before its last rename."""
    import mergeops

    child = os.fork()
    if child == 0:
        os.rename = lambda *_: os._exit(9)  # type: ignore[assignment]
        try:
            mergeops.merge(_composed(), "cut")
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    # With its manifest it would count as finished; now each tensor is held against the journal.
    (place / ".cut.partial" / "mergeops.json").unlink()


def _keep_trial(place: Path) -> None:
    """A trial that waits for ``sync``."""
    from mergeops.recipe.recipe import Recipe
    from mergeops.sources.source import Source
    from mergeops.tracking.pending import Pending

    sources = {n: Source(n, f"in/{n}", place / "in" / n, "0" * 64) for n in ("a", "b")}
    kept = Pending(
        folder=place / "kept" / "pending" / "0123",
        name="trial",
        plan_digest="0" * 64,
        recipe=Recipe.from_dict(_recipe() | {"method": {"name": "linear"}}),
        plan={"format": 1},
        sources=sources,
        base=None,
        uri="sqlite:///x.db",
        checkpoint=place / "merged",
    )
    kept.note_registration("skills")
    kept.write()


def _recipe(**changes: Any) -> dict[str, Any]:
    return {
        "method": {"name": "linear"},
        "sources": {"a": {"uri": "in/a"}, "b": {"uri": "in/b"}},
        **changes,
    }


def _composed(**changes: Any) -> Recipe:
    return _compose(json.dumps(_recipe(**changes)))


@functools.cache
def _compose(content: str) -> Recipe:
    """The recipe of a mapping: of all that a merge takes, Hydra takes the most."""
    from mergeops.recipe import compose

    return compose(content=json.loads(content))


def _merge(recipe: Recipe, out: str = "out") -> None:
    import mergeops

    merged = mergeops.merge(recipe, out)
    _check_model(Path(out), merged.to_dict()["warnings"])


UNLOADED = ("has no model_type", "cannot read", "whether the merge loads cannot be said")
"""Warnings of results that do not load as they are."""


def _check_model(out: Path, warnings: Sequence[str] = ()) -> None:
    """What was made is whole and finite, and the real library loads it, unless a warning says why
    it does not."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import mergeops

    if problems := mergeops.verify(out).problems:
        raise AcceptedError(f"what was made does not verify: {problems}")
    tensors = [t for shard in out.glob("*.safetensors") for t in load_file(shard).values()]
    if not tensors or not all(torch.isfinite(t).all() for t in tensors):
        raise AcceptedError("what was made is empty or not finite")
    if any(sign in warning for warning in warnings for sign in UNLOADED):
        return
    try:
        AutoModelForCausalLM.from_pretrained(out)
        if (out / "tokenizer.json").is_file():
            AutoTokenizer.from_pretrained(out)
    except Exception as error:
        raise AcceptedError(f"what was made does not load: {error!r}") from error


def merge_full(source: random.Random) -> None:
    """Merge, match tokens or inspect."""
    import mergeops

    changes: dict[str, Any] = {}
    if source.random() < 0.5:
        changes["base"] = "in/base"
    if source.random() < 0.5:
        changes["tokenizer"] = {"source": source.choice(["union", "base", "a"])}
    if source.random() < 0.2:
        mergeops.inspect(_composed(base="in/base"))
        return
    _merge(_composed(**changes))


def merge_shards(source: random.Random) -> None:
    """Merge a sharded model with its twin."""
    sources = {"a": {"uri": "in/shards"}, "b": {"uri": "in/b"}}
    _merge(_composed(sources=sources))


def merge_adapter(source: random.Random) -> None:
    """Merge an adapter."""
    base = {"base": "in/base"} if source.random() < 0.7 else {}
    _merge(
        _composed(base="in/base", sources={"a": {"uri": "in/lora", **base}, "b": {"uri": "in/b"}})
    )


def merge_pickled(source: random.Random) -> None:
    """Convert and merge pickled weights."""
    _merge(_composed(sources={"a": {"uri": "in/pickled"}, "b": {"uri": "in/b"}}))


def merge_pieces(name: str) -> Callable[[random.Random], None]:
    """Merge what a sharded training left where it lies, or put it together."""

    def act(source: random.Random) -> None:
        from mergeops.recover import recover

        if source.random() < 0.5:
            sources = {"a": {"uri": f"in/{name}"}, "b": {"uri": "in/b"}}
            _merge(_composed(base="in/base", sources=sources))
            return
        recover(Path("in", name), Path("out"), base=Path("in/base"))
        _check_model(Path("out"))

    return act


def average(source: random.Random) -> None:
    """Average two checkpoints of Megatron."""
    from mergeops.recover import average_megatron

    average_megatron([Path("in/iter_0000001"), Path("in/iter_0000002")], Path("out"))


def merge_gguf(source: random.Random) -> None:
    """Convert and merge a GGUF file."""
    _merge(_composed(method={"name": "passthrough"}, sources={"a": {"uri": "in/gguf/tiny.gguf"}}))


def read_recipe(source: random.Random) -> None:
    """Compose a recipe file, and write it down again."""
    from mergeops.recipe import Recipe, compose

    recipe = compose(recipe_file=Path("recipe.yaml")).to_dict()
    json.dumps(recipe)
    assert Recipe.from_dict(recipe).to_dict() == recipe or "nan" in str(recipe)


def read_mergekit(source: random.Random) -> None:
    """Compose mergekit's YAML."""
    from mergeops.recipe import compose

    json.dumps(compose(recipe_file=Path("mergekit.yml")).to_dict())


def read_state(source: random.Random) -> None:
    """Read a trainer's losses as adopt does."""
    from mergeops.sources.fingerprint import logged_values
    from mergeops.sources.remote.directory import LocalDirectory, read_json

    state = read_json(LocalDirectory(Path("in/checkpoint-4")), "trainer_state.json") or {}
    for name in ("loss", "eval_loss"):
        json.dumps(logged_values(state, name), allow_nan=False)


def verify_merged(source: random.Random) -> None:
    """Verify a merge, then merge into its directory again."""
    import mergeops

    mergeops.verify("merged")
    mergeops.merge(_composed(), "merged")


def go_on(source: random.Random) -> None:
    """Go on with a merge that was cut off."""
    _merge(_composed(), "cut")


def read_pending(source: random.Random) -> None:
    """Read the trials that wait."""
    from mergeops.tracking import pending_trials

    for kept in pending_trials(Path("kept")):
        dataclasses.replace(kept)
        assert kept.is_ready in (True, False)


def read_mlmodel(source: random.Random) -> None:
    """Find the checkpoints of a LoggedModel's files."""
    from mergeops.sources.logged_model import read_logged_model
    from mergeops.sources.remote.directory import LocalDirectory

    read = read_logged_model(LocalDirectory(Path("in/logged").absolute()))
    for location in read.locations:
        if not Path(location.directory.shown).resolve().is_relative_to(Path.cwd()):
            raise AcceptedError(f"{location.directory.shown} is outside of the model")


def ask_server(source: random.Random) -> None:
    """Find what runs and models are, as a server tells it."""
    from mergeops.recipe import TrackingSpec
    from mergeops.sources import resolve_uri
    from mergeops.store import Subjects, glance

    with answering(Path("answers")) as uri:
        spec = TrackingSpec(uri=uri, experiment="e", timeout_s=2)
        about = Subjects(experiment="e", runs=(RUN_ID,), version=("skills", 3), names=("skills",))
        glance(spec, about)
        kind = source.randrange(5)
        if kind == 4:
            import mergeops

            json.dumps(mergeops.adopt("e", tracking_uri=uri, dry_run=True).to_dict())
            return
        named = [f"runs:/{RUN_ID}", f"models:/{MODEL_ID}", "models:/skills/3", "models:/skills@a"]
        resolve_uri(named[kind], cache_dir=Path("mergeops-work/cache"), tracking=spec)


def ask_store(source: random.Random) -> None:
    """Download a model from a bucket, whatever the store says of it."""
    from mergeops.sources import resolve_uri

    with storing(Path("s3"), Path("in/a")) as address:
        os.environ.update(ENVIRONMENT, MLFLOW_S3_ENDPOINT_URL=address)
        found = resolve_uri("s3://bucket/m", cache_dir=Path("mergeops-work/cache"))
    for file in found.path.glob("*.safetensors"):
        if file.read_bytes() != Path("in/a/model.safetensors").read_bytes():
            raise AcceptedError(f"{file.name} has other bytes than the store's")


def read_notes(source: random.Random) -> None:
    """Read what commands of this user kept for the next ones."""
    from mergeops.recipe import Recipe
    from mergeops.store import seen
    from mergeops.tracking import Beginning, recall

    beginning = Beginning(Recipe.from_dict(_recipe()))
    kept = Path("mergeops-work", "finished", f"{str(beginning.key)[:32]}.json")
    kept.parent.mkdir(parents=True)
    shutil.copy("notes/finished.json", kept)
    if source.random() < 0.8:
        _seal(kept, str(beginning.key))
    if recall(beginning) is not None:
        raise AcceptedError("a note of nothing that is there was believed")
    os.environ["XDG_CACHE_HOME"] = str(Path("notes").absolute())
    Path("notes/mergeops").mkdir()
    shutil.copy("notes/seen.json", "notes/mergeops/seen.json")
    json.dumps(seen("http://server"))


def _seal(file: Path, key: str) -> None:
    """Make the note one of this trial and of the files that are there, with its own digest."""
    from mergeops.checkpoint import look_at

    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        kept, was = json.loads(file.read_text()), _finished()["note"]
        note = kept["note"]
        note["key"] = key
        for places, seen in (("inputs", "seen"), ("made", "seen_made")):
            if note[places] == was[places] and note[seen] == was[seen]:
                note[seen] = look_at(map(Path, note[places]))
        text = json.dumps(note, sort_keys=True)
        kept["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        file.write_text(json.dumps(kept))


def _finished() -> dict[str, Any]:
    note = {
        "key": "0" * 64,
        "inputs": ["in/a"],
        "seen": {"in/a": []},
        "made": ["merged"],
        "seen_made": {},
        "about": {"experiment": "e", "runs": ["1"], "version": None},
        "said": "0" * 64,
        "hub": [],
        "result": {"name": "linear", "notes": []},
    }
    return {"format": 1, "sha256": "0" * 64, "note": note}


KINDS = (
    FuzzKind("safetensors", ("in/a/model.safetensors",), merge_full, 3),
    FuzzKind("model config", ("in/a/config.json", "in/a/generation_config.json"), merge_full, 3),
    FuzzKind("tokenizer", ("in/a/tokenizer*.json", "in/a/*.jinja"), merge_full, 4),
    FuzzKind("index", ("in/shards/*.index.json",), merge_shards, 2),
    FuzzKind("shards", ("in/shards/*.safetensors",), merge_shards),
    FuzzKind("adapter config", ("in/lora/adapter_config.json",), merge_adapter, 3),
    FuzzKind("adapter", ("in/lora/*.safetensors",), merge_adapter, 2),
    FuzzKind("pickle", ("in/pickled/*.bin",), merge_pickled, 2),
    FuzzKind("dcp index", ("in/fsdp/*/.metadata",), merge_pieces("fsdp"), 3),
    FuzzKind("dcp payload", ("in/fsdp/*/*.distcp",), merge_pieces("fsdp"), 2),
    FuzzKind("slices", ("in/slices/*.safetensors",), merge_pieces("slices"), 2),
    FuzzKind("zero 2", ("in/zero2/*/*.pt", "in/zero2/latest"), merge_pieces("zero2")),
    FuzzKind("zero 3", ("in/zero3/*/*.pt",), merge_pieces("zero3"), 2),
    FuzzKind(
        "universal",
        ("in/universal/*/*.pt", "in/universal/*/zero/*/*.pt"),
        merge_pieces("universal"),
    ),
    FuzzKind("verl", ("in/verl/*.pt",), merge_pieces("verl")),
    FuzzKind("megatron", ("in/iter_*/*",), average, 2, ()),
    FuzzKind("GGUF", ("in/gguf/*.gguf",), merge_gguf, 2),
    FuzzKind("recipe", ("recipe.yaml",), read_recipe, 3, ()),
    FuzzKind("mergekit", ("mergekit.yml",), read_mergekit, 3, ()),
    FuzzKind("trainer state", ("in/checkpoint-4/*.json",), read_state, 1, ()),
    FuzzKind("manifest", ("merged/mergeops.json",), verify_merged, 2),
    FuzzKind("journal", (".cut.partial/journal.jsonl", ".cut.partial/*.safetensors"), go_on, 2),
    FuzzKind("MLmodel", ("in/logged/MLmodel",), read_mlmodel, 2, ()),
    FuzzKind("MLflow answers", ("answers/*/*.json",), ask_server, 4, ("*",)),
    FuzzKind("S3 answers", ("s3/*.json", "s3/*.xml"), ask_store, 2, ("in/a",)),
    FuzzKind("notes", ("notes/*.json",), read_notes, 1, ("in/a", "merged")),
    FuzzKind(
        "pending trial", ("kept/pending/*/trial.json",), read_pending, 2, (*SOURCES, "merged")
    ),
)
