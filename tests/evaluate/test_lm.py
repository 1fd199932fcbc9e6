"""The mergeops model of lm-eval: HFLM's numbers, shared computation, and a way back."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import EXPERTS, SIZES

LONG = {**SIZES, "max_position_embeddings": 512}
GEMMA = {**LONG, "head_dim": 8, "tie_word_embeddings": True, "sliding_window": 20}
PLAIN = {k: v for k, v in LONG.items() if k != "num_key_value_heads"}
PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", LONG),
    "mistral with a window": ("MistralForCausalLM", {**LONG, "sliding_window": 7}),
    "qwen2 with windows in some layers": (
        "Qwen2ForCausalLM",
        {**LONG, "use_sliding_window": True, "sliding_window": 11, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3ForCausalLM", {**LONG, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", GEMMA),
    "gemma3": ("Gemma3ForCausalLM", {**GEMMA, "num_hidden_layers": 7}),
    "phi3 with a window": ("Phi3ForCausalLM", {**LONG, "pad_token_id": 0, "sliding_window": 9}),
    "mixtral": ("MixtralForCausalLM", {**LONG, **EXPERTS}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**PLAIN, "rotary_pct": 0.5}),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    ),
    "opt": (
        "OPTForCausalLM",
        {**PLAIN, "ffn_dim": 64, "word_embed_proj_dim": 32},
    ),
}
UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": (
        "MambaForCausalLM",
        {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        "layers of kind linear_attention",
    ),
    "bloom": (
        "BloomForCausalLM",
        {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "it takes no packed rows",
    ),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {
            "vocab_size": 128,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
            "max_position_embeddings": 2048,
        },
        "packed, its log-probabilities change by",
    ),
}


@pytest.fixture(autouse=True)
def _nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build(name: str, settings: dict[str, Any]) -> Any:
    """A random model whose attention matters: large weights."""
    import torch
    import transformers

    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**settings)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def requests() -> list[Any]:
    """Choices of several tokens and of one; items alone, behind the same and behind own shots."""
    from lm_eval.api.instance import Instance

    rng = random.Random(1)

    def words(n: int) -> str:
        return "".join(rng.choice("abcdefghij ") for _ in range(n)).strip() + "x"

    fixed = words(90)
    pairs = []
    for _ in range(4):
        for before in ("", fixed, words(70)):
            context = before + words(rng.randrange(1, 40))
            choices = [words(n) for n in (1, 4, 9)] if before else list("pqr")
            pairs += [(context, " " + choice) for choice in choices]
    pairs += [("", "ab"), ("a", " b"), ("ab ", "c"), ("a" * 500, " bc"), ("a" * 505, " bcdefghijk")]
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def answers(model: Any, tokenizer: Any, asked: list[Any]) -> tuple[Any, list[Any], list[Any]]:
    from lm_eval.models.huggingface import HFLM

    from mergeops.evaluate.lm import TreeLM

    options = {"tokenizer": tokenizer, "batch_size": 8, "max_length": 512}
    ours = TreeLM(model, **options)
    theirs = HFLM(model, **options).loglikelihood(asked, disable_tqdm=True)
    return ours, ours.loglikelihood(asked, disable_tqdm=True), theirs


@pytest.mark.parametrize("name", PACKED)
def test_packed_log_likelihoods_are_those_of_lm_eval(
    name: str, tiny_tokenizer: Callable[..., Any]
) -> None:
    ours, mine, theirs = answers(build(*PACKED[name]), tiny_tokenizer(), requests())
    assert ours.fallback is None
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
    # Of weights this large a log-likelihood of -70 has no more digits in float32.
    assert [ll for ll, _ in mine] == pytest.approx([ll for ll, _ in theirs], abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("name", UNFIT)
def test_a_model_that_cannot_be_packed_is_left_to_lm_eval_and_that_is_said(
    name: str, tiny_tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    architecture, settings, why = UNFIT[name]
    ours, mine, theirs = answers(build(architecture, settings), tiny_tokenizer(), requests())
    assert why in ours.fallback
    assert mine == theirs
    said = [r.getMessage() for r in caplog.records if r.name == "mergeops.evaluate.lm"]
    assert len(said) == 1
    assert why in said[0]


def test_a_model_that_changes_its_ways_beyond_some_length_is_found_out_there(
    tiny_tokenizer: Callable[..., Any],
) -> None:
    """gpt_neo's window of 16 shows in no request that is shorter."""
    from lm_eval.api.instance import Instance

    from mergeops.evaluate.lm import TreeLM

    ours = TreeLM(build(*UNFIT["gpt_neo"][:2]), tokenizer=tiny_tokenizer(), max_length=512)
    short = [Instance("loglikelihood", {}, ("abc", f" {c}"), 0) for c in "xyz"]
    ours.loglikelihood(short, disable_tqdm=True)
    assert ours.fallback is None
    long = [Instance("loglikelihood", {}, ("abc" * 20, f" {c}"), 0) for c in "xyz"]
    ours.loglikelihood(long, disable_tqdm=True)
    assert ours.fallback is not None


def test_a_window_longer_than_every_request_and_shorter_than_a_row_is_found_out(
    tiny_tokenizer: Callable[..., Any],
) -> None:
    """gpt_neo counts its window in places of the row: 24 requests of 44 tokens pass it."""
    from lm_eval.api.instance import Instance

    name, settings, why = UNFIT["gpt_neo"]
    model = build(name, {**settings, "window_size": 100})
    rng = random.Random(3)
    choices = [" " + "".join(rng.choice("abcdefghij") for _ in range(12)) for _ in range(24)]
    context = "".join(rng.choice("abcdefghij") for _ in range(30)) + "x"
    asked = [Instance("loglikelihood", {}, (context, choice), 0) for choice in choices]
    ours, mine, theirs = answers(model, tiny_tokenizer(), asked)
    assert why in str(ours.fallback)
    assert mine == theirs


def test_what_agreed_is_not_compared_again_for_models_of_one_kind(
    tiny_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from lm_eval.api.instance import Instance

    from mergeops.evaluate.lm import TreeLM

    compared: list[int] = []
    compare = TreeLM._packed_differs

    def spy(lm: Any, longest: list[int], width: int) -> str | None:
        compared.append(len(longest))
        return compare(lm, longest, width)

    monkeypatch.setattr(TreeLM, "_packed_differs", spy)

    def ask(model: Any, length: int) -> list[int]:
        compared.clear()
        asked = [Instance("loglikelihood", {}, ("a" * length, c), 0) for c in "bcd"]
        lm = TreeLM(model, tokenizer=tiny_tokenizer(), batch_size=8, max_length=512)
        lm.loglikelihood(asked, disable_tqdm=True)
        assert lm.fallback is None
        return compared

    name, settings = PACKED["mistral with a window"]
    assert ask(build(name, settings), 30) == [30]
    other = build(name, settings)
    torch.nn.init.normal_(other.lm_head.weight)
    assert ask(other, 30) == []
    assert ask(other, 20) == []
    assert ask(other, 40) == [40]
    assert ask(build(name, settings), 35) == []
    # Whatever may compute otherwise is compared.
    assert ask(build(name, {**settings, "sliding_window": 8}), 30) == [30]
    assert ask(build(name, settings).to(torch.float64), 30) == [30]
    eager = build(name, settings)
    eager.set_attn_implementation("eager")
    assert ask(eager, 30) == [30]
    hooked = build(name, settings)
    hooked.model.layers[0].register_forward_hook(lambda *_: None)
    patched = build(name, settings)
    patched.model.forward = types.MethodType(type(patched.model).forward, patched.model)
    own = build(name, settings)
    own.model.norm = type("OwnNorm", (type(own.model.norm),), {"__module__": __name__})(32)
    for model in (hooked, patched, own):
        assert ask(model, 30) == [30]
        assert ask(model, 30) == [30]
    # What is damaged says nothing.
    for kept in Path(os.environ["XDG_CACHE_HOME"], "mergeops", "packing").iterdir():
        kept.write_text("[" * 5000)
    assert ask(build(name, settings), 35) == [35]


def test_a_model_that_differs_is_found_out_however_much_is_kept(
    tiny_tokenizer: Callable[..., Any],
) -> None:
    name, settings, why = UNFIT["gpt_neo"]
    wide = {**settings, "window_size": 1024}
    assert answers(build(name, wide), tiny_tokenizer(), requests())[0].fallback is None
    for _ in range(2):
        ours, mine, theirs = answers(build(name, settings), tiny_tokenizer(), requests())
        assert why in ours.fallback
        assert mine == theirs


def test_the_check_reads_few_logits_of_a_row_hardly_wider_than_those_of_the_answers(
    tiny_tokenizer: Callable[..., Any],
) -> None:
    from lm_eval.api.instance import Instance

    from mergeops.evaluate.lm import TreeLM

    model = build(*PACKED["llama"])
    ours = TreeLM(model, tokenizer=tiny_tokenizer(), batch_size=8, max_length=512)
    read, headed = [], []
    model.get_input_embeddings().register_forward_hook(lambda m, i, o: read.append(i[0].shape))
    model.get_output_embeddings().register_forward_hook(lambda m, i, o: headed.append(o.shape))
    asked = [Instance("loglikelihood", {}, ("a" * 300, c * 150), 0) for c in "bcd"]
    ours.loglikelihood(asked, disable_tqdm=True)
    # 32 places at either end of two branches; 449 tokens are read and 64 leave them.
    assert max(places for _, places, _ in headed[:-1]) == 128
    assert max(width for _, width in read) == 449 + 64


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_memory_that_is_short_in_the_check_does_not_change_the_way_of_scoring(
    error: Exception, tiny_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeops.evaluate.lm import TreeLM

    def fail(*_: Any) -> None:
        raise error

    ours = TreeLM(build(*PACKED["llama"]), tokenizer=tiny_tokenizer(), max_length=512)
    monkeypatch.setattr(ours, "_logits", fail)
    with pytest.raises(type(error)):
        ours.loglikelihood(requests(), disable_tqdm=True)
    assert ours.fallback is None


def test_windows_of_packed_rows_count_depth_not_place(tiny_tokenizer: Callable[..., Any]) -> None:
    """With the window left out of the mask, the numbers are others: the test above has teeth."""
    from mergeops.evaluate import lm

    model = build(*PACKED["mistral with a window"])
    model.config.sliding_window = None
    ours, without, _ = answers(model, tiny_tokenizer(), requests())
    model.config.sliding_window = 7
    ours, within, _ = answers(model, tiny_tokenizer(), requests())
    assert ours.fallback is None
    assert max(abs(a[0] - b[0]) for a, b in zip(without, within, strict=True)) > 0.1
    assert lm._layers(model) == ({"sliding_attention"}, 7)


def test_each_shared_token_is_read_once(tiny_tokenizer: Callable[..., Any]) -> None:
    from lm_eval.api.instance import Instance

    from mergeops.evaluate.lm import TreeLM

    model = build(*PACKED["llama"])
    ours = TreeLM(model, tokenizer=tiny_tokenizer(), batch_size=8)
    context = "jihgfedcba" * 4
    asked = [Instance("loglikelihood", {}, (context, f" {c}"), 0) for c in ("ab", "cd", "j", "i")]
    ours.loglikelihood(asked, disable_tqdm=True)  # checks the longest
    read, headed = [], []
    hooks = [
        model.get_input_embeddings().register_forward_hook(lambda m, i, o: read.append(i[0])),
        model.get_output_embeddings().register_forward_hook(lambda m, i, o: headed.append(o)),
    ]
    ours.loglikelihood(asked, disable_tqdm=True)
    for hook in hooks:
        hook.remove()
    # the context, one blank, a and c; read at the blank and before it, at a and at c
    length = len(ours.tok_encode(context)) + 3
    assert [tuple(tokens.shape) for tokens in read] == [(1, length)]
    assert [tuple(logits.shape[:2]) for logits in headed] == [(1, 4)]


def test_one_text_split_in_two_places_is_answered_as_if_asked_alone(
    tiny_tokenizer: Callable[..., Any],
) -> None:
    """lm-eval 0.4.13 groups these two and reads the second's answer at the first's position."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = build(*PACKED["llama"]), tiny_tokenizer()
    asked = [
        Instance("loglikelihood", {}, pair, i) for i, pair in enumerate([("a", "bc"), ("ab", "c")])
    ]
    theirs = HFLM(model, tokenizer=tokenizer, batch_size=1)
    alone = [theirs.loglikelihood([one], disable_tqdm=True)[0] for one in asked]
    _, mine, _ = answers(model, tokenizer, asked)
    assert [ll for ll, _ in mine] == pytest.approx([ll for ll, _ in alone], abs=1e-5)


def test_rolling_log_likelihoods_are_those_of_lm_eval(tiny_tokenizer: Callable[..., Any]) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from mergeops.evaluate.lm import TreeLM

    model = build(*PACKED["llama"])
    options = {"tokenizer": tiny_tokenizer(), "batch_size": 2, "max_length": 64}
    texts = ["abc" * 50, "a", "bca" * 30]
    asked = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    theirs, ours = (
        lm.loglikelihood_rolling(asked, disable_tqdm=True)
        for lm in (HFLM(model, **options), TreeLM(model, **options))
    )
    assert ours == pytest.approx(theirs, abs=1e-3, rel=1e-6)


def test_sixteen_bit_numbers_agree_as_far_as_they_go(tiny_tokenizer: Callable[..., Any]) -> None:
    import torch

    model = build(*PACKED["llama"]).to(torch.bfloat16)
    ours, mine, theirs = answers(model, tiny_tokenizer(), requests())
    assert ours.fallback is None
    assert [ll for ll, _ in mine] == pytest.approx([ll for ll, _ in theirs], rel=0.05, abs=0.5)


def test_a_head_that_is_not_applied_is_noticed(tiny_tokenizer: Callable[..., Any]) -> None:
    import torch

    from mergeops.evaluate.lm import TreeLM

    model = build(*PACKED["llama"])
    unused = torch.nn.Linear(32, 128)
    model.get_output_embeddings = lambda: unused
    ours, mine, theirs = answers(model, tiny_tokenizer(), requests())
    assert ours.fallback == "it takes no packed rows (RuntimeError)"
    assert mine == theirs
    model.get_output_embeddings = lambda: None
    assert "no output head" in str(TreeLM(model, tokenizer=tiny_tokenizer()).fallback)


def test_lm_eval_finds_the_model_by_name_and_its_own_too(tmp_path: Path) -> None:
    """As installed: the package's entry point is all that tells lm-eval of it."""
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    entries = declared["project"]["entry-points"]["torch.backends"]
    info = tmp_path / "installed-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1\n")
    lines = [f"{name} = {target}\n" for name, target in entries.items()]
    (info / "entry_points.txt").write_text("[torch.backends]\n" + "".join(lines))
    code = (
        "import lm_eval, torch; from lm_eval.api.registry import get_model; "
        "print(get_model('mergeops').__module__, get_model('hf').__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert done.stdout.split() == ["mergeops.evaluate.lm", "HFLM"], done.stderr[-2000:]


def test_torch_alone_is_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    from mergeops.lm_eval_plugin import register

    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
    register()
    assert "lm_eval" not in sys.modules


@pytest.mark.parametrize("module", ["lm_eval", "lm_eval.models", "lm_eval.api.registry"])
def test_an_lm_eval_that_is_otherwise_does_not_break_torch(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeops.lm_eval_plugin import register

    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    if module == "lm_eval":
        for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
            monkeypatch.delitem(sys.modules, name)
    register()
