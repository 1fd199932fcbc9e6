"""Fixtures for everybody: tiny random Llama checkpoints in Hugging Face layout, no download."""

from __future__ import annotations

import os
import re
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ("support.tracking_case", "support.training_runs", "support.user_place")

HEAVY = re.compile(
    r"\b(torch|transformers|mlflow|lm_eval|peft|trl|tiny_\w+|\w+_server|tracking_case|trained|new_store|place|user_place)\b"
)
"""What a test file names that takes seconds to import or to make."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="pass over files that need torch, MLflow or a server"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``--quick``, leave out what ``make check`` has no time for."""
    name = collection_path.name
    if not config.getoption("--quick") or not name.startswith("test_") or name == "test_house.py":
        return None
    return HEAVY.search(collection_path.read_text(encoding="utf-8")) is not None or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start servers and processes come first: they wait, while others compute."""
    waiting = {
        item.path
        for item in items
        if item.get_closest_marker("integration") or item.get_closest_marker("slow")
    }
    items.sort(key=lambda item: item.path not in waiting)


@pytest.fixture(autouse=True)
def no_registry_is_left() -> Iterator[None]:
    """A connection in this process tells MLflow its registry, which the next test has not."""
    before = os.environ.get("MLFLOW_REGISTRY_URI")
    yield
    registry: Any = sys.modules.get("mlflow.tracking._model_registry.utils")
    if registry is not None:
        registry._registry_uri = None
    os.environ.pop("MLFLOW_REGISTRY_URI", None)
    if before is not None:
        os.environ["MLFLOW_REGISTRY_URI"] = before


SPECIAL_TOKENS = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
}
BIGRAMS = "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"


def build_tokenizer(vocabulary_size: int = 128, *, first: str = "") -> Any:
    """A character BPE of exactly ``vocabulary_size`` tokens that can encode any ASCII text.

    Args:
        vocabulary_size: at least 100.
        first: characters whose ids come first: another order is another vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    characters = "".join(chr(i) for i in range(32, 127)) + "\n"
    characters = first + "".join(c for c in characters if c not in first)
    tokens = [*SPECIAL_TOKENS.values(), *characters]
    merges = [(pair[0], pair[1]) for pair in BIGRAMS.split()][: vocabulary_size - len(tokens)]
    tokens += [a + b for a, b in merges]
    tokens += [f"<extra{i}>" for i in range(vocabulary_size - len(tokens))]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=128, **SPECIAL_TOKENS
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """``build_tokenizer``, for tests that need another one."""
    return build_tokenizer


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A factory of tiny random Llama directories; copy one before you change it.

    ``tiny_llama()`` makes a fresh random model. ``tiny_llama(like=base, seed=1)`` is a
    fine-tune: base plus noise. Each call makes a new directory.
    """

    def make(
        *,
        seed: int = 0,
        like: Path | None = None,
        noise: float = 0.01,
        layers: int = 2,
        hidden: int = 32,
        vocabulary_size: int = 128,
        dtype: str = "float32",
        tied: bool = False,
        tokenizer: Any = None,
        max_shard_size: str = "5GB",
        path: Path | None = None,
    ) -> Path:
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

        tokenizer = tokenizer or build_tokenizer(vocabulary_size)
        generator = torch.Generator().manual_seed(seed)
        if like is None:
            config = LlamaConfig(
                vocab_size=vocabulary_size,
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                tie_word_embeddings=tied,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            model = LlamaForCausalLM(config)
            scale = 0.05
        else:
            model = AutoModelForCausalLM.from_pretrained(like, dtype=torch.float32)
            scale = noise
        with torch.no_grad():
            for parameter in model.parameters():
                change = torch.randn(parameter.shape, generator=generator) * scale
                if like is None and parameter.dim() == 1:
                    change += 1.0
                parameter.copy_(parameter + change if like is not None else change)
        folder = path or tmp_path_factory.mktemp("llama")
        model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_lora(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A factory of random LoRA adapters (PEFT layout) on a ``tiny_llama`` directory."""

    def make(base: Path, *, seed: int = 0, path: Path | None = None, **config: Any) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **config}
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base),
            LoraConfig(task_type="CAUSAL_LM", **settings),
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator) * 0.1
                    parameter.copy_(noise)
        folder = path or tmp_path_factory.mktemp("lora")
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., Any]:
    """Plans from directories: ``plan_of({"name": "ties"}, base, {"a": path}, seed=1)``.

    A source given as a pair (adapter, base of the adapter) is a LoRA adapter.
    """
    from mergeops.checkpoint import adapter_sha256, weights_sha256
    from mergeops.planning.planner import make_plan
    from mergeops.recipe.recipe import Recipe
    from mergeops.sources.source import Source

    def source(name: str, place: Any) -> Any:
        if isinstance(place, tuple):
            adapter, base = place
            digest = adapter_sha256(adapter, weights_sha256(base))
            return Source(name, f"file:{name}", adapter, digest, adapter_base=base)
        return Source(name, f"file:{name}", place, weights_sha256(place))

    def make(
        method: dict[str, Any],
        base: Path | None,
        sources: dict[str, Any],
        parameters: dict[str, dict[str, Any]] | None = None,
        **recipe: Any,
    ) -> Any:
        written = {
            "method": method,
            "base": "file:base" if base else None,
            "sources": {n: {"uri": f"file:{n}", **(parameters or {}).get(n, {})} for n in sources},
            **recipe,
        }
        return make_plan(
            Recipe.from_dict(written),
            source("base", base) if base else None,
            {name: source(name, place) for name, place in sources.items()},
        )

    return make
