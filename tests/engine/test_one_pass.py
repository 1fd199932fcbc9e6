"""A first merge reads each source once: it is hashed while it is merged, and pinned when done."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mergeops import workshop
from mergeops.checkpoint import digest, encode_header, verify_checkpoint, weights_sha256
from mergeops.engine import execute
from mergeops.engine.execute import Tuning
from mergeops.errors import MergeError, SourceError
from mergeops.planning import Plan
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from tests.support.mortal_merges import Mortal

Merge = Callable[..., workshop.Merged]


@pytest.fixture(scope="module")
def models(tiny_llama: Callable[..., Path]) -> dict[str, Path]:
    """A base and two fine-tunes of 1.7 MB, in files of the order that transformers writes."""
    base = tiny_llama(hidden=128, layers=4)
    return {"base": base, "a": tiny_llama(like=base, seed=1), "b": tiny_llama(like=base, seed=2)}


@pytest.fixture
def merge(models: dict[str, Path], tmp_path: Path) -> Merge:
    """Merge the two into a directory, with what is known of files kept below ``tmp_path``."""

    def run(out: str = "out", method: str = "linear", **changes: Any) -> workshop.Merged:
        raw = {
            "sources": {name: {"uri": str(models[name])} for name in "ab"},
            "method": {"name": method},
            "output": {"dir": str(tmp_path / "work"), "device": "cpu"},
            **({} if method == "linear" else {"base": str(models["base"])}),
            **changes,
        }
        return workshop.merge_only(Recipe.from_dict(raw), tmp_path / out, Progress(quiet=True))

    return run


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The files that were read only to be hashed."""
    files: list[Path] = []
    original = digest.file_sha256

    def counted(path: Path, progress: Any = None) -> str:
        files.append(path)
        return original(path, progress)

    monkeypatch.setattr(digest, "file_sha256", counted)
    yield files


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def size_of(*directories: Path) -> int:
    return sum(file.stat().st_size for path in directories for file in path.glob("*.safetensors"))


def unpinned(plan: Plan) -> Plan:
    blank = [dataclasses.replace(planned, sha256="") for planned in plan.inputs]
    base, sources = (blank[0], blank[1:]) if plan.base else (None, blank)
    return dataclasses.replace(plan, base=base, sources=tuple(sources))


def test_a_first_merge_reads_each_byte_of_its_sources_once(
    models: dict[str, Path], merge: Merge, tmp_path: Path
) -> None:
    # What else is read: modules, kernels, the answer of the plan's check.
    merge("warm")
    shutil.rmtree(tmp_path / "work")
    before = bytes_read()
    merge()
    first = bytes_read() - before
    before = bytes_read()
    merge("again")
    assert size_of(models["a"], models["b"]) > 2_000_000
    # The second merge knows the digests: it reads what is merged, and nothing to hash.
    assert first < 1.05 * (bytes_read() - before)
    assert first < 1.2 * size_of(models["a"], models["b"])


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "task_arithmetic", "sce"])
def test_the_result_is_that_of_sources_that_were_hashed_before(
    method: str, models: dict[str, Path], merge: Merge, tmp_path: Path
) -> None:
    first = merge("first", method)
    manifest = (tmp_path / "first/mergeops.json").read_text()
    second = merge("second", method)
    assert (tmp_path / "second/mergeops.json").read_text() == manifest
    assert first.plan.digest == second.plan.digest == json.loads(manifest)["plan_digest"]
    assert [s["sha256"] for s in json.loads(manifest)["sources"]] == [
        weights_sha256(models[name]) for name in "ab"
    ]
    assert verify_checkpoint(tmp_path / "first") == []


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("chunk", [1024, None])
def test_digests_do_not_depend_on_lanes_and_chunks(
    lanes: int,
    chunk: int | None,
    models: dict[str, Path],
    plan_of: Callable[..., Plan],
    tmp_path: Path,
) -> None:
    plan = plan_of({"name": "ties"}, models["base"], {n: models[n] for n in "ab"})
    tuning = Tuning(chunk=chunk, lanes=lanes)
    done = execute.merge_and_pin(unpinned(plan), tmp_path / "out", device="cpu", tuning=tuning)
    assert done == plan


def test_a_file_in_another_order_has_its_digest_too(
    models: dict[str, Path], merge: Merge, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(models["b"], tmp_path / "other"))
    # As other tools than transformers write it; safetensors' own sorts the names.
    tensors = dict(reversed(load_file(other / "model.safetensors").items()))
    header = encode_header({name: ("F32", tuple(t.shape)) for name, t in tensors.items()})
    data = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
    (other / "model.safetensors").write_bytes(header + data)
    sources = {"a": {"uri": str(models["a"])}, "b": {"uri": str(other)}}
    merged = merge(sources=sources)
    assert merged.plan.sources[1].sha256 == weights_sha256(other)
    straight = merge("straight")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        tmp_path / "straight/model.safetensors"
    ).read_bytes()
    assert straight.plan.digest != merged.plan.digest


def test_what_is_not_merged_is_hashed_too(
    models: dict[str, Path], merge: Merge, hashed: list[Path]
) -> None:
    # The mean needs no base; which one the recipe names decides the plan all the same.
    merged = merge(base=str(models["base"]))
    assert not hashed
    assert merged.plan.base is not None
    assert merged.plan.base.sha256 == weights_sha256(models["base"])


def test_the_same_command_finds_the_first_merge_though_its_plan_was_named_anew(
    merge: Merge, hashed: list[Path]
) -> None:
    first = merge()
    assert not hashed
    again = merge()
    assert again.was_there
    assert again.plan.digest == first.plan.digest
    assert not hashed


def test_a_merge_is_found_where_nothing_is_known_of_its_sources_any_more(
    merge: Merge, hashed: list[Path], tmp_path: Path
) -> None:
    first = merge()
    shutil.rmtree(tmp_path / "work")
    again = merge()
    assert again.was_there
    assert again.plan.digest == first.plan.digest
    assert len(hashed) == 2


def test_another_merge_in_the_directory_is_refused_before_anything_is_merged(
    merge: Merge, tmp_path: Path
) -> None:
    merge(method="ties")
    shutil.rmtree(tmp_path / "work")
    with pytest.raises(MergeError, match="out holds another merge"):
        merge()


def test_random_methods_hash_first_since_their_numbers_are_drawn_for_the_digest(
    merge: Merge, hashed: list[Path]
) -> None:
    merge(method="dare_linear")
    assert len(hashed) == 3


def test_equal_sources_are_refused_before_anything_is_merged(
    models: dict[str, Path], merge: Merge, hashed: list[Path], tmp_path: Path
) -> None:
    twin = Path(shutil.copytree(models["a"], tmp_path / "twin"))
    names = {"a": models["a"], "b": models["b"], "c": twin}
    sources = {name: {"uri": str(path)} for name, path in names.items()}
    with pytest.raises(MergeError, match="sources a and c have the same weights"):
        merge(sources=sources)
    assert {file.parent.name for file in hashed} == {models["a"].name, "twin"}
    assert not list(tmp_path.glob("*out*"))


def test_an_adapter_on_the_base_needs_the_digest_of_that_alone(
    models: dict[str, Path],
    tiny_lora: Callable[..., Path],
    merge: Merge,
    hashed: list[Path],
) -> None:
    lora = tiny_lora(models["base"])
    sources = {"a": {"uri": str(models["a"])}, "lora": {"uri": str(lora)}}
    merged = merge(method="ties", sources=sources)
    assert {file.parent for file in hashed} == {models["base"], lora}
    assert merged.plan.base is not None
    assert merged.plan.base.sha256 == weights_sha256(models["base"])
    assert merged.plan.sources[0].sha256 == weights_sha256(models["a"])


def test_a_source_that_changes_while_it_is_merged_leaves_nothing(
    models: dict[str, Path],
    merge: Merge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moving = Path(shutil.copytree(models["b"], tmp_path / "moving"))
    original = execute._write_shards

    def write(*arguments: Any, **named: Any) -> Any:
        done = original(*arguments, **named)
        with open(moving / "model.safetensors", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        return done

    monkeypatch.setattr(execute, "_write_shards", write)
    sources = {"a": {"uri": str(models["a"])}, "b": {"uri": str(moving)}}
    with pytest.raises(SourceError, match=r"moving/model.safetensors changed while it was merged"):
        merge(sources=sources)
    assert not list(tmp_path.glob("*out*"))
    assert str(moving) not in json.dumps(_remembered(tmp_path / "work"))


def _remembered(work: Path) -> Any:
    cache = work / "cache/sha256.json"
    return json.loads(cache.read_text()) if cache.exists() else {}


def test_a_source_that_changes_before_it_is_merged_is_refused(
    models: dict[str, Path], plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    moving = Path(shutil.copytree(models["b"], tmp_path / "moving"))
    plan = unpinned(plan_of({"name": "linear"}, None, {"a": models["a"], "b": moving}))
    os.utime(moving / "model.safetensors", ns=(1, 1))
    with pytest.raises(SourceError, match="changed after the merge was planned"):
        execute.merge(plan, tmp_path / "out", device="cpu")


@pytest.fixture(scope="module")
def sliced(
    models: dict[str, Path], plan_of: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Plan, Mortal]]:
    plan = plan_of({"name": "task_arithmetic"}, models["base"], {n: models[n] for n in "ab"})
    mortal = Mortal(unpinned(plan), tmp_path_factory.mktemp("mortal"))
    yield plan, mortal
    mortal.close()


@pytest.mark.parametrize("share", [0.2, 0.7, 0.999])
def test_a_killed_first_merge_goes_on_and_is_pinned(
    share: float, sliced: tuple[Plan, Mortal], tmp_path: Path
) -> None:
    plan, mortal = sliced
    out = tmp_path / "out"
    assert mortal.merge(out, bytes=int(plan.bytes_to_write * share)).killed
    went_on = mortal.merge(out)
    assert went_on.exit_code == 0
    assert len(went_on.computed) <= len(plan.tasks) * (1 - share) + 8
    assert json.loads((out / "mergeops.json").read_text())["plan_digest"] == plan.digest
    assert verify_checkpoint(out) == []


def test_a_first_merge_that_is_killed_at_a_step_is_whole_when_run_again(
    sliced: tuple[Plan, Mortal], tmp_path: Path
) -> None:
    mortal = sliced[1]
    steps = mortal.merge(tmp_path / "whole", step=10**6).steps
    expected = (tmp_path / "whole/mergeops.json").read_text()
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert steps > 12
    # From the manifest's sync to the lock's removal, and some before.
    for step in [3, *range(steps - 8, steps)]:
        out = tmp_path / f"out-{step}"
        assert mortal.merge(out, step=step).killed
        assert mortal.merge(out).exit_code == 0
        assert (out / "mergeops.json").read_text() == expected
        assert sorted(path.name for path in out.iterdir()) == names


def test_what_a_first_merge_left_is_kept_when_its_sources_are_known(
    models: dict[str, Path], sliced: tuple[Plan, Mortal], tmp_path: Path
) -> None:
    plan, mortal = sliced
    out = tmp_path / "out"
    assert mortal.merge(out, bytes=plan.bytes_to_write // 2).killed
    journal = (tmp_path / ".out.partial/journal.jsonl").read_text().splitlines()
    assert len(journal) > 3
    known = Mortal(plan, _folder(tmp_path / "known"))
    try:
        went_on = known.merge(out)
    finally:
        known.close()
    assert went_on.exit_code == 0
    assert len(went_on.computed) <= len(plan.tasks) - len(journal) + 1


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_plan_without_digests_names_no_finished_work(
    models: dict[str, Path], plan_of: Callable[..., Plan]
) -> None:
    plan = unpinned(plan_of({"name": "linear"}, None, {n: models[n] for n in "ab"}))
    assert not plan.is_pinned
    with pytest.raises(AssertionError, match="not hashed yet"):
        _ = plan.digest


def test_the_name_before_tells_files_apart_and_survives_json(
    models: dict[str, Path], plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(models["b"], tmp_path / "copy"))
    first = plan_of({"name": "linear"}, None, {"a": models["a"], "b": models["b"]})
    second = plan_of({"name": "linear"}, None, {"a": models["a"], "b": copy})
    assert first.digest == second.digest
    assert first.files_digest != second.files_digest
    assert unpinned(first).files_digest == first.files_digest
    assert Plan.from_dict(first.to_dict()).files_digest == first.files_digest


def test_torch_and_kernels_hash_alike(
    models: dict[str, Path], plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = plan_of({"name": "linear"}, None, {n: models[n] for n in "ab"})
    for fused in (True, False):
        tuning = Tuning(fused=fused)
        out = tmp_path / str(fused)
        assert execute.merge_and_pin(unpinned(plan), out, device="cpu", tuning=tuning) == plan


def test_a_source_that_changes_before_a_finished_merge_is_compared_is_refused(
    models: dict[str, Path], plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    moving = Path(shutil.copytree(models["b"], tmp_path / "moving"))
    plan = plan_of({"name": "linear"}, None, {"a": models["a"], "b": moving})
    execute.merge(plan, tmp_path / "out", device="cpu")
    os.utime(moving / "model.safetensors", ns=(1, 1))
    with pytest.raises(SourceError, match="changed after the merge was planned"):
        execute.merge(unpinned(plan), tmp_path / "out", device="cpu")
