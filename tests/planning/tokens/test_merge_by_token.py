"""Merges of models with different vocabularies, from files to a model that loads and generates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeops.checkpoint import relaid
from mergeops.engine.execute import Tuning, merge
from mergeops.errors import ConfigError, MergeError
from mergeops.kernels.blocks import BLOCK
from mergeops.planning.plan import Plan

Make = Callable[..., Any]
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def base(tiny_llama: Make) -> Path:
    path: Path = tiny_llama()
    return path


@pytest.fixture(scope="module")
def fine(tiny_llama: Make, base: Path) -> dict[str, Path]:
    return {name: tiny_llama(like=base, seed=i) for i, name in enumerate("ab", 1)}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewritten(
    model: Path, out: Path, tensors: dict[str, torch.Tensor], tokenizer: Any = None, **config: Any
) -> Path:
    copy = Path(shutil.copytree(model, out))
    save_file(tensors_of(model) | tensors, copy / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | config))
    if tokenizer is not None:
        tokenizer.save_pretrained(copy)
    return copy


def extended(model: Path, out: Path, tokens: list[str], seed: int, *, special: bool = True) -> Path:
    """The model with tokens added to tokenizer and embeddings, as fine-tuning scripts do it."""
    from transformers import AutoTokenizer
    from transformers.tokenization_utils_base import AddedToken

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in tokens])
    generator = torch.Generator().manual_seed(seed)
    weights = tensors_of(model)
    larger = {
        name: torch.cat([weights[name], torch.randn(len(tokens), 32, generator=generator)])
        for name in (EMBEDDINGS, HEAD)
    }
    rows = larger[HEAD].shape[0]
    return rewritten(model, out, larger, tokenizer, vocab_size=rows)


def permuted(model: Path, out: Path, make_tokenizer: Make) -> tuple[Path, torch.Tensor]:
    """The same model with another order of tokens, and new id -> old id."""
    old = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizer = make_tokenizer(first="zyxw987")
    new = {token: i for token, i in tokenizer.get_vocab().items()}
    order = torch.tensor([old[t] for t in sorted(new, key=lambda token: new[token])])
    weights = tensors_of(model)
    moved = {name: weights[name][order].contiguous() for name in (EMBEDDINGS, HEAD)}
    return rewritten(model, out, moved, tokenizer), order


def generates(folder: Path) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size
    assert max(tokenizer.get_vocab().values()) < model.config.vocab_size
    ids = model.generate(**tokenizer("one two", return_tensors="pt"), max_new_tokens=4)
    return str(tokenizer.decode(ids[0]))


@pytest.mark.parametrize("chunk", [None, BLOCK])
@pytest.mark.parametrize("gap", [0, 1 << 16])
def test_permuted_vocabularies_merge_as_if_they_were_not(
    plan_of: Make,
    base: Path,
    fine: dict[str, Path],
    tiny_tokenizer: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int | None,
    gap: int,
) -> None:
    monkeypatch.setattr(relaid, "GAP_BYTES", gap)
    other, order = permuted(fine["b"], tmp_path / "b", tiny_tokenizer)
    assert (order != torch.arange(128)).sum() > 50
    expected = tensors_of(merge(plan_of({"name": "ties"}, base, fine), tmp_path / "expected"))
    plan = plan_of({"name": "ties"}, base, {**fine, "b": other}, tokenizer={"source": "base"})
    out = merge(plan, tmp_path / "out", tuning=Tuning(chunk=chunk))
    found = tensors_of(out)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    generates(out)


def test_a_sources_own_order_of_tokens(
    plan_of: Make, base: Path, fine: dict[str, Path], tiny_tokenizer: Make, tmp_path: Path
) -> None:
    other, order = permuted(fine["b"], tmp_path / "b", tiny_tokenizer)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"eos_token_id": 77}))
    expected = tensors_of(merge(plan_of({"name": "linear"}, base, fine), tmp_path / "expected"))
    plan = plan_of({"name": "linear"}, base, {**fine, "b": other}, tokenizer={"source": "b"})
    out = merge(plan, tmp_path / "out")
    for name in (EMBEDDINGS, HEAD):
        torch.testing.assert_close(tensors_of(out)[name], expected[name][order], rtol=0, atol=0)
    assert (out / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 77


def test_a_union_of_disjoint_added_tokens(plan_of: Make, base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    one = extended(base, tmp_path / "one", ["<|one|>", "<|uno|>"], seed=1)
    two = extended(base, tmp_path / "two", ["<|two|>"], seed=2, special=False)
    plan = plan_of(
        {"name": "linear"}, base, {"one": one, "two": two}, tokenizer={"source": "union"}
    )
    out = merge(plan, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) == 131
    assert tokenizer("a<|two|>b<|uno|>")["input_ids"][1::2] == [130, 129]
    assert tokenizer.decode([128, 130], skip_special_tokens=True) == "<|two|>"
    found = tensors_of(out)
    assert torch.equal(found[HEAD][128:130], tensors_of(one)[HEAD][128:])
    assert torch.equal(found[HEAD][130:], tensors_of(two)[HEAD][128:])
    # Where the weights are the same, common tokens have the same logits as in each source.
    text = tokenizer("the tests are long", return_tensors="pt")
    logits = {
        place: AutoModelForCausalLM.from_pretrained(place)(**text).logits
        for place in (out, one, two)
    }
    for place in (one, two):
        torch.testing.assert_close(logits[out][..., :128], logits[place][..., :128])
    generates(out)
    assert any("unknown to base" in warning for warning in plan.warnings)


def test_a_token_that_both_sources_added_differently_is_merged_with_itself(
    plan_of: Make, base: Path, tmp_path: Path
) -> None:
    one = extended(base, tmp_path / "one", ["<|a|>", "<|b|>"], seed=1)
    two = extended(base, tmp_path / "two", ["<|b|>", "<|c|>"], seed=2)
    plan = plan_of(
        {"name": "linear"}, base, {"one": one, "two": two}, tokenizer={"source": "union"}
    )
    found = tensors_of(merge(plan, tmp_path / "out"))[EMBEDDINGS]
    first, second = tensors_of(one)[EMBEDDINGS], tensors_of(two)[EMBEDDINGS]
    torch.testing.assert_close(found[128], first[128])
    torch.testing.assert_close(found[129], (first[129] + second[128]) / 2)
    torch.testing.assert_close(found[130], second[129])
    # The base has the mean, too: task vectors are the differences from it.
    plan = plan_of({"name": "task_arithmetic"}, base, {"one": one}, tokenizer={"source": "union"})
    found = tensors_of(merge(plan, tmp_path / "alone"))[EMBEDDINGS]
    torch.testing.assert_close(found[128:], first[128:])


def test_more_rows_than_the_base_are_cut_for_base_and_kept_for_the_source(
    plan_of: Make, base: Path, fine: dict[str, Path], tmp_path: Path
) -> None:
    larger = extended(fine["b"], tmp_path / "larger", ["<|x|>"], seed=1)
    sources = {"a": fine["a"], "larger": larger}
    match = r"128 rows in base and 129 in larger; .*=base .*=larger .*=union"
    with pytest.raises(MergeError, match=match):
        plan_of({"name": "ties"}, base, sources)
    expected = tensors_of(merge(plan_of({"name": "ties"}, base, fine), tmp_path / "expected"))
    kept = merge(
        plan_of({"name": "ties"}, base, sources, tokenizer={"source": "base"}), tmp_path / "base"
    )
    assert all(torch.equal(tensors_of(kept)[name], expected[name]) for name in expected)
    assert json.loads((kept / "config.json").read_text())["vocab_size"] == 128
    plan = plan_of({"name": "ties"}, base, sources, tokenizer={"source": "larger"})
    out = merge(plan, tmp_path / "all")
    assert tensors_of(out)[HEAD].shape == (129, 32)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 129
    generates(out)


def test_rows_of_padding_stay_and_more_are_the_mean(
    plan_of: Make, base: Path, fine: dict[str, Path], tmp_path: Path
) -> None:
    padded = {
        name: torch.cat([tensor, torch.full((4, 32), 7.0)])
        for name, tensor in tensors_of(base).items()
        if name in (EMBEDDINGS, HEAD)
    }
    wide = rewritten(base, tmp_path / "wide", padded, vocab_size=132)
    for source in ("base", "union"):
        tokenizer = {"source": source, "pad_to_multiple_of": 50}
        plan = plan_of({"name": "linear"}, wide, {"a": fine["a"]}, tokenizer=tokenizer)
        out = merge(plan, tmp_path / source)
        found = tensors_of(out)[EMBEDDINGS]
        assert found.shape == (150, 32)
        assert torch.equal(found[:128], tensors_of(fine["a"])[EMBEDDINGS])
        assert (found[128:132] == 7.0).all()
        mean = found[:132].double().mean(0).float()
        torch.testing.assert_close(found[132:], mean.expand(18, 32))
        assert json.loads((out / "config.json").read_text())["vocab_size"] == 150
        generates(out)


def test_the_recipe_says_whose_embedding_a_token_gets(
    plan_of: Make, base: Path, fine: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    chat = extended(fine["a"], tmp_path / "chat", ["<|im_start|>", "<|im_end|>"], seed=1)
    tokenizer = {
        "source": "base",
        "tokens": {
            "<|im_start|>": {"source": "chat"},
            "<|end|>": {"source": {"source": "chat", "token": "<|im_end|>"}},
            "<|none|>": {"source": "zero"},
            "th": {"source": {"source": "b", "token_id": 5}, "force": True},
        },
    }
    plan = plan_of({"name": "linear"}, base, {"chat": chat, "b": fine["b"]}, tokenizer=tokenizer)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    out = merge(plan, tmp_path / "out")
    found, theirs = tensors_of(out)[HEAD], tensors_of(chat)[HEAD]
    loaded = AutoTokenizer.from_pretrained(out)
    ids = loaded.convert_tokens_to_ids(["<|im_start|>", "<|end|>", "<|none|>", "th"])
    assert ids[:3] == [128, 129, 130]
    assert loaded("<|end|>th")["input_ids"] == [129, ids[3]]
    torch.testing.assert_close(found[128], theirs[128])
    torch.testing.assert_close(found[129], theirs[129])
    assert (found[130] == 0).all()
    torch.testing.assert_close(found[ids[3]], tensors_of(fine["b"])[HEAD][5])
    generates(out)


def test_a_tensor_of_the_vocabularys_size_that_is_no_embedding_stays(
    plan_of: Make, base: Path, fine: dict[str, Path], tiny_tokenizer: Make, tmp_path: Path
) -> None:
    square = torch.arange(128 * 4.0).view(128, 4)
    name = "model.extra.weight"
    models = {
        n: rewritten(path, tmp_path / n, {name: square})
        for n, path in {"base": base, "b": fine["b"]}.items()
    }
    other, _ = permuted(models["b"], tmp_path / "other", tiny_tokenizer)
    plan = plan_of(
        {"name": "linear"}, models["base"], {"other": other}, tokenizer={"source": "base"}
    )
    assert torch.equal(tensors_of(merge(plan, tmp_path / "out"))[name], square)


def test_nothing_changes_where_all_vocabularies_are_the_same(
    plan_of: Make, base: Path, fine: dict[str, Path]
) -> None:
    plans = [
        plan_of({"name": "ties"}, base, fine, tokenizer={"source": source})
        for source in ("same", "base", "union")
    ]
    assert len({plan.digest for plan in plans}) == 1
    assert plans[2].vocabulary is None


def test_the_digest_depends_on_the_layout(
    plan_of: Make, base: Path, fine: dict[str, Path], tmp_path: Path
) -> None:
    larger = extended(fine["b"], tmp_path / "larger", ["<|x|>"], seed=1)
    sources = {"a": fine["a"], "larger": larger}
    settings: list[dict[str, Any]] = [
        {"source": "base"},
        {"source": "union"},
        {"source": "union", "pad_to_multiple_of": 64},
        {"source": "union", "tokens": {"<|x|>": {"source": "zero"}}},
        {"source": "union", "chat_template": "{{ other }}"},
    ]
    digests = {plan_of({"name": "ties"}, base, sources, tokenizer=s).digest for s in settings}
    assert len(digests) == len(settings)


@pytest.mark.parametrize("first", ["tied", "larger"])
def test_a_tied_head_is_untied_where_rows_are_matched_by_token(
    plan_of: Make, base: Path, tiny_llama: Make, tmp_path: Path, first: str
) -> None:
    places = {
        "tied": tiny_llama(tied=True),
        "larger": extended(base, tmp_path / "larger", ["<|x|>"], seed=1),
    }
    order = sorted(places, key=lambda name: name != first)
    plan = plan_of(
        {"name": "linear"},
        None,
        {name: places[name] for name in order},
        tokenizer={"source": "union"},
        tied_head="untie",
    )
    out = merge(plan, tmp_path / "out")
    found, tied, larger = (tensors_of(p) for p in (out, places["tied"], places["larger"]))
    # The tied model's head is its embeddings; the row that it lacks is that of the other's head.
    for name in (HEAD, EMBEDDINGS):
        expected = torch.cat([tied[EMBEDDINGS], larger[name][128:]])
        torch.testing.assert_close(found[name], (expected + larger[name]) / 2)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    generates(out)


def test_layers_of_models_with_different_vocabularies_are_stacked(
    plan_of: Make, base: Path, tmp_path: Path
) -> None:
    one = extended(base, tmp_path / "one", ["<|one|>"], seed=1)
    two = extended(base, tmp_path / "two", ["<|two|>"], seed=2)
    plan = plan_of(
        {"name": "passthrough"},
        None,
        {"one": one, "two": two},
        slices=[{"sources": {"one": [0, 2]}}, {"sources": {"two": [1, 2]}}],
        tokenizer={"source": "union"},
    )
    out = merge(plan, tmp_path / "out")
    found = tensors_of(out)
    # Embeddings are the first slice's, the head is the last one's, rows in the union's order.
    assert torch.equal(found[EMBEDDINGS][:129], tensors_of(one)[EMBEDDINGS])
    assert torch.equal(found[HEAD][[*range(128), 129]], tensors_of(two)[HEAD])
    assert torch.equal(found[HEAD][128], tensors_of(one)[HEAD][128])
    generates(out)


def test_an_adapter_is_re_laid_like_a_full_model(
    plan_of: Make, base: Path, fine: dict[str, Path], tiny_lora: Make, tmp_path: Path
) -> None:
    larger = extended(fine["a"], tmp_path / "larger", ["<|x|>"], seed=1)
    adapter = tiny_lora(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter / name)
    plan = plan_of(
        {"name": "linear"},
        None,
        {"large": larger, "lora": (adapter, base)},
        tokenizer={"source": "union"},
    )
    found = tensors_of(merge(plan, tmp_path / "out"))
    alone = tensors_of(
        merge(plan_of({"name": "linear"}, None, {"x": (adapter, base)}), tmp_path / "x")
    )
    theirs = tensors_of(larger)[HEAD]
    torch.testing.assert_close(found[HEAD][:128], (alone[HEAD] + theirs[:128]) / 2)
    torch.testing.assert_close(found[HEAD][128], theirs[128])


@pytest.mark.parametrize(
    ("tokenizer", "match"),
    [
        ({"source": "c"}, "tokenizer.source is 'c'; allowed: same, union, base, a, b"),
        ({"tokens": {"x": {"source": "a"}}}, "tokenizer.tokens changes the vocabulary, but .*same"),
        ({"pad_to_multiple_of": 8}, "tokenizer.pad_to_multiple_of changes the vocabulary"),
        ({"source": "base", "pad_to_multiple_of": 0}, "pad_to_multiple_of is 0; allowed: at least"),
        (
            {"source": "base", "tokens": {"x": {"source": "c"}}},
            "tokenizer.tokens.x.source is 'c'; allowed: zero, base, a, b",
        ),
        (
            {"source": "base", "tokens": {"x": {"source": {"source": "c"}}}},
            "tokenizer.tokens.x.source.source is 'c'; allowed: base, a, b",
        ),
        (
            {"source": "base", "tokens": {"x": {"sorce": "a"}}},
            "unknown key tokenizer.tokens.x.sorce",
        ),
        (
            {"source": "base", "tokens": {"x": {"source": {"source": "a", "tokn": "y"}}}},
            "unknown key tokenizer.tokens.x.source.tokn",
        ),
        (
            {
                "source": "base",
                "tokens": {"x": {"source": {"source": "a", "token": "y", "token_id": 1}}},
            },
            "takes token or token_id, not both",
        ),
        (
            {"source": "base", "tokens": {"x": {"source": {"source": "a", "token_id": -1}}}},
            "token_id is -1; allowed: at least 0",
        ),
        (
            {"source": "base", "tokens": {"": {"source": "a"}}},
            "tokenizer.tokens has an empty token",
        ),
        (
            {"chat_template": "chatty"},
            "tokenizer.chat_template is 'chatty'; allowed: auto, base, a",
        ),
    ],
)
def test_a_wrong_setting_is_refused(
    plan_of: Make, base: Path, fine: dict[str, Path], tokenizer: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        plan_of({"name": "ties"}, base, fine, tokenizer=tokenizer)
