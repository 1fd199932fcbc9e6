"""The engine on whole checkpoints: its results, and that nothing half-done is ever visible."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeops import methods
from mergeops.checkpoint.holds import alone
from mergeops.checkpoint.verification import verify_checkpoint
from mergeops.engine.devices import chunk_for
from mergeops.engine.execute import Tuning, merge
from mergeops.engine.stream import TensorStream
from mergeops.errors import ConfigError, MergeError, MergeopsError, SourceError
from mergeops.kernels.blocks import BLOCK
from mergeops.methods.steps.fused import kernels as fused_kernels
from mergeops.methods.steps.whole import merge_tensors
from mergeops.planning.plan import Plan

Make = Callable[..., Any]
NAMES = [name for name in methods.names() if not methods.get(name).activations]
"""Methods that need nothing but weights."""
EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def models(tiny_llama: Make) -> dict[str, Path]:
    """Tensors of several chunks: 512 x 96 embeddings."""
    base = tiny_llama(hidden=96, vocabulary_size=512, dtype="bfloat16")
    fine = {n: tiny_llama(like=base, seed=i, dtype="bfloat16") for i, n in enumerate("abc", 1)}
    return {"base": base} | fine


@pytest.fixture
def ties(plan_of: Make, models: dict[str, Path]) -> Plan:
    plan: Plan = plan_of({"name": "ties"}, models["base"], {n: models[n] for n in "abc"})
    return plan


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def edited(model: Path, out: Path, tensors: dict[str, torch.Tensor]) -> Path:
    copy = Path(shutil.copytree(model, out))
    content = load_file(copy / "model.safetensors") | tensors
    save_file(content, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir() if out.name in path.name]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_gives_what_it_gives_on_tensors_at_hand(
    name: str, plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    method = methods.get(name)
    names = "abc"[: method.max_sources or 3]
    plan = plan_of({"name": name}, models["base"], {n: models[n] for n in names}, seed=3)
    out = merge(plan, tmp_path / "out", tuning=Tuning(chunk=BLOCK))
    base = tensors_of(models["base"])
    sources = [tensors_of(models[n]) for n in names]
    merged = tensors_of(out)
    assert merged.keys() == base.keys()
    for tensor, found in merged.items():
        expected = merge_tensors(
            name,
            [source[tensor].float() for source in sources],
            base[tensor].float(),
            seed=3,
            digests=[source.sha256 for source in plan.sources],
            tensor=tensor,
            has_token_rows=tensor == EMBEDDINGS or "lm_head" in tensor,
            # The model has two layers.
            depth=float(tensor.split(".")[2]) if ".layers." in tensor else None,
        )
        assert found.dtype == torch.bfloat16
        assert found.equal(expected.bfloat16()), tensor


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", [*NAMES, "model_stock by rows"])
def test_chunks_and_lanes_do_not_change_a_byte(
    name: str, fused: bool, plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    method: dict[str, Any] = {"name": name.removesuffix(" by rows")}
    if name.endswith("by rows"):
        method["filter_wise"] = True
    names = "ab"[: methods.get(method["name"]).max_sources or 2]
    plan = plan_of(method, models["base"], {n: models[n] for n in names})
    found = []
    for i, (chunk, lanes) in enumerate([(BLOCK, 1), (2 * BLOCK, 3), (1 << 18, 2)]):
        tuning = Tuning(chunk=chunk, lanes=lanes, fused=fused)
        found.append(contents(merge(plan, tmp_path / str(i), tuning=tuning)))
    assert all(other == found[0] for other in found)


def test_merge_loads_with_transformers(ties: Plan, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = merge(ties, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model(**tokenizer("one two", return_tensors="pt")).logits.isfinite().all()
    assert tokenizer.chat_template


def test_shards_in_and_out(plan_of: Make, tiny_llama: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = tiny_llama(max_shard_size="20KB")
    sources = {n: tiny_llama(like=base, seed=i) for i, n in enumerate("ab", 1)}
    whole = merge(plan_of({"name": "linear"}, base, sources), tmp_path / "whole")
    plan = plan_of({"name": "linear"}, base, sources, output={"shard_size": "30KB"})
    out = merge(plan, tmp_path / "sharded")
    assert len(list(out.glob("*.safetensors"))) == len(plan.shards) > 2
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(whole).keys()
    model = AutoModelForCausalLM.from_pretrained(out)
    for name, tensor in tensors_of(whole).items():
        assert model.state_dict()[name].equal(tensor)
    assert verify_checkpoint(out) == []


def test_tied_embeddings_stay_tied(plan_of: Make, tiny_llama: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = tiny_llama(tied=True)
    plan = plan_of({"name": "ties"}, base, {"a": tiny_llama(like=base, seed=1)})
    out = merge(plan, tmp_path / "out")
    assert "lm_head.weight" not in tensors_of(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_inputs_of_different_formats_are_merged_in_the_compute_format(
    compute: str, plan_of: Make, models: dict[str, Path], tiny_llama: Make, tmp_path: Path
) -> None:
    half = tiny_llama(like=models["base"], seed=7, dtype="float16")
    full = tiny_llama(like=models["base"], seed=8, dtype="float32")
    sources = {"half": half, "full": full}
    settings = {"dtype": {"compute": compute, "save": "float32"}}
    merged = tensors_of(
        merge(plan_of({"name": "ties"}, models["base"], sources, **settings), tmp_path / "out")
    )
    base, a, b = (
        {n: t.to(getattr(torch, compute)) for n, t in tensors_of(path).items()}
        for path in (models["base"], half, full)
    )
    for name, tensor in merged.items():
        expected = merge_tensors("ties", [a[name], b[name]], base[name])
        assert tensor.equal(expected.float())


@pytest.fixture
def doubles(tmp_path: Path) -> Path:
    """A model whose numbers float32 cannot hold: digits beyond its 24 bits, and 1e300."""
    folder = tmp_path / "doubles"
    folder.mkdir()
    values = torch.tensor([[1 / 3, 1 + 2**-40], [1e300, -(2.0**200)]], dtype=torch.float64)
    save_file({"w": values}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_float64_inputs_keep_all_digits(plan_of: Make, doubles: Path, tmp_path: Path) -> None:
    plan = plan_of({"name": "passthrough"}, None, {"a": doubles})
    assert plan.compute == "float64"
    assert any("w of a is stored as float64" in warning for warning in plan.warnings)
    out = merge(plan, tmp_path / "out")
    assert tensors_of(out)["w"].equal(tensors_of(doubles)["w"])


def test_float64_values_are_judged_in_the_format_of_the_arithmetic(
    plan_of: Make, doubles: Path, tmp_path: Path
) -> None:
    plan = plan_of({"name": "passthrough"}, None, {"a": doubles})
    narrow = dataclasses.replace(plan, compute="float32")
    with pytest.raises(
        SourceError, match=r"a holds 2 value\(s\) .*, the first \(inf\) at \[1, 0\]"
    ):
        merge(narrow, tmp_path / "narrow")
    saved = plan_of({"name": "passthrough"}, None, {"a": doubles}, dtype={"save": "float32"})
    told = r"w at \[1, 0\] is 1e\+300, which float32 cannot hold; set dtype.save to auto, or"
    with pytest.raises(MergeError, match=told):
        merge(saved, tmp_path / "saved")


def test_config_names_the_saved_format(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    old = Path(shutil.copytree(models["base"], tmp_path / "old"))
    config = json.loads((old / "config.json").read_text())
    del config["dtype"]
    # transformers 4 wrote it into the configs of the models inside, too.
    said = {"torch_dtype": "bfloat16", "vision_config": {"torch_dtype": "bfloat16", "depth": 1}}
    (old / "config.json").write_text(json.dumps(config | said))
    plan = plan_of({"name": "linear"}, old, {"a": models["a"]}, dtype={"save": "float32"})
    out = merge(plan, tmp_path / "out")
    written = json.loads((out / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == "float32"
    assert written["vision_config"] == {"torch_dtype": "float32", "depth": 1}
    assert {tensor.dtype for tensor in tensors_of(out).values()} == {torch.float32}


def test_manifest_names_inputs_and_files(ties: Plan, tmp_path: Path) -> None:
    out = merge(ties, tmp_path / "out")
    manifest = json.loads((out / "mergeops.json").read_text())
    assert manifest["plan_digest"] == ties.digest
    assert [s["sha256"] for s in manifest["sources"]] == [s.sha256 for s in ties.sources]
    assert manifest["recipe"]["method"]["name"] == "ties"
    assert manifest["files"].keys() == {p.name for p in out.iterdir()} - {"mergeops.json"}
    assert str(tmp_path) not in json.dumps(manifest)
    assert leftovers(out) == ["out"]


def test_a_merge_holds_no_credentials_of_its_sources(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    uris = {n: f"sftp://bob:hunter2@host/{n}?access_key=hunter2" for n in "abc"}
    spelled = {n: {"uri": uri} for n, uri in uris.items()}
    plan = plan_of({"name": "ties"}, models["base"], {n: models[n] for n in "abc"}, spelled)
    inputs = tuple(dataclasses.replace(one, uri=uris[one.name]) for one in plan.sources)
    base = dataclasses.replace(plan.base, uri="https://hunter2@host/base")
    out = merge(dataclasses.replace(plan, sources=inputs, base=base), tmp_path / "out")
    for path in out.iterdir():
        assert b"hunter2" not in path.read_bytes(), path
    manifest = json.loads((out / "mergeops.json").read_text())
    shown = "sftp://host/a?access_key=***"
    assert manifest["recipe"]["sources"]["a"]["uri"] == manifest["sources"][0]["uri"] == shown
    card = (out / "README.md").read_text()
    assert f"| a | `{shown}` |" in card and 'base_model: ["https://host/base", ' in card


def test_card_is_short_or_given(ties: Plan, plan_of: Make, tmp_path: Path) -> None:
    text = (merge(ties, tmp_path / "short") / "README.md").read_text()
    assert text.startswith('---\nbase_model: ["file:base", "file:a", "file:b", "file:c"]\n')
    assert 'base_model_relation: "merge"' in text
    assert (merge(ties, tmp_path / "own", card="# Mine\n") / "README.md").read_text() == "# Mine\n"


def test_verify_names_what_differs(ties: Plan, tmp_path: Path) -> None:
    out = merge(ties, tmp_path / "out")
    assert verify_checkpoint(out) == []
    (out / "config.json").unlink()
    with open(out / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with open(out / "tokenizer.json", "a") as text:
        text.write(" ")
    (out / "extra.safetensors").write_bytes(b"x")
    assert sorted(verify_checkpoint(out)) == [
        "config.json is missing",
        "extra.safetensors is no part of the merge, but would be loaded with it",
        "model.safetensors has other content than when it was merged: model.norm.weight, "
        "1 of 21 tensors",
        f"tokenizer.json has {(out / 'tokenizer.json').stat().st_size} bytes, not "
        f"{(out / 'tokenizer.json').stat().st_size - 1}",
    ]


def test_verify_of_what_is_no_merge(tmp_path: Path) -> None:
    assert "mergeops.json is missing: the merge did not finish" in verify_checkpoint(tmp_path)[0]
    for text in ("{", "[]", '{"format": 1}', '{"format": 1, "files": {"a": 1}}'):
        (tmp_path / "mergeops.json").write_text(text)
        assert "mergeops.json is damaged" in verify_checkpoint(tmp_path)[0]
    (tmp_path / "mergeops.json").write_text('{"format": 99}')
    assert "has format 99; this version of mergeops reads 1" in verify_checkpoint(tmp_path)[0]
    escape = {"format": 1, "plan_digest": "x", "files": {"../x": {"size": 1, "sha256": ""}}}
    (tmp_path / "mergeops.json").write_text(json.dumps(escape))
    [problem] = verify_checkpoint(tmp_path)
    assert problem.endswith("is damaged: '../x' is no name of a file in this directory")


def test_finished_merge_is_found_and_not_made_again(
    ties: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = merge(ties, tmp_path / "out")
    monkeypatch.delattr(TensorStream, "results")
    assert merge(ties, out) == out


def test_a_merge_is_held_when_it_was_made_and_when_it_was_found(ties: Plan, tmp_path: Path) -> None:
    made = merge(ties, tmp_path / "made")
    with pytest.raises(BlockingIOError), alone(made):
        pass
    found = Path(shutil.copytree(made, tmp_path / "found"))
    with alone(found):
        pass
    assert merge(ties, found) == found
    with pytest.raises(BlockingIOError), alone(found):
        pass


def test_directory_of_something_else_is_left_alone(
    ties: Plan, plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.write_text("x")
    with pytest.raises(MergeError, match="out is a file; the output must be a new or empty"):
        merge(ties, out)
    out.unlink()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(MergeError, match="out is not empty and holds no mergeops.json"):
        merge(ties, out)
    (out / "notes.txt").unlink()
    assert merge(ties, out) == out
    other = plan_of({"name": "linear"}, None, {"a": models["a"]})
    with pytest.raises(
        MergeError, match=rf"holds another merge \(plan {ties.digest[:12]}, this is"
    ):
        merge(other, out)
    (out / "config.json").unlink()
    with pytest.raises(MergeError, match="out is damaged: config.json is missing or cut"):
        merge(ties, out)


def test_progress_rises_to_the_total(ties: Plan, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    merge(ties, tmp_path / "out", progress=lambda *state: seen.append(state))
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert {total for _, total in seen} == {ties.bytes_to_write}
    assert done[-1] == ties.bytes_to_write


def test_threads_of_the_caller_are_as_before(ties: Plan, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    merge(ties, tmp_path / "out")
    assert torch.get_num_threads() == before


KILLED = """
import json, os, signal, sys
from pathlib import Path
from mergeops.engine.execute import Tuning, merge
from mergeops.planning.plan import Plan

plan = Plan.from_dict(json.loads(Path(sys.argv[1]).read_text()))
def progress(done, total):
    if done >= float(sys.argv[3]) * total:
        os.kill(os.getpid(), signal.SIGKILL)
merge(plan, Path(sys.argv[2]), progress=progress, tuning=Tuning(chunk=16384))
"""


def killed_at(share: float, plan: Plan, out: Path) -> None:
    """Run the merge in a process of its own that dies by SIGKILL after a share of the bytes."""
    written = out.with_name("plan.json")
    written.write_text(json.dumps(plan.to_dict()))
    command = [sys.executable, "-c", KILLED, str(written), str(out), str(share)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not out.exists()


def merged_tensors(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors that are computed from now on."""
    seen = []
    original = TensorStream.results

    def results(self: TensorStream, tasks: Any) -> Any:
        named = list(tasks)
        seen.extend(task.name for task in named)
        return original(self, named)

    monkeypatch.setattr(TensorStream, "results", results)
    return seen


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 1.0])
def test_killed_merge_goes_on_where_it_was(
    share: float,
    plan_of: Make,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = {n: models[n] for n in "ab"}
    plan = plan_of({"name": "ties"}, models["base"], sources, output={"shard_size": "150KB"})
    expected = contents(merge(plan, tmp_path / "expected"))
    killed_at(share, plan, tmp_path / "out")
    journal = (tmp_path / ".out.partial" / "journal.jsonl").read_text().splitlines()[1:]
    finished = {json.loads(line)["tensor"] for line in journal}
    computed = merged_tensors(monkeypatch)
    out = merge(plan, tmp_path / "out")
    assert contents(out) == expected
    assert not finished & set(computed)
    assert len(finished) + len(computed) == sum(len(shard.tensors) for shard in plan.shards)
    assert bool(finished) == (share > 0)
    assert ".out.partial" not in leftovers(out)


def test_what_was_damaged_after_the_kill_is_made_again(
    ties: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(merge(ties, tmp_path / "expected"))
    killed_at(0.9, ties, tmp_path / "out")
    third = ties.shards[0].tensors[2]
    offset = len(ties.shards[0].header) + sum(t.nbytes for t in ties.shards[0].tensors[:2])
    with open(tmp_path / ".out.partial" / "model.safetensors", "r+b") as file:
        file.seek(offset)
        file.write(b"\xff\xfe")
    with open(tmp_path / ".out.partial" / "journal.jsonl", "a") as journal:
        journal.write('{"file": "model.safe')
    computed = merged_tensors(monkeypatch)
    assert contents(merge(ties, tmp_path / "out")) == expected
    assert computed[0] == third.name


def test_merge_killed_before_the_rename_is_only_renamed(
    ties: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(merge(ties, tmp_path / "expected"))

    def killed(*paths: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            merge(ties, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.delattr(TensorStream, "results")
    assert contents(merge(ties, tmp_path / "out")) == expected


def test_work_of_another_plan_is_not_resumed(
    ties: Plan,
    plan_of: Make,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed_at(0.9, ties, tmp_path / "out")
    other = plan_of({"name": "linear"}, None, {n: models[n] for n in "ab"})
    expected = contents(merge(other, tmp_path / "expected"))
    computed = merged_tensors(monkeypatch)
    assert contents(merge(other, tmp_path / "out")) == expected
    assert len(computed) == len(other.shards[0].tensors)


def test_full_disk_keeps_what_is_done(
    ties: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(merge(ties, tmp_path / "expected"))
    original = os.pwrite
    left = [300_000]

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(file, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(
        MergeError, match="cannot be written: No space left on device; what is done"
    ):
        merge(ties, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(os, "pwrite", original)
    computed = merged_tensors(monkeypatch)
    assert contents(merge(ties, tmp_path / "out")) == expected
    assert len(computed) < len(ties.shards[0].tensors)


def test_place_that_cannot_be_written(ties: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MergeError, match="out.partial cannot be written: Not a directory"):
        merge(ties, tmp_path / "file" / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["linear", "slerp", "ties"])
def test_source_with_nan_is_named_and_nothing_is_left(
    name: str, value: float, plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    tensor = load_file(models["b"] / "model.safetensors")[EMBEDDINGS]
    tensor[400, 7] = tensor[511, 95] = value
    bad = edited(models["b"], tmp_path / "bad", {EMBEDDINGS: tensor})
    plan = plan_of({"name": name}, models["base"], {"a": models["a"], "bad": bad})
    match = rf"bad holds 2 value\(s\) that are NaN or infinite in {EMBEDDINGS}, the first "
    with pytest.raises(SourceError, match=match + rf"\({value:g}\) at \[400, 7\]"):
        merge(plan, tmp_path / "out", tuning=Tuning(chunk=BLOCK))
    assert leftovers(tmp_path / "out") == []


def test_base_with_nan_is_named(plan_of: Make, models: dict[str, Path], tmp_path: Path) -> None:
    norm = {"model.norm.weight": torch.full((96,), float("nan"), dtype=torch.bfloat16)}
    bad = edited(models["base"], tmp_path / "bad", norm)
    plan = plan_of({"name": "ties"}, bad, {"a": models["a"]})
    with pytest.raises(
        SourceError, match=r"base holds 96 value\(s\) .* in model.norm.weight, .*\[0\]"
    ):
        merge(plan, tmp_path / "out")


def test_large_finite_values_are_no_false_alarm(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    """The quick check adds values up; a sum that overflows is looked at again."""
    norm = {"model.norm.weight": torch.full((96,), 3e38, dtype=torch.bfloat16)}
    large = edited(models["a"], tmp_path / "large", norm)
    out = merge(plan_of({"name": "linear"}, None, {"large": large}), tmp_path / "out")
    assert tensors_of(out)["model.norm.weight"].equal(norm["model.norm.weight"])


def test_result_that_overflows_the_saved_format(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    tensor = load_file(models["a"] / "model.safetensors")[EMBEDDINGS]
    tensor[3, 4] = 70_000.0
    large = edited(models["a"], tmp_path / "large", {EMBEDDINGS: tensor})
    plan = plan_of({"name": "linear"}, None, {"large": large}, dtype={"save": "float16"})
    match = (
        rf"result of {EMBEDDINGS} at \[3, 4\] is 70144, which float16 cannot hold; set dtype.save"
    )
    with pytest.raises(MergeError, match=match):
        merge(plan, tmp_path / "out")
    assert leftovers(tmp_path / "out") == []


def test_whole_numbers_are_copied_when_equal_and_refused_when_not(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    extra = {
        "ids": torch.arange(40_000),
        "flag": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 3, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.0, dtype=torch.bfloat16),
    }
    one = edited(models["a"], tmp_path / "one", extra)
    two = edited(models["b"], tmp_path / "two", extra)
    plan = plan_of({"name": "slerp"}, None, {"one": one, "two": two})
    found = tensors_of(merge(plan, tmp_path / "out", tuning=Tuning(chunk=BLOCK)))
    assert all(found[name].equal(tensor) for name, tensor in extra.items())
    extra["ids"] = torch.arange(40_000).clone()
    extra["ids"][-1] = 0
    other = edited(models["b"], tmp_path / "other", extra)
    plan = plan_of({"name": "slerp"}, None, {"one": one, "other": other})
    with pytest.raises(MergeError, match="ids holds whole numbers, .* between one and other"):
        merge(plan, tmp_path / "again")


def test_source_that_changes_is_noticed(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    moving = Path(shutil.copytree(models["a"], tmp_path / "moving"))
    plan = plan_of({"name": "linear"}, None, {"moving": moving, "b": models["b"]})

    def touch(done: int, total: int) -> None:
        os.utime(moving / "model.safetensors", ns=(1, done))

    with pytest.raises(SourceError, match=r"moving/model.safetensors changed after the merge was"):
        merge(plan, tmp_path / "out", progress=touch)
    with pytest.raises(SourceError, match=r"moving/model.safetensors changed after the merge was"):
        merge(plan, tmp_path / "out")
    assert leftovers(tmp_path / "out") == []


def test_small_file_that_changes_is_noticed(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    moving = Path(shutil.copytree(models["a"], tmp_path / "moving"))
    plan = plan_of({"name": "linear"}, None, {"moving": moving})
    (moving / "config.json").write_text("{}")
    with pytest.raises(
        SourceError, match=r"moving/config.json changed after the merge was planned"
    ):
        merge(plan, tmp_path / "out")


def test_adapter_config_that_changes_is_noticed(
    plan_of: Make, tiny_llama: Make, tiny_lora: Make, tmp_path: Path
) -> None:
    base = tiny_llama()
    adapter = tiny_lora(base, path=tmp_path / "adapter")
    plan = plan_of({"name": "linear"}, None, {"a": (adapter, base)})
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 800}))
    with pytest.raises(
        SourceError, match="adapter_config.json changed after the merge was planned"
    ):
        merge(plan, tmp_path / "out")


def test_two_at_once_make_it_once(
    ties: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = merged_tensors(monkeypatch)
    done: list[Path] = []
    threads = [
        threading.Thread(target=lambda: done.append(merge(ties, tmp_path / "out")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [tmp_path / "out"] * 3
    assert len(computed) == len(ties.shards[0].tensors)
    assert verify_checkpoint(tmp_path / "out") == []
    assert leftovers(tmp_path / "out") == ["out"]


def test_adapter_source_gives_what_its_merged_model_gives(
    plan_of: Make, tiny_llama: Make, tiny_lora: Make, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = tiny_llama()
    adapter = tiny_lora(base, target_modules="all-linear")
    applied = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    applied.merge_and_unload().save_pretrained(tmp_path / "applied")
    alone = merge(plan_of({"name": "linear"}, None, {"a": (adapter, base)}), tmp_path / "alone")
    expected = tensors_of(tmp_path / "applied")
    for name, tensor in tensors_of(alone).items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-6)
    other = tiny_llama(like=base, seed=1)
    both = plan_of({"name": "ties"}, base, {"a": (adapter, base), "b": other})
    out = merge(both, tmp_path / "out")
    full = plan_of({"name": "ties"}, base, {"a": tmp_path / "applied", "b": other})
    expected = tensors_of(merge(full, tmp_path / "full"))
    for name, tensor in tensors_of(out).items():
        # Rounding may swap two entries at the trim threshold, but no more.
        assert (~torch.isclose(tensor, expected[name], rtol=0, atol=1e-5)).sum() <= 2
    again = merge(both, tmp_path / "again", tuning=Tuning(chunk=BLOCK, lanes=1))
    assert contents(again) == contents(out)


@pytest.mark.parametrize("name", ["tpu", "mps", "cuda:99", "nonsense"])
def test_device_that_is_not_there(name: str, ties: Plan, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"device is '{name}'"):
        merge(ties, tmp_path / "out", device=name)
    assert list(tmp_path.iterdir()) == []


MEASURED = """
import json, sys, threading
from pathlib import Path
import torch
from mergeops.engine.execute import Tuning, merge
from mergeops.planning.plan import Plan

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024

plan = Plan.from_dict(json.loads(Path(sys.argv[1]).read_text()))
start = peak = anonymous()
stop = threading.Event()
def watch():
    global peak
    while not stop.wait(0.005):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
merge(plan, Path(sys.argv[2]), tuning=Tuning(fused=json.loads(sys.argv[3])))
stop.set()
thread.join()
print(peak - start)
"""


def sparse_checkpoint(folder: Path, rows: int, columns: int, mark: int) -> Path:
    """One bfloat16 tensor of zeros but for one entry, which takes no place on the disk."""
    folder.mkdir()
    nbytes = rows * columns * 2
    entry = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, nbytes]}
    header = json.dumps({"w": entry}).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + bytes([mark, 0x3C]))
        file.truncate(8 + len(header) + nbytes)
    (folder / "config.json").write_text("{}")
    return folder


def anonymous_megabytes(plan: Plan, tmp_path: Path, *, fused: bool) -> float:
    """Largest RssAnon of a merge in a process of its own, above that before it."""
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    places = [str(tmp_path / "plan.json"), str(tmp_path / "out")]
    command = [sys.executable, "-c", MEASURED, *places, json.dumps(fused)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(
    ("name", "fused"),
    [("ties", False), ("ties", True), ("model_stock", True), ("della", True), ("dare_ties", True)],
)
def test_memory_does_not_grow_with_the_tensor(
    name: str, fused: bool, plan_of: Make, tmp_path: Path
) -> None:
    """256 MB of inputs, one tensor each."""
    folders = {
        n: sparse_checkpoint(tmp_path / n, 1 << 15, 1 << 10, i) for i, n in enumerate("abcd")
    }
    plan = plan_of({"name": name}, folders.pop("a"), folders)
    # Compiling kernels for the first time takes memory; loading them does not.
    if fused:
        fused_kernels().result()
    assert anonymous_megabytes(plan, tmp_path, fused=fused) < (100 if fused else 160)


def test_embedding_of_600_megabytes_is_never_in_memory(plan_of: Make, tmp_path: Path) -> None:
    folders = {
        name: sparse_checkpoint(tmp_path / name, 144 << 10, 2 << 10, i)
        for i, name in enumerate("ab")
    }
    plan = plan_of({"name": "breadcrumbs"}, folders["a"], {"b": folders["b"]})
    fused_kernels().result()
    assert anonymous_megabytes(plan, tmp_path, fused=True) < 100
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 600e6
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("lanes", [1, 16])
def test_many_inputs_get_small_chunks(lanes: int) -> None:
    chunk = chunk_for(40, "cpu", lanes)
    assert chunk % BLOCK == 0 and chunk == (1 << 19 if lanes == 1 else 2 * BLOCK)


@pytest.mark.parametrize(("inputs", "lanes"), [(4, 4), (40, 4), (40, 12), (40, 20), (40, 32)])
def test_many_inputs_on_a_gpu_pin_two_gigabytes_at_most(inputs: int, lanes: int) -> None:
    chunk = chunk_for(inputs, "cuda:0", lanes)
    pinned = 1 << (chunk * inputs * 8 - 1).bit_length()
    assert chunk % BLOCK == 0 and pinned * lanes <= 1 << 31
    assert (chunk == 1 << 21) == (inputs == 4)


def test_plan_of_another_version_of_the_method(ties: Plan, tmp_path: Path) -> None:
    older = dataclasses.replace(ties, method_version=0)
    with pytest.raises(
        MergeError, match="made with version 0 of ties, but this is version 1; plan"
    ):
        merge(older, tmp_path / "out")


def test_every_refusal_is_one_line(ties: Plan, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(MergeopsError) as caught:
        merge(ties, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_writes_the_same_bytes_as_the_cpu(
    name: str, plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    names = "abc"[: methods.get(name).max_sources or 3]
    plan = plan_of({"name": name}, models["base"], {n: models[n] for n in names})
    on_cpu = merge(plan, tmp_path / "cpu", device="cpu")
    on_cuda = merge(plan, tmp_path / "cuda", device="cuda", tuning=Tuning(chunk=BLOCK, lanes=4))
    assert contents(on_cuda) == contents(on_cpu)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_of_the_gpu_is_given_back(ties: Plan, tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    merge(ties, tmp_path / "out", device="cuda:0", tuning=Tuning(fused=False))
    assert torch.cuda.memory_reserved() == before
