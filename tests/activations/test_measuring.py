"""What is measured of real models, against activations at hand and the formulas of the papers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeops.activations import Measured, find, kept_in, looks, measure, measuring
from mergeops.activations.kept_activations import OpenMeasured
from mergeops.activations.looks import Grams, Weight
from mergeops.activations.sums import Sums
from mergeops.checkpoint import adapter_sha256, weights_sha256
from mergeops.engine import merge, pour
from mergeops.errors import ConfigError, MergeError, SourceError
from mergeops.planning import Plan
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.workshop import merge_only, plan_only

Make = Callable[..., Any]
Array = npt.NDArray[np.float64]
TEXTS = ["The other man ate his tea", "Is it", "An angry cat sat on the mat and read the news 7+8"]
MOE = "model.layers.0.mlp.experts.0.gate_proj.weight"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n\n".join(TEXTS) + "\n")
    return file


@pytest.fixture(scope="module")
def trained(tiny_llama: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two fine-tunes of a model, each trained on its own text."""
    base = tiny_llama()
    return {
        name: train(base, tmp_path_factory.mktemp(name), text)
        for name, text in {"a": TEXTS[0], "b": TEXTS[2]}.items()
    }


def train(base: Path, out: Path, text: str) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shutil.copytree(base, out, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(base)
    ids = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt")["input_ids"]
    steps = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(8):
        model(input_ids=ids, labels=ids).loss.backward()
        steps.step()
        steps.zero_grad()
    model.save_pretrained(out)
    return out


def loaded(model: Path) -> tuple[Any, list[torch.Tensor]]:
    """A model, and the ids of each prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS]
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), ids


def measured(model: Path, prompts: Path, work: Path, kind: str = "gram") -> Measured:
    return measure(model, weights_sha256(model), prompts, kind, work)


def values(found: Measured, weight: str) -> Array:
    layer = OpenMeasured(Path(found.path), found.sha256).layer(weight)
    assert layer is not None
    return layer.values.numpy().copy()


def inputs_of(model: Any, ids: list[torch.Tensor], module: str) -> Array:
    """What goes into a linear layer, over all prompts: ``[tokens, inputs]``."""
    seen: list[Array] = []
    layer = model.get_submodule(module)
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy(force=True)))
    for one in ids:
        model(input_ids=one)
    hook.remove()
    return np.concatenate([x.reshape(-1, x.shape[-1]) for x in seen]).astype(np.float64)


def merged_by(method: dict[str, Any], sources: dict[str, Path], out: Path, **more: Any) -> Any:
    written = {
        "method": method,
        "sources": {name: str(path) for name, path in sources.items()},
        "output": {"dir": str(out.parent / "work")},
        **more,
    }
    return merge_only(Recipe.from_dict(written), out, Progress("none"))


def regressed(inputs: list[Array], weights: list[Array]) -> Array:
    """The weights ``[outputs, inputs]`` with the least squared error of the outputs, and of those
    the nearest to the mean."""
    mean = np.mean(weights, axis=0)
    rows = [x / np.sqrt(len(x)) for x in inputs]
    outputs = [x @ (w - mean).T for x, w in zip(rows, weights, strict=True)]
    # What float32 cannot tell from zero.
    smallest = 4 * np.finfo(np.float32).eps * np.sqrt(mean.shape[1])
    found = np.linalg.lstsq(np.concatenate(rows), np.concatenate(outputs), rcond=smallest)[0]
    return np.asarray(mean + found.T)


def test_moments_are_those_of_activations_at_hand(
    trained: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    found = measured(trained["a"], prompts, tmp_path)
    model, ids = loaded(trained["a"])
    layers = model.model.layers
    assert found.tokens == sum(one.numel() for one in ids)
    wanted: dict[str, Any] = {}
    for one in ids:
        states = model(input_ids=one, output_hidden_states=True).hidden_states
        for i, layer in enumerate(layers):
            normed = layer.input_layernorm(states[i])
            attended = layer.self_attn(
                normed,
                position_embeddings=model.model.rotary_emb(normed, torch.arange(one.numel())[None]),
                attention_mask=None,
            )[0]
            between = layer.post_attention_layernorm(states[i] + attended)
            gated = layer.mlp.act_fn(layer.mlp.gate_proj(between)) * layer.mlp.up_proj(between)
            for names, x in (
                (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), normed),
                (("mlp.gate_proj", "mlp.up_proj"), between),
                (("mlp.down_proj",), gated),
            ):
                rows = x[0].detach().double()
                for name in names:
                    key = f"model.layers.{i}.{name}.weight"
                    wanted[key] = wanted.get(key, 0) + rows.T @ rows
    for name, gram in wanted.items():
        assert np.allclose(values(found, name), gram, rtol=1e-5, atol=1e-6), name
    # Queries, keys and values share one matrix, and so do gate and up.
    assert len({layer["key"] for layer in found.layers.values()}) == 2 * 4
    assert not any("embed" in name or "lm_head" in name for name in found.layers)


def test_prompts_of_different_lengths_add_up(
    trained: dict[str, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No padding counts."""
    whole = measured(trained["a"], prompts, tmp_path)
    parts = []
    for i, text in enumerate(TEXTS):
        file = tmp_path / f"{i}.jsonl"
        file.write_text(json.dumps([text, {"prompt": text}, {"text": text}][i]) + "\n")
        parts.append(measured(trained["a"], file, tmp_path))
    name = "model.layers.1.mlp.down_proj.weight"
    assert np.allclose(values(whole, name), sum(values(part, name) for part in parts))
    assert whole.tokens == sum(part.tokens for part in parts)
    # However much is held before it is added.
    monkeypatch.setattr(looks, "HELD", 0)
    again = measured(trained["a"], prompts, tmp_path / "again")
    assert np.allclose(values(again, name), values(whole, name), rtol=1e-12)


def test_regmean_is_the_regression_and_beats_the_mean(
    trained: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    method = {"name": "regmean", "prompts": str(prompts), "alpha": 1.0}
    merged = load_file(
        merged_by(method, trained, tmp_path / "out").checkpoint / "model.safetensors"
    )
    models = {name: loaded(path) for name, path in trained.items()}
    for module in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj"):
        inputs = [inputs_of(model, ids, module) for model, ids in models.values()]
        weights = [
            model.get_submodule(module).weight.numpy(force=True).astype(np.float64)
            for model, _ in models.values()
        ]
        ours = merged[f"{module}.weight"].numpy()
        assert np.allclose(ours, regressed(inputs, weights), atol=2e-4)

        def error(weight: Array, inputs: Any = inputs, weights: Any = weights) -> float:
            pairs = zip(inputs, weights, strict=True)
            return float(sum(((x @ (weight - w).T) ** 2).sum() / len(x) for x, w in pairs))

        assert error(ours) < 0.9 * error(np.mean(weights, axis=0))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        mean = sum(load_file(p / "model.safetensors")[name] for p in trained.values()) / 2
        assert torch.allclose(merged[name], mean, atol=1e-7)


def test_alpha_shrinks_what_inputs_have_in_common(
    trained: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    method = {"name": "regmean", "prompts": str(prompts), "alpha": 0.6}
    merged = load_file(
        merged_by(method, trained, tmp_path / "out").checkpoint / "model.safetensors"
    )
    name = "model.layers.0.mlp.down_proj.weight"
    tops, whole = [], []
    for path in trained.values():
        gram = values(measured(path, prompts, tmp_path / "work"), name)
        gram = np.where(np.eye(len(gram)) > 0, gram, 0.6 * gram)
        tops.append(load_file(path / "model.safetensors")[name].double().numpy() @ gram)
        whole.append(gram)
    wanted = np.linalg.solve(sum(whole).T, sum(tops).T).T
    assert np.allclose(merged[name].numpy(), wanted, atol=1e-5)


def test_equal_weights_stay_to_the_bit(
    trained: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    before = load_file(trained["a"] / "model.safetensors")
    other = Path(shutil.copytree(trained["a"], tmp_path / "other"))
    head = {"lm_head.weight": before.pop("lm_head.weight") * 1.5}
    save_file(before | head, other / "model.safetensors", metadata={"format": "pt"})
    for name in ("regmean", "fisher"):
        method = {"name": name, "prompts": str(prompts)}
        found = merged_by(method, {"a": trained["a"], "b": other}, tmp_path / name)
        merged = load_file(found.checkpoint / "model.safetensors")
        assert all(merged[tensor].equal(value) for tensor, value in before.items())


def test_gpt2_has_its_weights_the_other_way_round(
    tiny_tokenizer: Make, prompts: Path, tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=128, n_positions=128, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    sources = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        sources[name] = tmp_path / name
        GPT2LMHeadModel(config).save_pretrained(sources[name])
        tiny_tokenizer().save_pretrained(sources[name])
    method = {"name": "regmean", "prompts": str(prompts), "alpha": 1.0}
    found = merged_by(method, sources, tmp_path / "out")
    # Positions are no linear layer.
    (note,) = found.plan.warnings
    assert note.startswith("nothing was measured of transformer.wpe.weight of a: no prompt came")
    merged = load_file(found.checkpoint / "model.safetensors")
    models = {name: loaded(path) for name, path in sources.items()}
    # c_proj of attention is square, c_attn has queries, keys and values in one.
    for module in ("h.0.attn.c_attn", "h.1.attn.c_proj"):
        inputs = [inputs_of(m, ids, f"transformer.{module}") for m, ids in models.values()]
        weights = [
            m.get_submodule(f"transformer.{module}").weight.numpy(force=True).T
            for m, _ in models.values()
        ]
        ours = merged[f"transformer.{module}.weight"].numpy().T
        assert np.allclose(ours, regressed(inputs, weights), atol=2e-4)
        # A norm's outputs add up to nothing but rounding, which decides no weight.
        assert np.abs(ours).max() < 1.0


def test_experts_and_tied_embeddings_get_the_mean_and_it_is_said(
    tiny_tokenizer: Make, prompts: Path, tmp_path: Path
) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=128, hidden_size=16, intermediate_size=32, moe_intermediate_size=16,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        num_experts=4, num_experts_per_tok=1, max_position_embeddings=16,
        tie_word_embeddings=True,
    )  # fmt: skip
    sources = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        sources[name] = tmp_path / name
        Qwen3MoeForCausalLM(config).save_pretrained(sources[name])
        tiny_tokenizer().save_pretrained(sources[name])
    method = {"name": "regmean", "prompts": str(prompts)}
    found = merged_by(method, sources, tmp_path / "out")
    cut = [note for note in found.plan.warnings if "lost their end" in note]
    assert cut == [
        f"2 of 3 prompts are longer than {name} reads, and lost their end" for name in "ab"
    ]
    (lacking,) = set(found.plan.warnings) - set(cut)
    assert lacking.startswith("nothing was measured of model.layers.0.mlp.experts.")
    assert lacking.endswith(
        "no prompt came by, or it is no linear layer of its own; such matrices get the mean"
    )
    merged = load_file(found.checkpoint / "model.safetensors")
    weights = [load_file(path / "model.safetensors") for path in sources.values()]
    for name in (MOE, "model.embed_tokens.weight"):
        assert torch.allclose(merged[name], (weights[0][name] + weights[1][name]) / 2, atol=1e-7)
    attention = "model.layers.0.self_attn.q_proj.weight"
    mean = (weights[0][attention] + weights[1][attention]) / 2
    assert not torch.allclose(merged[attention], mean, atol=1e-3)


def test_an_expert_without_tokens_was_not_measured(tmp_path: Path) -> None:
    """As a model with experts one by one calls only those that a token is sent to."""

    class Routed(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> None:
            rows = torch.eye(4).expand(len(input_ids[0]), 4, 4)
            self.experts[int(input_ids[0, 0])](rows)

    model = Routed()
    weights = {str(i): Weight(e.weight, e, False, key=str(i)) for i, e in enumerate(model.experts)}
    grams = Grams(model, weights)
    prompts = [torch.tensor([0, 0]), torch.tensor([2])]
    grams.prepare(prompts)
    with Sums(tmp_path / "sums", grams.shapes) as sums:
        for number, ids in enumerate(prompts):
            grams.see(ids, number, sums)
        grams.finish(sums)
    assert [layer["tokens"] for layer in grams.layers.values()] == [8, 0, 4]


def test_layers_that_share_inputs_in_one_prompt_only_are_refused(tmp_path: Path) -> None:
    class Changing(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> None:
            rows = torch.eye(4)
            self.first(rows)
            self.second(rows if len(input_ids[0]) == 1 else rows + 1)

    model = Changing()
    weights = {n: Weight(m.weight, m, False, key=n) for n, m in model.named_children()}
    grams = Grams(model, weights)
    grams.prepare([torch.tensor([0])])
    with (
        Sums(tmp_path / "sums", grams.shapes) as sums,
        pytest.raises(SourceError, match="second and first have the same inputs in one prompt"),
    ):
        grams.see(torch.tensor([0, 1]), 1, sums)


def test_fisher_is_the_mean_squared_gradient_and_weighs_sources(
    trained: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    method = {"name": "fisher", "prompts": str(prompts), "floor": 1e-9}
    found = merged_by(method, trained, tmp_path / "out")
    merged = load_file(found.checkpoint / "model.safetensors")
    names = ["model.layers.1.self_attn.o_proj.weight", "model.norm.weight", "lm_head.weight"]
    tops = dict.fromkeys(names, 0.0)
    below = dict.fromkeys(names, 0.0)
    for path in trained.values():
        model, prompt_ids = loaded(path)
        information = dict.fromkeys(names, 0.0)
        for number, ids in enumerate(prompt_ids):
            logits = model(input_ids=ids).logits[0]
            chances = torch.softmax(logits.detach(), dim=-1)
            drawn = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(number))
            loss = torch.nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum")
            wanted = [model.get_parameter(name) for name in names]
            for name, gradient in zip(names, torch.autograd.grad(loss, wanted), strict=True):
                information[name] = information[name] + gradient.double().numpy() ** 2 / len(TEXTS)
        kept = measured(path, prompts, tmp_path / "work", "fisher")
        for name in names:
            assert np.allclose(values(kept, name), information[name], rtol=1e-3, atol=1e-9)
            share = np.maximum(information[name], 1e-9)
            tops[name] += share * model.get_parameter(name).numpy(force=True)
            below[name] += share
    for name in names:
        assert np.allclose(merged[name].numpy(), tops[name] / below[name], rtol=1e-3, atol=1e-5)


def test_adapters_are_measured_on_their_bases(
    tiny_llama: Make, tiny_lora: Make, prompts: Path, tmp_path: Path
) -> None:
    base = tiny_llama()
    loras = {name: tiny_lora(base, seed=seed) for seed, name in enumerate("ab", 1)}
    written = {
        "method": {"name": "regmean", "prompts": str(prompts)},
        "sources": {n: {"uri": str(path), "base": str(base)} for n, path in loras.items()},
        "output": {"dir": str(tmp_path / "work")},
    }
    found = merge_only(Recipe.from_dict(written), tmp_path / "out", Progress("none"))
    digests = {adapter_sha256(path, weights_sha256(base)) for path in loras.values()}
    assert {one.weights_sha256 for one in kept_in(tmp_path / "work")} == digests
    assert not found.plan.warnings


def test_what_was_measured_is_found_and_holds_no_text(
    trained: dict[str, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"name": "regmean", "prompts": str(prompts)}
    first = merged_by(method, trained, tmp_path / "out")
    monkeypatch.setattr(measuring, "_load", None)
    # The name of the file does not count, its bytes do.
    copy = Path(shutil.copy(prompts, tmp_path / "copy.txt"))
    again = merged_by(method | {"prompts": str(copy)}, trained, tmp_path / "out")
    assert again.was_there and again.plan.digest == first.plan.digest
    for file in (*tmp_path.rglob("*.json"), *tmp_path.rglob("README.md")):
        assert "angry cat" not in file.read_text(), file
    assert not list((tmp_path / "work" / "activations").glob(".*"))


def test_other_moments_are_another_plan_and_are_not_merged_with(
    trained: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    written = {
        "method": {"name": "regmean", "prompts": str(prompts)},
        "sources": {name: str(path) for name, path in trained.items()},
        "output": {"dir": str(tmp_path / "work")},
    }
    recipe = Recipe.from_dict(written)
    with pytest.raises(MergeError, match="of a are not measured by .*`mergeops statistics make`"):
        plan_only(recipe, Progress("none"))
    plan = merge_only(recipe, tmp_path / "out", Progress("none")).plan
    kept = plan.activations[0]
    other = dataclasses.replace(kept, sha256="0" * 64)
    changed = dataclasses.replace(plan, activations=(other, plan.activations[1]))
    assert changed.digest != plan.digest
    with pytest.raises(SourceError, match="does not hold the activations that the merge was plan"):
        merge(changed, tmp_path / "other")
    assert Plan.from_dict(plan.to_dict()).digest == plan.digest
    moved = dataclasses.replace(kept, path=f"{kept.path}/")
    same = dataclasses.replace(plan, activations=(moved, plan.activations[1]))
    assert same.digest == plan.digest
    poured: dict[str, bytearray] = {}
    pour(plan, lambda name, _, data: poured.setdefault(name, bytearray()).extend(data))
    name = "model.layers.0.mlp.down_proj.weight"
    written_bytes = load_file(tmp_path / "out" / "model.safetensors")[name].numpy().tobytes()
    assert bytes(poured[name]) == written_bytes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "a", "it takes a file .txt or .jsonl"),
        ("p.txt", "\n \n", "holds no prompt; write one on each line"),
        ("p.jsonl", '"a"\n{"secret": "b"}', "line 2 holds no text; write a JSON string, or an"),
        ("p.jsonl", "not JSON", "line 1 holds no text"),
        ("p.jsonl", "3", "line 1 holds no text"),
    ],
)
def test_files_without_prompts_are_refused(
    name: str, content: str, message: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        measured(trained["a"], file, tmp_path)
    with pytest.raises(ConfigError, match="gone.txt, which is no file"):
        measured(trained["a"], tmp_path / "gone.txt", tmp_path)


def test_texts_in_another_encoding_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"caf\xe9")
    with pytest.raises(SourceError, match="cannot be read: it is no UTF-8"):
        measured(trained["a"], tmp_path / "p.txt", tmp_path)


def test_models_that_are_none_are_refused(
    trained: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(trained["a"], tmp_path / "broken"))
    (broken / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="cannot be run as a causal language model with its tok"):
        measured(broken, prompts, tmp_path)
    shutil.copy(trained["a"] / "config.json", broken)
    config = json.loads((broken / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="is of LlamaForSequenceClassification, which is no caus"):
        measured(broken, prompts, tmp_path)
    assert not list(tmp_path.glob("activations/.*"))


def test_a_full_disk_is_said_and_leaves_nothing(
    trained: dict[str, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        usage = shutil._ntuple_diskusage(100, 95, 5)  # type: ignore[attr-defined]
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(MergeError, match="what is measured takes .*, but only 5 .* are free"):
            measured(trained["a"], prompts, tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(MergeError, match="cannot be written: No space left on device"):
        measured(trained["a"], prompts, tmp_path)
    assert not list((tmp_path / "activations").iterdir())


def test_recipes_say_what_they_measure_by(trained: dict[str, Path]) -> None:
    sources = {name: str(path) for name, path in trained.items()}
    with pytest.raises(ConfigError, match="method.prompts is None; regmean needs a file of texts"):
        Recipe.from_dict({"method": "regmean", "sources": sources})
    with pytest.raises(ConfigError, match="unknown key method.prompts of linear|method.prompts"):
        Recipe.from_dict({"method": {"name": "linear", "prompts": "p"}, "sources": sources})
    inner = {"method": {"name": "regmean", "prompts": "p.txt"}, "sources": sources}
    recipe = Recipe.from_dict(inner)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    outer = {"method": "linear", "sources": {"m": "merge:m"}, "merges": {"m": inner}}
    with pytest.raises(ConfigError, match="merges.m.method is regmean, whose activations are mea"):
        Recipe.from_dict(outer)


def test_something_in_the_way_is_said(
    trained: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    found = measured(trained["a"], prompts, tmp_path)
    (Path(found.path) / "measured.json").write_text("{")
    digest = found.prompts_sha256
    assert find(tmp_path, "gram", found.weights_sha256, digest) is None and not kept_in(tmp_path)
    with pytest.raises(MergeError, match="something else is there; remove it"):
        measured(trained["a"], prompts, tmp_path)


def test_the_commands_make_and_list_what_a_recipe_needs(
    trained: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from mergeops.cli.statistics import statistics

    recipe = tmp_path / "recipe.yaml"
    sources = ", ".join(f"{name}: {path}" for name, path in trained.items())
    recipe.write_text(
        f"sources: {{{sources}}}\nmethod: {{name: regmean, prompts: {prompts}}}\n"
        f"output: {{dir: {tmp_path / 'work'}}}\n"
    )
    made = CliRunner().invoke(statistics, ["make", str(recipe), "--json", "-q"])
    listed = CliRunner().invoke(statistics, ["list", str(recipe), "--json"])
    assert json.loads(made.stdout) and made.exit_code == 0
    by_path = {one["path"]: one for one in json.loads(listed.stdout)}
    assert by_path == {one["path"]: one for one in json.loads(made.stdout)}
    assert {one["weights"] for one in by_path.values()} == {14}
    text = CliRunner().invoke(statistics, ["list", str(recipe)]).stdout
    assert "gram: X^T X over all tokens" in text
    refused = CliRunner().invoke(statistics, ["make", str(recipe), "method=linear"])
    assert "needs no activations" in str(refused.exception)


def test_each_source_may_have_prompts_of_its_own(
    trained: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.txt"
    own.write_text(f"{TEXTS[0]}\n")
    files = {"a": own, "b": prompts}
    recipe = {
        "method": {"name": "regmean", "prompts": str(prompts), "alpha": 1.0},
        "sources": {"a": {"uri": str(trained["a"]), "prompts": str(own)}, "b": str(trained["b"])},
        "output": {"dir": str(tmp_path / "work")},
    }
    written = Recipe.from_dict(recipe)
    assert written.prompts == files
    assert Recipe.from_dict(written.to_dict()) == written
    merge_only(written, tmp_path / "out", Progress("none"))
    kept = kept_in(tmp_path / "work")
    assert {(one.weights_sha256, one.prompts) for one in kept} == {
        (weights_sha256(trained["a"]), 1),
        (weights_sha256(trained["b"]), len(TEXTS)),
    }
    # Equal to a regression on what each saw of its own texts.
    module = "model.layers.0.self_attn.v_proj"
    inputs, weights = [], []
    for name, path in trained.items():
        model, ids = loaded(path)
        inputs.append(inputs_of(model, ids[:1] if name == "a" else ids, module))
        weights.append(model.get_submodule(module).weight.detach().double().numpy())
    merged = load_file(tmp_path / "out" / "model.safetensors")[f"{module}.weight"].double().numpy()
    assert np.allclose(merged, regressed(inputs, weights), atol=2e-4)


def test_sources_without_prompts_and_prompts_without_use_are_refused(
    trained: dict[str, Path],
) -> None:
    sources = {"a": {"uri": str(trained["a"]), "prompts": "p.txt"}, "b": str(trained["b"])}
    with pytest.raises(ConfigError, match="for all or as sources.b.prompts"):
        Recipe.from_dict({"method": "regmean", "sources": sources})
    with pytest.raises(ConfigError, match="sources.a.prompts"):
        Recipe.from_dict({"method": "linear", "sources": sources})
    sources["b"] = {"uri": str(trained["b"]), "prompts": 3}
    with pytest.raises(ConfigError, match=r"sources.b.prompts is 3; it takes a file of texts"):
        Recipe.from_dict({"method": {"name": "regmean", "prompts": "p"}, "sources": sources})
    sources["b"] = {"uri": str(trained["b"]), "prompts": "q.txt"}
    recipe = Recipe.from_dict({"method": "regmean", "sources": sources})
    assert {name: str(file) for name, file in recipe.prompts.items()} == {
        "a": "p.txt",
        "b": "q.txt",
    }
