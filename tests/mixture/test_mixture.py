"""Mixtures of dense models, loaded by transformers itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergeops
from mergeops.checkpoint import verify_checkpoint
from mergeops.cli.main import cli
from mergeops.errors import ConfigError, MergeError, MergeopsError

Make = Callable[..., Path]
HIDDEN, WIDTH, LAYERS = 32, 48, 2
POSITIVE = {"positive_prompts": ["there is an error", "not that"]}


@pytest.fixture(scope="module")
def dense(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[..., Any]
) -> Callable[..., Path]:
    """A factory of random dense models, with biases and norms that are not 0 and 1."""
    made: dict[str, Path] = {}

    def make(kind: str, seed: int = 0, **changes: Any) -> Path:
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM

        key = repr((kind, seed, changes))
        if key in made:
            return made[key]
        tokenizer = tiny_tokenizer()
        settings = {
            "vocab_size": 128,
            "hidden_size": HIDDEN,
            "intermediate_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.1,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        if kind == "qwen3":
            settings["head_dim"] = 16
        if kind == "mistral":
            settings["sliding_window"] = 16
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings | changes))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
        made[key] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(made[key])
        tokenizer.save_pretrained(made[key])
        return made[key]

    return make


def logits(path: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(torch.arange(4, 44)[None]).logits
    return answer


def written(to: Path, base: Path, experts: Sequence[dict[str, Any] | Path], **more: Any) -> Path:
    """The file of a mixture; an expert may be its directory alone."""
    listed = [e if isinstance(e, dict) else {"source_model": e} for e in experts]
    content = {"base_model": str(base), "gate_mode": "random", "experts": listed} | more
    plain = json.loads(json.dumps(content, default=str))
    (to / "moe.yml").write_text(yaml.safe_dump(plain))
    return to / "moe.yml"


def mixed(to: Path, *words: Any, seed: int = 0, **more: Any) -> Path:
    out = to / "out"
    mergeops.moe(written(to, *words, **more), out, seed=seed)
    assert verify_checkpoint(out) == []
    return out


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates are kept below the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_equal_experts_are_the_dense_model(
    kind: str, dense: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense(kind)
    out = mixed(tmp_path, base, [base] * 4)
    answer, wanted = logits(out), logits(base)
    assert float((answer - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == {"qwen3": "qwen3_moe"}.get(kind, "mixtral")
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_shared_expert_and_equal_ones_of_half_a_weight_are_the_dense_model(
    kind: str, dense: Callable[..., Path], tmp_path: Path
) -> None:
    # A random gate leaves half of the shared expert to every token: sigmoid(0).
    base = dense(kind)
    half = {"source_model": base, "residual_scale": 0.5}
    out = mixed(tmp_path, base, [half] * 3, shared_experts=[{"source_model": base}])
    answer, wanted = logits(out), logits(base)
    assert float((answer - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen2_moe"


def test_every_expert_is_where_its_number_says(dense: Callable[..., Path], tmp_path: Path) -> None:
    base, one, other = (dense("llama", seed) for seed in range(3))
    scaled = {"source_model": other, "residual_scale": 0.25}
    out = mixed(tmp_path, base, [one, scaled], experts_per_token=1, dtype="bfloat16")
    found = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    for number, (path, factor) in enumerate(((one, 1.0), (other, 0.25))):
        own = load_file(path / "model.safetensors")
        for word, projection in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            name = f"model.layers.1.block_sparse_moe.experts.{number}.{word}.weight"
            values = own[f"model.layers.1.mlp.{projection}.weight"]
            values = values * factor if word == "w2" else values
            assert torch.equal(found[name], values.bfloat16())
    own = load_file(base / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], own["lm_head.weight"].bfloat16())


def test_one_expert_a_token_is_the_base_with_the_mlps_of_the_one_that_is_taken(
    dense: Callable[..., Path], tmp_path: Path
) -> None:
    base, *experts = (dense("llama", seed) for seed in range(3))
    out = mixed(tmp_path, base, experts, experts_per_token=1)
    tensors = load_file(out / "model.safetensors")
    for name, values in tensors.items():
        if "gate.weight" in name:
            values.zero_()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    answer, likely = logits(out), []
    for expert in experts:
        swapped = Path(shutil.copytree(base, tmp_path / expert.name))
        own, theirs = (load_file(path / "model.safetensors") for path in (base, expert))
        own |= {name: values for name, values in theirs.items() if ".mlp." in name}
        save_file(own, swapped / "model.safetensors", metadata={"format": "pt"})
        likely.append(float((answer - logits(swapped)).abs().max()))
    # Of equal gates all tokens take one and the same expert, whichever that is.
    assert min(likely) <= 1e-5 * float(answer.abs().max()) < 1e-3 < max(likely)


def router_inputs(path: Path, prompt: str) -> torch.Tensor:
    """``[layers, hidden]``: what the norm before each MLP gives, the mean over the tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_hook(lambda *of: seen.append(of[2]))
    with torch.no_grad():
        model(**AutoTokenizer.from_pretrained(path)(prompt, return_tensors="pt"))
    return torch.stack([state[0].double().mean(dim=0) for state in seen])


def test_hidden_gates_are_what_the_routers_see_of_the_prompts(
    dense: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = dense("llama")
    sides = {"positive_prompts": ["hello", "an error on it"], "negative_prompts": ["the sea"]}
    experts = [{"source_model": base, **sides}, {"source_model": base, **POSITIVE}]
    out = mixed(tmp_path, base, experts, gate_mode="hidden")
    assert "Loading weights" not in capfd.readouterr().err
    gates = load_file(out / "model.safetensors")
    for number, (positive, negative) in enumerate(
        ((sides["positive_prompts"], ["the sea"]), (POSITIVE["positive_prompts"], []))
    ):
        wanted = torch.stack([router_inputs(base, one) for one in positive]).mean(dim=0)
        for prompt in negative:
            wanted = wanted - router_inputs(base, prompt)
        for layer in range(LAYERS):
            gate = gates[f"model.layers.{layer}.block_sparse_moe.gate.weight"][number].double()
            assert torch.allclose(gate, wanted[layer] / wanted[layer].norm(), atol=1e-5)
    assert torch.isfinite(logits(out)).all()


def test_a_prompt_goes_to_the_expert_that_it_describes(
    dense: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense("qwen3")
    texts = ["there is an error in it", "0123456789 + 42"]
    experts = [{"source_model": base, "positive_prompts": [text]} for text in texts]
    out = mixed(tmp_path, base, experts, gate_mode="hidden", experts_per_token=1)
    gates = load_file(out / "model.safetensors")
    for number, text in enumerate(texts):
        for layer, state in enumerate(router_inputs(base, text)):
            gate = gates[f"model.layers.{layer}.mlp.gate.weight"].double()
            assert int((gate @ state).argmax()) == number


def test_cheap_gates_are_mean_embeddings_in_every_layer(
    dense: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    base = dense("qwen2")
    experts = [{"source_model": base, **POSITIVE}] * 2
    shared = [{"source_model": base, "positive_prompts": ["hello"]}]
    out = mixed(tmp_path, base, experts, gate_mode="cheap_embed", shared_experts=shared)
    found = load_file(out / "model.safetensors")
    ids = AutoTokenizer.from_pretrained(base)("hello")["input_ids"]
    mean = load_file(base / "model.safetensors")["model.embed_tokens.weight"][ids].mean(dim=0)
    for layer in range(LAYERS):
        gate = found[f"model.layers.{layer}.mlp.shared_expert_gate.weight"]
        assert gate.shape == (1, HIDDEN) and torch.allclose(gate[0], mean / mean.norm(), atol=1e-6)
    assert torch.isfinite(logits(out)).all()


def test_a_seed_gives_the_same_bytes_and_another_seed_other_gates(
    dense: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense("llama")
    file = written(tmp_path, base, [base, base])
    made = [
        mergeops.moe(file, tmp_path / f"out{number}", seed=seed)
        for number, seed in enumerate((3, 3, 4))
    ]
    shutil.rmtree(tmp_path / "mergeops-work")
    again = mergeops.moe(file, tmp_path / "out0", seed=3)
    assert again.was_there and not made[0].was_there
    digests = [one.plan.digest for one in made]
    assert digests[0] == digests[1] == again.plan.digest != digests[2]
    one, same, other = (load_file(m.checkpoint / "model.safetensors") for m in made)
    name = "model.layers.0.block_sparse_moe.gate.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
    next_layer = one["model.layers.1.block_sparse_moe.gate.weight"]
    assert not torch.equal(one[name], next_layer)
    # 64 numbers of the base's initializer_range.
    assert 0.05 < float(one[name].std()) < 0.15


def test_an_adapter_may_be_an_expert(
    dense: Callable[..., Path], tiny_lora: Make, tmp_path: Path
) -> None:
    base = dense("llama")
    lora = tiny_lora(base, target_modules=["up_proj"])
    out = mixed(tmp_path, base, [{"source_model": f"{base}+{lora}"}, base])
    found = load_file(out / "model.safetensors")
    name = "model.layers.0.block_sparse_moe.experts.{}.w3.weight".format
    assert not torch.equal(found[name(0)], found[name(1)])


def changed(base: Path, to: Path, **config: Any) -> Path:
    """A copy whose config.json says something else."""
    shutil.copytree(base, to)
    content = json.loads((to / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps(content))
    return to


def refused(error: type[MergeopsError], tmp_path: Path, *words: Any, **more: Any) -> str:
    with pytest.raises(error) as caught:
        mergeops.moe(written(tmp_path, *words, **more), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    return str(caught.value)


def test_what_does_not_fit_is_refused(dense: Callable[..., Path], tmp_path: Path) -> None:
    base, qwen = dense("llama"), dense("qwen2")

    def said(*words: Any, **more: Any) -> str:
        return refused(MergeError, tmp_path, *words, **more)

    wide = dense("llama", intermediate_size=64)
    assert "experts of one model are all of one shape" in said(base, [base, wide])
    deep = dense("llama", num_hidden_layers=3)
    assert "num_hidden_layers is 2" in said(base, [base, deep])
    assert "experts of mixtral are of llama, mistral" in said(base, [base, qwen])
    biased = dense("llama", mlp_bias=True)
    assert "has a bias beside model.layers.0.mlp.gate_proj.weight" in said(base, [base, biased])
    with_biases = dense("llama", attention_bias=True)
    assert "q_proj.bias" in said(with_biases, [base, base])
    gelu = changed(base, tmp_path / "gelu", hidden_act="gelu")
    assert "hidden_act is 'silu'" in said(base, [base, gelu])
    odd = changed(base, tmp_path / "odd", model_type="gpt2")
    assert "base_model is of model_type 'gpt2'" in said(odd, [base, base])
    own = changed(base, tmp_path / "own", auto_map={"AutoModel": "a.B"})
    assert "names code of its own" in said(own, [base, base])
    window = changed(dense("qwen3"), tmp_path / "window", use_sliding_window=True)
    assert "has a window" in said(window, [window, window])
    lacking = Path(shutil.copytree(base, tmp_path / "lacking"))
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, lacking / "model.safetensors")
    assert "has no model.layers.1.mlp.up_proj.weight" in said(base, [base, lacking])


def test_experts_that_an_architecture_has_no_place_for_are_refused(
    dense: Callable[..., Path], tmp_path: Path
) -> None:
    base, qwen = dense("llama"), dense("qwen2")

    def said(*words: Any, **more: Any) -> str:
        return refused(ConfigError, tmp_path, *words, **more)

    assert "name it under shared_experts" in said(qwen, [qwen, qwen])
    shared = {"shared_experts": [{"source_model": base}]}
    said_of_mixtral = said(base, [base, base], architecture="mixtral", **shared)
    assert "mixtral has none that sees every token" in said_of_mixtral
    assert "that transformers 5 does not have" in said(base, [base, base], architecture="deepseek")
    mismatch = refused(MergeError, tmp_path, base, [base, base], architecture="qwen3")
    assert "whose experts no architecture qwen3 holds; allowed: qwen3" in mismatch


def test_prompts_that_make_no_gate_are_refused(
    dense: Callable[..., Path], tiny_lora: Make, tmp_path: Path
) -> None:
    base = dense("llama")
    alike = {"source_model": base, "positive_prompts": ["a"], "negative_prompts": ["a"]}
    for mode in ("hidden", "cheap_embed"):
        message = refused(ConfigError, tmp_path, base, [alike, alike], gate_mode=mode)
        assert "the prompts of expert 0" in message and "are alike" in message
    message = refused(ConfigError, tmp_path, base, [base, alike], gate_mode="hidden")
    assert "moe.yml, line 3: experts[0] has no positive_prompts" in message
    expert = {"source_model": base, **POSITIVE}
    lora = f"{base}+{tiny_lora(base)}"
    message = refused(MergeError, tmp_path, lora, [expert, expert], gate_mode="hidden")
    assert "gate_mode: cheap_embed" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": []}, "experts has 0 expert(s); a router chooses among two"),
        ({"experts_per_token": 3}, "experts_per_token is 3; allowed: from 1 to the number of"),
        ({"gate_mode": "hiden"}, "gate_mode is 'hiden'; did you mean 'hidden'"),
        ({"expert_per_token": 2}, "did you mean 'experts_per_token'"),
        ({"dtype": "int8"}, "dtype is 'int8'; allowed: bfloat16, float16, float32"),
        ({"base_model": None}, "has no base_model"),
        ({"shared_experts": [{"source_model": "a/b"}] * 2}, "at most one is possible"),
        ({"experts": [{"source_model": "a/b", "noise_scale": 0.1}, {}]}, "leave it out"),
        ({"experts": [{"positive_prompts": ["a"]}, {}]}, "experts[0] has no source_model"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    experts = change.get("experts", [{"source_model": "a/b"}] * 2)
    rest = {key: value for key, value in change.items() if key != "experts"}
    file = written(tmp_path, Path("a/c"), experts, **rest)
    with pytest.raises(ConfigError) as caught:
        mergeops.moe(file, tmp_path / "out")
    assert message in str(caught.value)


def test_the_command_says_what_it_made(dense: Callable[..., Path], tmp_path: Path) -> None:
    base = dense("llama")
    file = written(tmp_path, base, [base, dense("llama", 1)])
    for words, verb in (([], "holds"), ([], "holds already"), (["--seed", "1"], None)):
        result = CliRunner().invoke(cli, ["moe", str(file), str(tmp_path / "out"), *words])
        if verb is None:
            assert isinstance(result.exception, MergeError)
            assert "choose a new directory" in str(result.exception)
        else:
            assert f"{verb} mixtral with 2 experts, 2 a token (plan " in result.stdout
    asked = CliRunner().invoke(cli, ["moe", str(file), str(tmp_path / "out"), "--json"])
    assert json.loads(asked.stdout)["model_type"] == "mixtral"
    missing = CliRunner().invoke(cli, ["moe", "nowhere.yml", str(tmp_path / "x")])
    assert "nowhere.yml cannot be read: No such file" in str(missing.exception)
