"""A registered model of each kind answers through MLflow what it answers in memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.tracking_case import Case

from mergeops.store import flavour_of
from mergeops.store.artifacts import local_folder

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
TEXT = "12 + 3 ="


def saved(
    path: Path, kind: str, tokenizer: Any, settings: Mapping[str, Any], **generation: Any
) -> Any:
    """A random model in eval mode, saved with its tokenizer."""
    import transformers

    model_class = getattr(transformers, kind)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings)).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


def registered(case: Case, path: Path) -> str:
    _, version = dataclasses.replace(case, checkpoint=path).whole()
    return f"models:/skills/{version}"


def described(case: Case, uri: str) -> dict[str, Any]:
    import mlflow

    folder = local_folder(
        mlflow.get_logged_model(mlflow.models.get_model_info(uri).model_id).artifact_location
    )
    assert folder is not None
    content: dict[str, Any] = yaml.safe_load((folder / "MLmodel").read_text())
    return content


def asked(tokenizer: Any) -> Any:
    inputs = tokenizer(TEXT, return_tensors="pt")
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def test_a_causal_model_generates_as_it_is_told(
    case: Case, tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    import mlflow

    tokenizer = tiny_tokenizer()
    model = saved(tmp_path / "m", "LlamaForCausalLM", tokenizer, SIZES)
    uri = registered(case, tmp_path / "m")
    want = model.generate(**asked(tokenizer), max_new_tokens=5, do_sample=False)
    text = tokenizer.decode(want[0][asked(tokenizer)["input_ids"].shape[1] :], True)
    pipeline = mlflow.transformers.load_model(uri)
    told = {"max_new_tokens": 5, "do_sample": False}
    assert pipeline(TEXT, **told)[0]["generated_text"] == TEXT + text
    served = mlflow.pyfunc.load_model(uri)
    assert served.predict(TEXT, params=told) == [TEXT + text]
    assert served.predict(TEXT, params={**told, "return_full_text": False}) == [text]
    shorter = tokenizer.decode(want[0][:-3][asked(tokenizer)["input_ids"].shape[1] :], True)
    assert served.predict(TEXT, params={**told, "max_new_tokens": 2}) == [TEXT + shorter]


def test_settings_that_are_not_given_are_those_of_the_pipeline_and_the_generation_config(
    case: Case, tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    import mlflow
    from transformers import set_seed

    tokenizer = tiny_tokenizer()
    saved(
        tmp_path / "m",
        "LlamaForCausalLM",
        tokenizer,
        SIZES,
        max_new_tokens=7,
        do_sample=True,
        top_k=9,
    )
    uri = registered(case, tmp_path / "m")
    pipeline, served = mlflow.transformers.load_model(uri), mlflow.pyfunc.load_model(uri)
    set_seed(1)
    # As MLflow calls it: a list is drawn from by a loader, which takes a random number, too.
    want = pipeline([TEXT])[0][0]["generated_text"]
    set_seed(1)
    assert served.predict(TEXT) == [want]


def test_an_encoder_decoder_model_answers_through_pyfunc(
    case: Case, tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    import mlflow

    tokenizer = tiny_tokenizer()
    settings = {
        "vocab_size": 128,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
    }
    model = saved(tmp_path / "m", "T5ForConditionalGeneration", tokenizer, settings)
    note = flavour_of(tmp_path / "m").note
    assert "encoder-decoder" in note
    assert "mlflow.pyfunc.load_model" in note
    uri = registered(case, tmp_path / "m")
    want = model.generate(**asked(tokenizer), max_new_tokens=6, do_sample=False)
    served = mlflow.pyfunc.load_model(uri)
    told = {"max_new_tokens": 6, "do_sample": False}
    text = tokenizer.decode(want[0], skip_special_tokens=True)
    assert served.predict(TEXT, params=told) == [text]
    assert served.predict([TEXT, TEXT], params=told) == [text, text]
    parts = mlflow.transformers.load_model(uri, return_type="components")
    found = parts["model"].generate(**asked(parts["tokenizer"]), **told)
    assert found.equal(want)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertModel", "feature-extraction"),
    ],
)
def test_models_that_do_not_generate_answer_as_in_memory(
    case: Case, tiny_tokenizer: Callable[..., Any], tmp_path: Path, kind: str, task: str
) -> None:
    import mlflow
    import numpy as np

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    settings = {**SIZES, "vocab_size": len(tokenizer)}
    settings |= {"num_labels": 3} if "Classification" in kind else {}
    model = saved(tmp_path / "m", kind, tokenizer, settings)
    uri = registered(case, tmp_path / "m")
    text = f"{TEXT} [MASK]" if task == "fill-mask" else TEXT
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    pipeline = mlflow.transformers.load_model(uri)
    served = mlflow.pyfunc.load_model(uri).predict(text)
    assert pipeline.task == task
    if task == "feature-extraction":
        hidden = output.last_hidden_state.numpy()
        assert np.allclose(pipeline(text), hidden, atol=1e-5)
        assert np.allclose(np.asarray(served).reshape(hidden.shape), hidden, atol=1e-5)
        return
    odds = output.logits[0].softmax(-1)
    if task == "text-classification":
        best = int(odds.argmax())
        assert pipeline(text)[0]["label"] == served["label"][0] == f"LABEL_{best}"
        assert served["score"][0] == pytest.approx(float(odds[best]), abs=1e-5)
    elif task == "token-classification":
        labels = [f"LABEL_{int(best)}" for best in odds.argmax(-1)]
        assert {answer["entity"] for answer in pipeline(text)} <= set(labels)
        assert served
    else:
        place = int((inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0])
        best = tokenizer.decode([int(odds[place].argmax())]).strip()
        assert pipeline(text)[0]["token_str"].strip() == best
        assert served[0].strip() == best


def test_what_no_pipeline_serves_is_kept_as_files_with_a_note(
    case: Case, tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException
    from transformers import BertForQuestionAnswering

    model = saved(tmp_path / "m", "BertForQuestionAnswering", tiny_tokenizer(), SIZES)
    assert "keeps its files only: load the directory model/" in flavour_of(tmp_path / "m").note
    uri = registered(case, tmp_path / "m")
    with pytest.raises(MlflowException, match="transformers"):
        mlflow.transformers.load_model(uri)
    folder = mlflow.artifacts.download_artifacts(f"{uri}/model")
    found = BertForQuestionAnswering.from_pretrained(folder).state_dict()
    assert all(found[name].equal(tensor) for name, tensor in model.state_dict().items())


def test_a_model_without_its_tokenizer_is_named_so(
    tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    saved(tmp_path / "m", "BertForMaskedLM", tiny_tokenizer(), SIZES)
    for file in (tmp_path / "m").iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    assert "lacks the files of its tokenizer or processor" in flavour_of(tmp_path / "m").note


def test_a_config_without_architectures_is_judged_by_its_type(
    tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    saved(tmp_path / "m", "LlamaForCausalLM", tiny_tokenizer(), SIZES)
    config = json.loads((tmp_path / "m/config.json").read_text())
    del config["architectures"]
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    found = flavour_of(tmp_path / "m")
    assert (found.task, found.model_class) == ("text-generation", "LlamaForCausalLM")
