"""Tokenizers that cannot be read by token, files that name tokens, and chat templates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeops.checkpoint.header import StoredTensor
from mergeops.engine.execute import merge
from mergeops.errors import MergeError, SourceError
from mergeops.planning.tokens.merged import NewToken, merge_vocabularies
from mergeops.planning.tokens.template import choose_template, read_template
from mergeops.planning.tokens.vocabulary import (
    check_settings,
    embedding_tensors,
    read_vocabulary,
)
from mergeops.planning.tokens.written_files import with_tokens

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tiny_llama: Make) -> Path:
    path: Path = tiny_llama()
    return path


def copied(model: Path, out: Path, rows: int = 128) -> Path:
    copy = Path(shutil.copytree(model, out))
    weights = load_file(copy / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.ones(rows - 128, 32)])
    weights["model.norm.weight"] += 0.5
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def sentencepiece_only(model: Path, content: bytes) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    (model / "tokenizer.model").write_bytes(content)
    return model


def tokenizer_json(directory: Path, model: dict[str, Any], added: list[Any] | None = None) -> Path:
    directory.mkdir()
    content = {"model": model, "added_tokens": added or []}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


def test_equal_sentencepiece_models_merge_and_others_ask_for_tokenizer_json(
    plan_of: Make, base: Path, tmp_path: Path
) -> None:
    one = sentencepiece_only(copied(base, tmp_path / "one"), b"model")
    two = sentencepiece_only(copied(base, tmp_path / "two"), b"model")
    (two / "README.md").write_text("not the tokenizer's")
    weights = load_file(two / "model.safetensors")
    save_file({**weights, "model.norm.weight": torch.ones(32)}, two / "model.safetensors")
    plan = plan_of({"name": "linear"}, one, {"two": two}, tokenizer={"source": "base"})
    assert plan.vocabulary is None
    (two / "tokenizer.model").write_bytes(b"other")
    with pytest.raises(
        MergeError, match="base has tokenizer.model but no tokenizer.json.*save_pre"
    ):
        plan_of({"name": "linear"}, one, {"two": two}, tokenizer={"source": "base"})
    with pytest.raises(MergeError, match="two has tokenizer.model but no tokenizer.json"):
        plan_of({"name": "linear"}, base, {"two": two}, tokenizer={"source": "base"})


def test_equal_sentencepiece_models_of_different_size_are_refused(
    plan_of: Make, base: Path, tmp_path: Path
) -> None:
    one = sentencepiece_only(copied(base, tmp_path / "one"), b"model")
    two = sentencepiece_only(copied(base, tmp_path / "two", rows=130), b"model")
    with pytest.raises(MergeError, match="two has tokenizer.model but no tokenizer.json"):
        plan_of({"name": "linear"}, one, {"two": two}, tokenizer={"source": "base"})


def test_an_input_without_tokenizer_is_taken_for_the_base_if_it_is_as_large(
    plan_of: Make, base: Path, tmp_path: Path
) -> None:
    bare = copied(base, tmp_path / "bare")
    large = copied(base, tmp_path / "large", rows=130)
    for model in (bare, large):
        (model / "tokenizer.json").unlink()
        (model / "tokenizer_config.json").unlink()
    plan = plan_of({"name": "linear"}, base, {"bare": bare}, tokenizer={"source": "base"})
    assert "bare has no tokenizer; its rows are taken for those of base's tokens" in plan.warnings
    with pytest.raises(MergeError, match="large has no tokenizer, and 130 rows .* base has 128"):
        plan_of({"name": "linear"}, base, {"large": large}, tokenizer={"source": "base"})
    with pytest.raises(MergeError, match="base has no tokenizer, so rows cannot be matched"):
        plan_of({"name": "linear"}, bare, {"b": bare}, tokenizer={"source": "union"})


def test_new_tokens_of_a_model_are_added_to_the_model_and_others_beside_it(tmp_path: Path) -> None:
    first = read_vocabulary(
        tokenizer_json(
            tmp_path / "a", {"type": "BPE", "vocab": {"x": 0}}, [{"content": "<s>", "id": 1}]
        )
    )
    added = [{"content": "<p>", "id": 0, "special": True}]
    other = read_vocabulary(
        tokenizer_json(tmp_path / "b", {"type": "BPE", "vocab": {"y": 1}}, added)
    )
    ids, new = merge_vocabularies(first, {"b": other}, ["<z>"], union=True)
    assert ids == {"x": 0, "<s>": 1, "<p>": 2, "y": 3, "<z>": 4}
    assert [(token.content, bool(token.flags)) for token in new] == [
        ("<p>", True),
        ("y", False),
        ("<z>", True),
    ]
    content = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    changed = with_tokens("tokenizer.json", content, new)
    assert changed["model"]["vocab"] == ids
    assert [t["content"] for t in changed["added_tokens"]] == ["<s>", "<p>", "<z>"]
    assert changed["added_tokens"][1]["special"]
    assert with_tokens("vocab.json", {"x": 0}, new) == {"x": 0, "y": 3}
    assert with_tokens("added_tokens.json", {"<s>": 1}, new) == {"<s>": 1, "<p>": 2, "<z>": 4}
    decoder = with_tokens("tokenizer_config.json", {"added_tokens_decoder": {"1": {}}}, new)
    assert decoder["added_tokens_decoder"]["2"]["content"] == "<p>"
    assert with_tokens("tokenizer_config.json", {"a": 1}, new) == {"a": 1}


def test_a_union_of_different_unigram_models_is_refused(tmp_path: Path) -> None:
    one, other = (
        read_vocabulary(
            tokenizer_json(
                tmp_path / name, {"type": "Unigram", "vocab": [["x", -1.0], [last, -2.0]]}
            )
        )
        for name, last in (("a", "y"), ("b", "z"))
    )
    with pytest.raises(MergeError, match="b has 1 token.* Unigram model that .* lacks, e.g. 'z'"):
        merge_vocabularies(one, {"b": other}, [], union=True)
    assert merge_vocabularies(one, {"b": other}, ["<new>"], union=False)[1] == (
        NewToken("<new>", 2, merge_vocabularies(one, {}, ["<new>"], union=False)[1][0].flags),
    )


def test_tokens_that_only_the_tokenizers_config_adds_count(tmp_path: Path) -> None:
    place = tokenizer_json(tmp_path / "a", {"vocab": {"x": 0}})
    config = {"added_tokens_decoder": {"1": {"content": "<late>"}, "0": {"content": "x"}}}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_vocabulary(place).ids == {"x": 0, "<late>": 1}


def test_which_tensors_have_a_row_for_each_token() -> None:
    def stored(name: str, *shape: int, dtype: str = "F32") -> StoredTensor:
        return StoredTensor(name, dtype, shape, "model.safetensors", 0, 0)

    yes = [
        stored("model.language_model.embed_tokens.weight", 10, 4),
        stored("transformer.wte.weight", 10, 4),
        stored("shared.weight", 10, 4),
        stored("bert.embeddings.word_embeddings.weight", 10, 4),
        stored("gpt_neox.embed_in.weight", 10, 4),
        stored("backbone.embeddings.weight", 10, 4),
        stored("lm_head.weight", 10, 4),
        stored("lm_head.bias", 10),
        stored("lm_head.decoder.bias", 10),
        stored("cls.predictions.bias", 10),
        stored("embed_out.weight", 10, 4),
        stored("final_logits_bias", 1, 10),
    ]
    no = [
        stored("lm_head.dense.weight", 10, 10),
        stored("transformer.wpe.weight", 10, 4),
        stored("model.layers.0.mlp.up_proj.weight", 10, 4),
        stored("bert.embeddings.token_type_embeddings.weight", 10, 4),
        stored("encoder.layer.0.output.weight", 10, 4),
        stored("decoder.embed_tokens.weight", 12, 4),
        stored("wte.weight", 10, 4, dtype="I8"),
    ]
    tensors = {tensor.name: tensor for tensor in [*no, *yes]}
    rows, names, others = embedding_tensors("a", tensors, {"text_config": {"vocab_size": 10}})
    assert (rows, others) == (10, [])
    assert sorted(names) == sorted(tensor.name for tensor in yes)
    # A config that nobody updated says nothing.
    only = {"lm_head.weight": stored("lm_head.weight", 10, 4)}
    assert embedding_tensors("a", only, {"vocab_size": 7}) == (10, ["lm_head.weight"], [])
    with pytest.raises(MergeError, match="a has no tensor that looks like an embedding"):
        embedding_tensors("a", {no[2].name: no[2]}, {})


def test_the_tokenizers_own_template_is_kept_and_others_are_named(
    plan_of: Make, base: Path, tmp_path: Path
) -> None:
    other = copied(base, tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ other }}")
    plan = plan_of({"name": "linear"}, base, {"other": other})
    assert "chat templates differ: the merge keeps that of base, not that of other" in " ".join(
        plan.warnings
    )
    out = merge(plan, tmp_path / "auto")
    assert read_template(out) == read_template(base)
    plan = plan_of({"name": "linear"}, base, {"other": other}, tokenizer={"chat_template": "other"})
    assert read_template(merge(plan, tmp_path / "named")) == "{{ other }}"


def test_a_template_of_the_recipe_replaces_that_of_the_tokenizers_config(
    plan_of: Make, base: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    model = copied(base, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "{{ old }}"}]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_template(model) == "{{ old }}"
    literal = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    out = merge(
        plan_of({"name": "linear"}, None, {"a": model}, tokenizer={"chat_template": literal}),
        tmp_path / "out",
    )
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<hi>"


def test_without_a_template_of_its_own_the_tokenizer_gets_the_most_frequent(tmp_path: Path) -> None:
    places = {}
    for name, text in (("base", None), ("a", "{{ a }}"), ("b", "{{ b }}"), ("c", "{{ b }}")):
        places[name] = [tmp_path / name]
        (tmp_path / name).mkdir()
        if text:
            (tmp_path / name / "chat_template.jinja").write_text(text)
    chosen = choose_template("auto", tmp_path / "base", places)
    assert chosen.text == "{{ b }}"
    assert "keeps that of b, c, not that of a" in chosen.warnings[0]
    assert choose_template("b", tmp_path / "c", places).text is None
    assert choose_template("auto", None, {"base": places["base"]}).text is None
    with pytest.raises(
        MergeError, match="tokenizer.chat_template is 'base', which has no chat tem"
    ):
        choose_template("base", None, places)
    (tmp_path / "a" / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(SourceError, match="chat_template.jinja cannot be read"):
        choose_template("auto", None, places)


def read(directory: Path) -> str:
    """What reading the vocabulary refuses with."""
    with pytest.raises(SourceError) as caught:
        read_vocabulary(directory)
    message = str(caught.value)
    assert str(directory) in message and "\n" not in message
    return message


VOCAB = {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("model", "added", "said"),
    [
        ({"vocab": {"a": "0"}}, [], "model.vocab['a'] is '0'; allowed is a whole number from 0 to"),
        ({"vocab": {"a": -1}}, [], "model.vocab['a'] is -1; allowed"),
        ({"vocab": {"a": True}}, [], "model.vocab['a'] is True; allowed"),
        ({"vocab": {"a": 1.0}}, [], "model.vocab['a'] is 1.0; allowed"),
        ({"vocab": {"a": [0]}}, [], "model.vocab['a'] is [0]; allowed"),
        ({"vocab": {"a": 300_000_000}}, [], "a whole number from 0 to 1048575"),
        ({"vocab": {"a" * 9000: None}}, [], "aaa...] is None; allowed"),
        ({"vocab": {"\ud800": 0}}, [], "a token of model.vocab is '\\ud800'; allowed is a text"),
        ({"vocab": [["a", 0.0], "b"]}, [], "model.vocab[1] is 'b'; allowed is a pair"),
        ({"vocab": [[]]}, [], "model.vocab[0] is []; allowed is a pair"),
        ({"vocab": [[3, 0.5]]}, [], "the token of model.vocab[0] is 3; allowed is a text"),
        ({"vocab": VOCAB}, {"0": "a"}, "added_tokens is {'0': 'a'}; allowed is a list"),
        ({"vocab": VOCAB}, ["x"], "added_tokens[0] is 'x'; allowed is an object with a content"),
        ({"vocab": VOCAB}, [{"id": 2}], "added_tokens[0].content is None; allowed is a text"),
        ({"vocab": VOCAB}, [{"content": "x"}], "added_tokens[0].id is None; allowed is a whole"),
        ({"vocab": VOCAB}, [{"content": "x", "id": 10**12}], "added_tokens[0].id is 1000000000000"),
    ],
)
def test_an_entry_that_is_no_token_is_named_with_what_is_allowed(
    tmp_path: Path, model: dict[str, Any], added: Any, said: str
) -> None:
    assert said in read(tokenizer_json(tmp_path / "model", model, added))


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        ({}, None),
        (None, None),
        ([], "added_tokens_decoder is []; allowed is an object"),
        ({"2": "x"}, "added_tokens_decoder['2'] is 'x'; allowed is an object with a content"),
        ({"x": {"content": "x"}}, "a key of added_tokens_decoder is 'x'; allowed is a whole"),
        ({"9" * 5000: {"content": "x"}}, "allowed is a whole number from 0 to 1048575"),
        ({"2": {"content": None}}, "added_tokens_decoder['2'].content is None; allowed"),
    ],
)
def test_tokens_that_the_tokenizers_config_adds_are_checked_alike(
    tmp_path: Path, decoder: Any, said: str | None
) -> None:
    path = tokenizer_json(tmp_path / "model", {"vocab": VOCAB})
    (path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    if said is None:
        assert read_vocabulary(path).ids == VOCAB
    else:
        assert said in read(path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokenizer_class": {}}, "tokenizer_class is {}; allowed is the name of a class"),
        ({"eos_token": True}, "eos_token is True; allowed is a text"),
        ({"unk_token": {"content": "x"}}, "unk_token is {'content': 'x'}; allowed is a text"),
        ({"pad_token": "\ud800"}, "pad_token is '\\ud800'; allowed is a text"),
        (
            {"added_tokens_decoder": {"2": {"content": "x", "special": "no"}}},
            "added_tokens_decoder['2'].special is 'no'; allowed is true or false",
        ),
        ({"bos_token": {"__type": "AddedToken", "content": "x", "lstrip": False}}, None),
        ({"bos_token": None, "add_bos_token": True, "tokenizer_class": None}, None),
    ],
)
def test_settings_of_types_that_transformers_does_not_load_are_refused(
    tmp_path: Path, settings: dict[str, Any], said: str | None
) -> None:
    (file := tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if said is None:
        check_settings(file)
        return
    with pytest.raises(SourceError) as refused:
        check_settings(file)
    assert said in str(refused.value)


def test_ids_of_a_large_vocabulary_may_be_as_large_as_it_is(tmp_path: Path) -> None:
    tokens = {str(i): i for i in range(70_000)} | {"last": 1_100_000}
    path = tokenizer_json(tmp_path / "model", {"vocab": tokens})
    assert read_vocabulary(path).ids["last"] == 1_100_000


@pytest.mark.parametrize(
    "template", [3, {"default": "x"}, ["x"], [{"name": "default"}], [{"name": 1, "template": "x"}]]
)
def test_a_chat_template_of_another_type_is_refused(tmp_path: Path, template: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(SourceError, match=r"tokenizer_config.json: chat_template is .* allowed is"):
        read_template(tmp_path)


def test_a_config_without_added_tokens_gets_the_new_ones() -> None:
    new = NewToken("<x>", 7, {"special": True})
    content = with_tokens("tokenizer_config.json", {"added_tokens_decoder": None}, [new])
    assert content["added_tokens_decoder"] == {"7": {"content": "<x>", "special": True}}
