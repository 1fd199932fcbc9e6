"""Several models: weights replaced in memory, devices shared out, nothing asked twice or lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.scoring import score

from mergeops.errors import EvaluationError, TrackingError
from mergeops.evaluate import answers, asking, harness, seat, workers
from mergeops.evaluate import kept as store
from mergeops.evaluate.harness import score_all
from mergeops.evaluate.model import Model
from mergeops.evaluate.workers import pick_devices, seed_device, share_out
from mergeops.recipe.settings import EvaluateSpec

Write = Callable[..., Path]


def spec_for(folder: Path, *tasks: str, **settings: Any) -> EvaluateSpec:
    return EvaluateSpec(
        tasks=tasks, include_path=str(folder), **{"batch_size": 8, "device": "cpu", **settings}
    )


@pytest.fixture(scope="module")
def family(tiny_llama: Callable[..., Path]) -> list[Model]:
    """A base and two fine-tunes."""
    base = tiny_llama()
    paths = [base, tiny_llama(like=base, seed=1, noise=0.1), tiny_llama(like=base, seed=2)]
    return [Model(path, f"{i}" * 64) for i, path in enumerate(paths)]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories that were loaded as models."""
    seen: list[Path] = []
    original = seat.load_model

    def watched(path: Path, *rest: Any, **options: Any) -> Any:
        seen.append(path)
        return original(path, *rest, **options)

    monkeypatch.setattr(seat, "load_model", watched)
    return seen


# --- weights in memory


def test_models_of_one_configuration_are_loaded_once_and_score_as_if_alone(
    family: list[Model], write_task: Write, tmp_path: Path, loads: list[Path]
) -> None:
    spec = spec_for(write_task().parent, "sums")
    together = score_all(family, spec, "dev", work_dir=tmp_path / "together")
    assert loads == [family[0].path]
    alone = [
        score(c.path, c.weights_sha256, spec, "dev", work_dir=tmp_path / "alone") for c in family
    ]
    assert together == alone
    told = {json.dumps(r["items"]) for r in records(tmp_path / "together")}
    assert len(told) == 3
    assert told == {json.dumps(r["items"]) for r in records(tmp_path / "alone")}


def records(work: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text())["record"] for p in sorted(work.glob("scores/*/*.json"))]


def test_another_configuration_is_loaded(
    family: list[Model],
    tiny_llama: Callable[..., Path],
    write_task: Write,
    tmp_path: Path,
    loads: list[Path],
) -> None:
    other = Model(tiny_llama(layers=3), "9" * 64)
    models = [family[0], other, family[1]]
    scores = score_all(models, spec_for(write_task().parent, "sums"), "dev", work_dir=tmp_path)
    assert [s.weights_sha256[0] for s in scores] == ["0", "9", "1"]
    assert sorted(map(str, loads)) == sorted(
        str(p) for p in (other.path, next(m.path for m in family if m.path in loads))
    )


def test_weights_that_do_not_fit_are_left_alone(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from mergeops.evaluate.model import load_model, replace_weights

    base = tiny_llama()
    spec = EvaluateSpec(device="cpu")
    model = load_model(base, spec, torch.device("cpu"), trust_remote_code=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not replace_weights(model, tiny_llama(layers=3))
    assert not replace_weights(model, tiny_llama(hidden=16))
    assert not replace_weights(model, tmp_path / "gone")
    lacking = tmp_path / "lacking"
    shutil.copytree(base, lacking)
    tensors = load_file(lacking / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, lacking / "model.safetensors", metadata={"format": "pt"})
    assert not replace_weights(model, lacking)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_tied_weights_are_replaced_once_for_both(tiny_llama: Callable[..., Path]) -> None:
    import torch

    from mergeops.evaluate.model import load_model, replace_weights

    base = tiny_llama(tied=True)
    other = tiny_llama(like=base, seed=3, noise=0.5, tied=True)
    spec, cpu = EvaluateSpec(device="cpu"), torch.device("cpu")
    model = load_model(base, spec, cpu, trust_remote_code=False)
    expected = load_model(other, spec, cpu, trust_remote_code=False)
    assert replace_weights(model, other)
    assert torch.equal(model.lm_head.weight, expected.lm_head.weight)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_candidate_with_nan_stops_the_rest_but_loses_no_finished_score(
    family: list[Model], write_task: Write, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(family[1].path, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    models = [family[0], Model(broken, "8" * 64), family[2]]
    spec = spec_for(write_task().parent, "sums")
    with pytest.raises(EvaluationError, match="broken holds NaN or Inf in model.norm.weight"):
        score_all(models, spec, "dev", work_dir=tmp_path / "work")
    [record] = records(tmp_path / "work")
    assert record["header"]["weights_sha256"] == "0" * 64


def test_equal_candidates_are_asked_once(
    family: list[Model], write_task: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = answers.ask
    monkeypatch.setattr(answers, "ask", lambda i, m: (asked.append(1), original(i, m))[1])
    spec = spec_for(write_task().parent, "sums")
    first, second = score_all([family[0], family[0]], spec, "dev", work_dir=tmp_path)
    assert first == second
    assert len(asked) == 1


# --- devices


class Fake:
    """A device's worker that notes what it does."""

    def __init__(self, device: str, log: list[tuple[str, Any]], do: Callable[[Any], None]) -> None:
        self.device, self.log, self.do = device, log, do

    def work(self, item: Any) -> None:
        self.do(item)
        self.log.append((self.device, item))

    def close(self) -> None:
        self.log.append((self.device, "closed"))


def test_items_are_shared_out_and_every_device_is_given_back() -> None:
    log: list[tuple[str, Any]] = []
    both = threading.Barrier(2, timeout=20)
    # The first two items wait for each other: only two devices at once can pass.
    share_out(
        range(6), ["a", "b"], lambda d: Fake(d, log, lambda i: both.wait() if i < 2 else None)
    )
    assert sorted(item for _, item in log if item != "closed") == list(range(6))
    assert {device for device, item in log if item == 0 or item == 1} == {"a", "b"}
    assert sorted(device for device, item in log if item == "closed") == ["a", "b"]


def test_no_more_devices_than_items_and_one_needs_no_thread() -> None:
    log: list[tuple[str, Any]] = []
    threads = []
    share_out(["x"], ["a", "b", "c"], lambda d: Fake(d, log, lambda _: threads.append(1)))
    assert log == [("a", "x"), ("a", "closed")]
    share_out([], ["a"], lambda d: Fake(d, log, lambda _: None))
    assert len(log) == 2


def test_after_an_error_nothing_new_is_begun() -> None:
    log: list[tuple[str, Any]] = []

    def fail(item: int) -> None:
        if item == 1:
            raise EvaluationError("out of memory")

    with pytest.raises(EvaluationError, match="out of memory"):
        share_out(range(5), ["a"], lambda d: Fake(d, log, fail))
    assert log == [("a", 0), ("a", "closed")]


def test_a_device_that_cannot_be_opened_is_an_error() -> None:
    def refuse(device: str) -> Fake:
        raise EvaluationError(f"no {device}")

    with pytest.raises(EvaluationError, match="no a"):
        share_out([1, 2], ["a", "b"][:1], refuse)


def test_auto_and_cuda_are_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    every = ["cuda:0", "cuda:1", "cuda:2"]
    assert [str(d) for d in pick_devices("auto")] == [str(d) for d in pick_devices("cuda")] == every
    assert [str(d) for d in pick_devices("cuda:2")] == ["cuda:2"]
    assert [str(d) for d in pick_devices("cpu")] == ["cpu"]


def test_two_devices_score_as_one_does(
    family: list[Model], write_task: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    spec = spec_for(write_task().parent, "sums", num_fewshot=1)
    alone = score_all(family, spec, "dev", work_dir=tmp_path / "1")
    monkeypatch.setattr(workers, "pick_devices", lambda _: [torch.device("cpu")] * 2)
    ticks: list[tuple[str, int, int]] = []
    both = score_all(
        family, spec, "dev", work_dir=tmp_path / "2", progress=lambda *t: ticks.append(t)
    )
    assert both == alone
    assert len(ticks) == 3 * alone[0].tasks["sums"].n


# --- vllm


def test_a_backend_that_is_not_installed_is_said_before_a_model_is_loaded(
    family: list[Model], write_task: Write, tmp_path: Path, loads: list[Path]
) -> None:
    spec = spec_for(write_task().parent, "sums", backend="vllm")
    message = r"evaluate.backend is vllm, but vLLM is not installed here; pip install"
    with pytest.raises(EvaluationError, match=message):
        score_all(family, spec, "dev", work_dir=tmp_path)
    assert loads == []


def test_vllm_gets_the_recipes_settings(
    family: list[Model], write_task: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    class StoppedError(RuntimeError):
        pass

    def made_with(**options: Any) -> None:
        made.append(options)
        raise StoppedError("no GPU\nhere")

    monkeypatch.setattr(harness, "check_vllm", lambda: None)
    stand_in = types.SimpleNamespace(VLLM=made_with)  # the real one imports vLLM
    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", stand_in)
    spec = spec_for(write_task().parent, "sums", backend="vllm", dtype="bfloat16", max_length=64)
    with pytest.raises(EvaluationError, match="vLLM cannot load .*: no GPU here"):
        score_all(family, spec, "dev", work_dir=tmp_path)
    [options] = made
    assert options["pretrained"] == options["tokenizer"] == str(family[0].path)
    assert (options["dtype"], options["max_model_len"], options["batch_size"]) == (
        "bfloat16",
        64,
        8,
    )


# --- crashes


def many(n: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"What is {i}?", "choices": [f"{i}a", f"{i}b"], "answer": i % 2}
        for i in range(n)
    ]


def test_killed_in_the_middle_of_a_task_it_goes_on_there(
    family: list[Model], write_task: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_task(items=many(30)).parent
    work = tmp_path / "work"
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from mergeops.evaluate import asking\n"
        "from support.scoring import score\n"
        "from mergeops.recipe.settings import EvaluateSpec\n"
        "asking.PIECE = 10\n"
        f"spec = EvaluateSpec(tasks=('sums',), include_path={str(folder)!r}, batch_size=8, "
        "device='cpu', confirm_fraction=0.0)\n"
        "def die(task, done, total):\n"
        "    if done == 25: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"score(Path({str(family[0].path)!r}), {family[0].weights_sha256!r}, spec, 'dev', "
        f"work_dir=Path({str(work)!r}), progress=die)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    died = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert died.returncode == -signal.SIGKILL
    assert not list(work.glob("scores/*/*.json"))
    asked: list[int] = []
    original = answers.ask

    def watched(instances: list[Any], model: Any) -> Any:
        asked.extend(instance.doc_id for instance in instances)
        return original(instances, model)

    monkeypatch.setattr(answers, "ask", watched)
    monkeypatch.setattr(asking, "PIECE", 10)
    spec = spec_for(folder, "sums", confirm_fraction=0.0)
    ticks: list[int] = []
    again = score(
        family[0].path,
        family[0].weights_sha256,
        spec,
        "dev",
        work_dir=work,
        progress=lambda _task, done, _total: ticks.append(done),
    )
    assert sorted(set(asked)) == list(range(20, 30))
    assert ticks == [10, 20, *range(21, 31)]
    assert not list(work.glob("scores/*/*.journal"))
    fresh = score(
        family[0].path, family[0].weights_sha256, spec, "dev", work_dir=tmp_path / "fresh"
    )
    assert again == fresh


def test_a_damaged_journal_counts_as_none(tmp_path: Path) -> None:
    journal = store.AnswerJournal(tmp_path / "a.journal")
    assert journal.read() == []
    journal.write([[[[-1.0, True]]], [[["text"]]]])
    assert journal.read() == [[[[-1.0, True]]], [[["text"]]]]
    text = journal.path.read_text()
    for damaged in (text[:-5], "", "[]", text.replace("-1.0", "-2.0")):
        journal.path.write_text(damaged)
        assert journal.read() == []


# --- other machines


class Elsewhere:
    """A shared store in memory."""

    def __init__(self) -> None:
        self.texts: dict[tuple[str, str], str] = {}
        self.ways: dict[str, str] = {}

    def find(self, weights_sha256: str, keys: Collection[str]) -> Mapping[str, str]:
        return {k: self.texts[weights_sha256, k] for k in keys if (weights_sha256, k) in self.texts}

    def alike(
        self, weights_sha256: str, ways: Collection[str], known: Collection[str]
    ) -> Mapping[str, str]:
        return {
            key: text
            for (weights, key), text in self.texts.items()
            if weights == weights_sha256 and self.ways[key] in ways and key not in known
        }

    def keep(
        self, weights_sha256: str, records: Mapping[str, str], ways: Mapping[str, str]
    ) -> None:
        self.texts |= {(weights_sha256, key): text for key, text in records.items()}
        self.ways |= ways


def test_what_another_machine_has_asked_is_not_asked_again(
    family: list[Model], write_task: Write, tmp_path: Path, loads: list[Path]
) -> None:
    folder = write_task("old").parent
    write_task("new")
    shared = Elsewhere()
    here = score_all(
        family[:1], spec_for(folder, "old"), "dev", work_dir=tmp_path / "here", shared=shared
    )
    del loads[:]
    there = score_all(
        family[:1], spec_for(folder, "old"), "dev", work_dir=tmp_path / "there", shared=shared
    )
    assert there == here
    assert loads == []
    assert len(records(tmp_path / "there")) == 1
    [more] = score_all(
        family[:1], spec_for(folder, "old", "new"), "dev", work_dir=tmp_path / "3", shared=shared
    )
    assert more.tasks["old"] == here[0].tasks["old"]
    assert len(shared.texts) == 2


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_foreign_or_damaged_record_from_elsewhere_is_not_believed(
    family: list[Model], write_task: Write, tmp_path: Path, loads: list[Path], damage: str
) -> None:
    spec = spec_for(write_task().parent, "sums")
    shared = Elsewhere()
    score_all(family[:1], spec, "dev", work_dir=tmp_path / "1", shared=shared)
    [(place, text)] = shared.texts.items()
    if damage == "foreign":
        stored = json.loads(text)
        stored["record"]["header"]["task"] = "other"
        text = json.dumps({**stored, "sha256": store._sha256(stored["record"])})
    shared.texts[place] = text if damage == "foreign" else text[:-20]
    del loads[:]
    score_all(family[:1], spec, "dev", work_dir=tmp_path / "2", shared=shared)
    assert len(loads) == 1


def test_a_store_that_is_away_costs_nothing_but_a_word(
    family: list[Model],
    write_task: Write,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Away(Elsewhere):
        def find(self, weights_sha256: str, keys: Collection[str]) -> Mapping[str, str]:
            raise TrackingError("no answer in time")

        def alike(
            self, weights_sha256: str, ways: Collection[str], known: Collection[str]
        ) -> Mapping[str, str]:
            raise TrackingError("no answer in time")

        def keep(
            self, weights_sha256: str, records: Mapping[str, str], ways: Mapping[str, str]
        ) -> None:
            raise TrackingError("no answer in time")

    spec = spec_for(write_task().parent, "sums")
    score_all(family[:1], spec, "dev", work_dir=tmp_path, shared=Away())
    assert len(records(tmp_path)) == 1
    assert "scores of other machines cannot be looked up: no answer in time" in caplog.text
    assert "scores are kept on this machine only: no answer in time" in caplog.text


def test_a_device_seeds_what_it_draws_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    import torch

    within: list[torch.device] = []
    seeded = []

    @contextlib.contextmanager
    def on(device: torch.device) -> Any:
        within.append(device)
        yield
        within.pop()

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeded.append((*within, seed)))
    before = torch.get_rng_state()
    seed_device(torch.device("cuda:1"), 7)
    assert seeded == [(torch.device("cuda:1"), 7)]
    assert torch.equal(torch.get_rng_state(), before)
    seed_device(torch.device("cpu"), 7)
    first = torch.rand(3)
    seed_device(torch.device("cpu"), 7)
    assert torch.equal(torch.rand(3), first)


def test_every_small_model_has_one_thread_and_every_large_one_has_all(
    tiny_llama: Callable[..., Path],
    write_task: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    paths = [tiny_llama(), tiny_llama(hidden=64), tiny_llama(layers=1)]
    models = [Model(path, f"{i}" * 64) for i, path in enumerate(paths)]
    monkeypatch.setattr(workers, "_SMALL", 50_000)  # 26,000, 90,000 and 17,000 parameters
    threads: list[tuple[bool, int]] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        spec = spec_for(write_task().parent, "sums")
        ask = answers.ask

        def watched(piece: Any, lm: Any) -> Any:
            threads.append((lm.model.num_parameters() > 50_000, torch.get_num_threads()))
            return ask(piece, lm)

        monkeypatch.setattr(answers, "ask", watched)
        score_all(models, spec, "dev", work_dir=tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert sorted(set(threads)) == [(False, 1), (True, 2)]


def test_models_that_load_at_once_leave_transformers_as_it_was(
    tiny_llama: Callable[..., Path],
) -> None:
    """While it loads, transformers replaces a method of all models by one that does nothing."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from transformers import PreTrainedModel

    from mergeops.evaluate.model import load_model
    from mergeops.recipe.settings import EvaluateSpec

    path, before = tiny_llama(tied=True), PreTrainedModel.tie_weights

    def load(_: int) -> bool:
        model = load_model(
            path, EvaluateSpec(tasks=("x",)), torch.device("cpu"), trust_remote_code=False
        )
        return model.lm_head.weight is model.model.embed_tokens.weight

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(load, range(24)))
    assert PreTrainedModel.tie_weights is before
