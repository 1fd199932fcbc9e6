"""inspect on checkpoints: what fits, what is double, and one pass over the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mergeops.cli.main import cli
from mergeops.errors import MergeError
from mergeops.inspection import walk as stream

FILE = "model.safetensors"


def inspect(tmp_path: Path, *words: str, code: int = 0) -> dict[str, Any]:
    """The command's JSON."""
    arguments = ["inspect", *words, f"output.dir={tmp_path / 'work'}", "--json", "--quiet"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == code, done.output
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def changed(model: Path, path: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A copy with other tensors."""
    shutil.copytree(model, path)
    save_file(edit(load_file(model / FILE)), path / FILE, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def family(tiny_llama: Callable[..., Path]) -> tuple[Path, Path, Path]:
    base = tiny_llama()
    return base, tiny_llama(like=base, seed=1), tiny_llama(like=base, seed=2)


def test_statistics_are_those_of_all_tensors_held_at_once(
    family: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK", 100)
    base, a, b = family
    seen = inspect(tmp_path, f"base={base}", f"sources.a.uri={a}", f"sources.b.uri={b}")
    tensors = {name: load_file(path / FILE) for name, path in zip("0ab", family, strict=True)}

    def flat(name: str, prefix: str = "") -> torch.Tensor:
        chosen = [t.double().flatten() for k, t in tensors[name].items() if k.startswith(prefix)]
        return torch.cat(chosen)

    for layer, prefix in (("all", ""), ("layer 1", "model.layers.1.")):
        found = next(one for one in [seen["total"], *seen["layers"]] if one["name"] == layer)
        own, other = (flat(name, prefix) - flat("0", prefix) for name in "ab")
        size = flat("0", prefix).norm()
        assert found["norm"]["a"] == pytest.approx(float(own.norm()), rel=1e-12)
        assert found["relative_norm"]["a"] == pytest.approx(float(own.norm() / size), rel=1e-12)
        cosine = float(own @ other / own.norm() / other.norm())
        assert found["cosine"]["a|b"] == pytest.approx(cosine, abs=1e-12)
        opposed = ((own * other) < 0).sum() / ((own != 0) & (other != 0)).sum()
        assert found["sign_conflict"]["a|b"] == pytest.approx(float(opposed))
    matrix = tensors["a"]["lm_head.weight"].double() - tensors["0"]["lm_head.weight"].double()
    share = torch.linalg.svdvals(matrix)
    share /= share.sum()
    head = next(one for one in seen["tensors"] if one["name"] == "lm_head.weight")
    rank = float(torch.exp(-(share * share.log()).sum()))
    assert head["effective_rank"]["a"] == pytest.approx(rank, rel=1e-6)
    names = [layer["name"] for layer in seen["layers"]]
    assert names == ["embeddings", "layer 0", "layer 1", "after the layers"]
    assert seen["fits"] and seen["duplicates"] == [] and seen["left_out"] == {}


def test_adapters_bring_their_base_and_have_their_rank(
    family: tuple[Path, Path, Path], tiny_lora: Callable[..., Path], tmp_path: Path
) -> None:
    base = family[0]
    adapters = [tiny_lora(base, seed=seed, r=1, lora_alpha=2) for seed in (1, 2)]
    words = [f"sources.{n}.uri={path}" for n, path in zip("xy", adapters, strict=True)]
    seen = inspect(tmp_path, *words)
    assert (seen["base"], seen["base_from"]) == (str(base), "adapters")
    assert [source["kind"] for source in seen["sources"]] == ["lora", "lora"]
    name = "model.layers.0.self_attn.q_proj.weight"
    one = next(t for t in seen["tensors"] if t["name"] == name)
    assert one["effective_rank"] == pytest.approx({"x": 1.0, "y": 1.0}, abs=1e-4)
    pair = load_file(adapters[0] / "adapter_model.safetensors")
    key = "base_model.model." + name.removesuffix(".weight")
    product = pair[f"{key}.lora_B.weight"].double() @ pair[f"{key}.lora_A.weight"].double()
    assert one["norm"]["x"] == pytest.approx(2 * float(product.norm()), rel=1e-6)
    untouched = next(t for t in seen["tensors"] if t["name"] == "lm_head.weight")
    assert untouched["norm"] == {"x": 0.0, "y": 0.0}
    assert untouched["cosine"]["x|y"] is None
    assert inspect(tmp_path, *words, f"base={base}")["total"] == seen["total"]


def test_without_a_base_it_says_what_is_not_known(
    family: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, a, b = family
    seen = inspect(tmp_path, f"sources.a.uri={a}", f"sources.b.uri={b}")
    assert seen["base_from"] == "none"
    assert seen["total"]["sign_conflict"] == {"a|b": None}
    assert seen["total"]["cosine"]["a|b"] > 0.98
    assert "Without a base there are no task vectors" in seen["caveats"][-1]


def test_equal_weights_are_found_whatever_files_they_are_in(
    family: tuple[Path, Path, Path], tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    base, a, b = family
    half = changed(a, tmp_path / "half", lambda t: {k: v.double() for k, v in t.items()})
    copy = Path(shutil.copytree(a, tmp_path / "copy"))
    words = {"a": a, "b": b, "half": half, "copy": copy, "lazy": base}
    seen = inspect(
        tmp_path, f"base={base}", *(f"sources.{n}.uri={p}" for n, p in words.items()), code=4
    )
    assert seen["duplicates"] == [["a", "half", "copy"], ["lazy", "base"]]
    assert "sources a and copy have the same weights" in seen["refused"]
    assert seen["total"]["distance"]["a|half"] == 0.0


def test_what_does_not_fit_is_said_of_each_source_and_the_rest_is_compared(
    family: tuple[Path, Path, Path], tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    base, a, _ = family
    wide = tiny_llama(vocabulary_size=160)
    norms = changed(
        a, tmp_path / "lacks", lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"}
    )
    words = {"a": a, "wide": wide, "lacks": norms}
    seen = inspect(
        tmp_path, f"base={base}", *(f"sources.{n}.uri={p}" for n, p in words.items()), code=4
    )
    assert not seen["fits"]
    assert set(seen["differences"]) == {"wide", "lacks"}
    assert "lacks 1 tensor(s) that base has" in seen["differences"]["lacks"][0]
    assert seen["left_out"] == {
        "lm_head.weight": "[128, 32] in base, [160, 32] in wide",
        "model.embed_tokens.weight": "[128, 32] in base, [160, 32] in wide",
        "model.norm.weight": "lacks lacks it",
    }
    assert seen["total"]["norm"]["a"] > 0


def test_models_with_nothing_in_common_are_one_line(
    family: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, a, _ = family
    other = changed(a, tmp_path / "other", lambda t: {f"{k}.x": v for k, v in t.items()})
    words = ["inspect", f"base={base}", f"sources.o.uri={other}", f"output.dir={tmp_path}/w", "-q"]
    done = CliRunner().invoke(cli, words)
    assert str(done.exception).startswith(
        "base, o have no tensor that is in all of them, in one shape; lm_head.weight is in base"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there are no sources; name a recipe"),
        (["sources.a.uri=x", "--plot", "FILE"], "is a file; name a directory"),
    ],
)
def test_bad_input_is_refused_before_weights_are_read(
    words: list[str], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    named = [str(file) if word == "FILE" else word for word in words]
    done = CliRunner().invoke(cli, ["inspect", *named])
    assert message in str(done.exception)


def test_heat_maps_are_written_and_the_tables_are_honest(
    family: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, a, b = family
    plots = tmp_path / "plots"
    words = ["inspect", f"base={base}", f"sources.a.uri={a}", f"sources.b.uri={b}", "method=ties"]
    words += ["--plot", str(plots), f"output.dir={tmp_path / 'work'}"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0
    names = ["norms", "cosines", "sign_conflicts", "effective_ranks"]
    assert sorted(p.name for p in plots.iterdir()) == sorted(f"{name}.png" for name in names)
    for path in plots.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    assert "these merge with this recipe" in done.output
    assert "They do not predict" in " ".join(done.output.split())
    assert not (tmp_path / "mlflow.db").exists()


def test_ranks_are_left_out_on_request(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, _ = family
    seen = inspect(tmp_path, f"base={base}", f"sources.a.uri={a}", "--no-rank")
    assert seen["total"]["effective_rank"] == {"a": None}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("bad", ["base", "a", "b"])
def test_what_a_merge_refuses_for_its_values_does_not_fit(
    bad: str, has_base: bool, value: float, family: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, Any]) -> dict[str, Any]:
        for name in ("lm_head.weight", "model.norm.weight"):
            tensors[name].view(-1)[3] = value
        return tensors

    places = dict(zip(("base", "a", "b"), family, strict=True))
    places[bad] = changed(places[bad], tmp_path / "bad", spoil)
    words = [f"sources.{name}.uri={places[name]}" for name in "ab"]
    words += [f"base={places['base']}"] if has_base else []
    is_used = bad != "base" or has_base
    seen = inspect(tmp_path, *words, code=4 if is_used else 0)
    assert seen["fits"] is not is_used
    assert seen["refused"] == (
        f"{bad} holds NaN or infinity in lm_head.weight and 1 more tensor(s); leave this source out"
        if is_used
        else None
    )


def test_models_with_nothing_in_common_say_what_the_planner_says(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    small, large = tiny_llama(), tiny_llama(hidden=96, vocabulary_size=512)
    words = ["inspect", f"sources.a.uri={small}", f"sources.b.uri={large}", "--quiet"]
    done = CliRunner().invoke(cli, [*words, f"output.dir={tmp_path / 'work'}"])
    assert isinstance(done.exception, MergeError)
    assert str(done.exception).startswith(
        "a, b have no tensor that is in all of them, in one shape; a and b have different "
        "architectures: head_dim is 8 in a and 24 in b"
    )


def test_a_recipe_file_is_inspected(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    sources = {"a": {"uri": str(family[1])}, "b": {"uri": str(family[2])}}
    path = tmp_path / "mine.yml"
    path.write_text(json.dumps({"base": str(family[0]), "method": "ties", "sources": sources}))
    assert inspect(tmp_path, str(path), "--no-rank")["fits"]
