"""What ``make bench`` computes from what it measures, and that it measures what it says."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import benchmarks.__main__ as bench
from benchmarks import floor, jobs, machine, models, table
from benchmarks.measure import Measurement, measure
from mergeops.recipe.mergekit.read import read_mergekit


def one(contestant: str, pair: int, wall: float, anonymous: int = 1) -> Measurement:
    return Measurement("ties", contestant, pair, wall, 2 * wall, anonymous, 0.0)


def test_ratios_are_taken_pair_by_pair() -> None:
    """The machine was twice as slow in the second pair: medians of times would not tell."""
    walls = {"mergekit": (20.0, 44.0, 60.0), "mergeops": (1.0, 2.0, 2.0), "floor": (0.5, 1.0, 0.8)}
    measured = [one(name, i, wall) for name in walls for i, wall in enumerate(walls[name])]
    (row,) = table.rows(measured)
    assert row.pairs == 3
    assert row.faster == table.Spread(22.0, 20.0, 30.0)
    assert row.floors == table.Spread(2.0, 2.0, 2.5)
    assert row.wall["mergekit"] == table.Spread(44.0, 20.0, 60.0)
    assert row.cpu["mergeops"] == 4.0


def test_pair_that_was_cut_is_left_out() -> None:
    whole = [one("mergekit", 0, 30.0), one("mergeops", 0, 2.0), one("floor", 0, 1.0)]
    (row,) = table.rows([*whole, one("mergekit", 1, 99.0), one("mergeops", 1, 9.0)])
    assert (row.pairs, row.faster.middle) == (1, 15.0)
    assert table.rows([one("mergekit", 0, 30.0)]) == []


def test_memory_is_the_largest_of_all_pairs() -> None:
    measured = [one(n, i, 1.0, 10 * i + 5) for i in range(2) for n in jobs.CONTESTANTS]
    (row,) = table.rows(measured)
    assert row.anonymous["mergeops"] == 15


def test_table_says_whether_the_aim_is_reached() -> None:
    def lines(wall: float) -> str:
        measured = [one("mergekit", 0, 30.0), one("mergeops", 0, wall), one("floor", 0, 1.0)]
        return table.markdown(table.rows(measured)).splitlines()[-1]

    assert "| 15.00 (15.00..15.00) | 15: reached |" in lines(2.0)
    assert "| 15: not reached |" in lines(2.1)


def test_what_a_user_calls_stands_beside_where_it_was_measured() -> None:
    measured = [one("mergekit", 0, 30.0), one("mergeops", 0, 2.0), one("floor", 0, 1.0)]
    last = table.markdown(table.rows(measured)).splitlines()[-1]
    assert last.endswith(" | - | - | - | - | - | - |")
    measured += [one("as_called", 0, 3.0), one("earlier", 0, 5.0)]
    last = table.markdown(table.rows(measured)).splitlines()[-1]
    as_called = "3.00 (3.00..3.00) | 10.00 (10.00..10.00) | 40: not reached"
    assert f"| {as_called} | 5.00 (5.00..5.00) | 2.50 (2.50..2.50) | - |" in last


def test_table_says_whether_the_floor_is_near_enough() -> None:
    def cells(method: str, wall: float) -> list[str]:
        walls = {"mergekit": 30.0, "mergeops": wall, "floor": 1.0}
        measured = [replace(one(c, 0, w), method=method) for c, w in walls.items()]
        return table.markdown(table.rows(measured)).splitlines()[-1].split(" | ")

    assert cells("linear", 1.3)[7:9] == ["1.30 (1.30..1.30)", "1.3: reached"]
    assert cells("linear", 1.4)[7:9] == ["1.40 (1.40..1.40)", "1.3: not reached"]
    assert cells("ties", 1.6)[8] == "-"


def test_every_method_has_a_job_and_an_aim() -> None:
    assert jobs.JOBS.keys() == table.AIMS.keys()


def test_process_is_measured_with_its_children(tmp_path: Path) -> None:
    child = "import time; x = bytearray(80_000_000); x[::4096] = x[::4096]; time.sleep(0.3)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    wall, cpu, anonymous = measure(
        [sys.executable, "-c", parent], os.environ, tmp_path, tmp_path / "log"
    )
    assert 80e6 < anonymous < 160e6
    assert 0.3 < wall < 30 and 0 < cpu < wall * 8


def test_process_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 3: no such thing"):
        measure(
            [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"],
            os.environ,
            tmp_path,
            tmp_path / "log",
        )


@pytest.mark.parametrize("threads", [1, 3])
def test_floor_writes_as_many_bytes_as_the_result_has(threads: int, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(os.urandom(3_000_001))
    floor.move_bytes(str(tmp_path / "out"), 2_500_003, [str(tmp_path / "in")], threads)
    assert (tmp_path / "out").stat().st_size == 2_500_003


def test_checkpoints_are_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = models.Shape(vocabulary=64, width=32, inner=48, layers=1, heads=2, kv_heads=1)
    monkeypatch.setitem(models.SIZES, "small", small)
    made = [models.make_models("small", tmp_path / str(i)) for i in range(2)]
    tensors = [load_file(paths["a"] / "model.safetensors") for paths in made]
    base = load_file(made[0]["base"] / "model.safetensors")
    assert sum(t.numel() for t in base.values()) == small.parameters
    for name, tensor in tensors[0].items():
        assert tensor.equal(tensors[1][name]) and tensor.dtype == torch.bfloat16
        change = (tensor.float() - base[name].float()).std() / base[name].float().std()
        assert 0 < change < 0.3


def test_size_1b_is_llama_of_1_billion() -> None:
    assert models.SIZES["1b"].parameters == 1_235_814_400


def test_mergekit_runs_once_unmeasured_and_mergeops_for_each_method_that_misses_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "make_models", lambda size, folder: {})
    runs: list[tuple[str, str]] = []

    def once(self: bench.Session, method: str, contestant: str) -> tuple[float, float, int]:
        runs.append((method, contestant))
        return 1.0, 1.0, 1

    monkeypatch.setattr(bench.Session, "_once", once)
    numbers = tmp_path / "numbers.jsonl"
    bench.Session("tiny", tmp_path, numbers).run(["ties", "linear"], 2)
    both = ["mergekit", "mergeops"]
    twice = [*jobs.MEASURED, *jobs.MEASURED]
    assert [c for m, c in runs if m == "ties"] == [*both, *twice]
    assert [c for m, c in runs if m == "linear"] == ["mergeops", *twice]
    assert len(bench.read_measurements(numbers)) == 16
    lines = numbers.read_text().splitlines(keepends=True)
    numbers.write_text("".join(lines[:-1]))
    runs.clear()
    bench.Session("tiny", tmp_path, numbers).run(["ties", "linear"], 2)
    assert runs == [("linear", c) for c in [*both, "as_called"]]
    runs.clear()
    bench.Session("tiny", tmp_path, numbers, tmp_path).run(["linear"], 2)
    assert runs == [("linear", c) for c in [*both, "earlier", "earlier", "earlier"]]


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_both_match_norms_where_mergekit_does(method: str, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("base", "a", "b", "c")}
    for place in places.values():
        place.mkdir()
    words = jobs.command("mergeops", method, places, tmp_path, tmp_path / "out")
    assert words[-2:] == ["--compat", "mergekit"]
    plain = jobs.command("as_called", method, places, tmp_path, tmp_path / "out")
    assert plain == words[:-2]
    recipe = read_mergekit(tmp_path / f"{method}.yml", compat=True).recipe
    assert recipe["method"]["match_norm"] is True


def test_config_is_the_same_merge_for_both() -> None:
    places = {name: Path("/models") / name for name in ("base", "a", "b", "c")}
    content = yaml.safe_load(jobs.config("ties", places))
    assert content["base_model"] == "/models/base"
    assert [m["model"] for m in content["models"]] == ["/models/a", "/models/b", "/models/c"]
    assert len(jobs.inputs("ties", places)) == 4
    assert len(jobs.inputs("linear", places)) == 3
    assert len(jobs.inputs("slerp", places)) == 2


def test_each_machine_has_its_own_numbers_and_a_section(tmp_path: Path) -> None:
    for date, name, wall in (("2026-01-01", "old", 2.0), ("2026-02-01", "new", 1.0)):
        facts = {"date": date, "processors": "2", "processor": name, "memory": "1 GiB"}
        (tmp_path / f"results-tiny-{name}.json").write_text(json.dumps(facts))
        walls = {"mergekit": 30.0, "mergeops": wall, "floor": 1.0}
        lines = [json.dumps(one(c, 0, w).to_dict()) for c, w in walls.items()]
        (tmp_path / f"results-tiny-{name}.jsonl").write_text("\n".join(lines))
    bench.write_results("tiny", tmp_path)
    text = (tmp_path / "RESULTS-tiny.md").read_text()
    assert text.index("## new") < text.index("| 1 | 30.00 (") < text.index("## old")
    assert text.index("## old") < text.index("| 15.00 (") < text.index("## How it is measured")
    assert "Measured 2026-01-01." in text and "* memory: 1 GiB" in text
    for name in ("old", "new"):
        assert f"![The same as bars](results-tiny-{name}.png)" in text
        assert (tmp_path / f"results-tiny-{name}.png").is_file()


def test_load_of_others_is_told_by_the_processors_of_that_machine(tmp_path: Path) -> None:
    facts = {"date": "2026-01-01", "processors": "2", "processor": "old"}
    busy = [replace(one(c, 0, 1.0), load=4.1) for c in jobs.CONTESTANTS]
    numbers = tmp_path / "results-tiny-old.jsonl"
    numbers.write_text("\n".join(json.dumps(m.to_dict()) for m in busy))
    assert "busy (load up to 4 on 2 processors)" in bench.section("tiny", facts, numbers)
    facts["processors"] = "3"
    assert "kept the machine busy" not in bench.section("tiny", facts, numbers)


def test_slug_names_the_processor_and_how_many_are_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "processor", lambda: "Intel(R) Xeon(R) Processor @ 2.50GHz")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3})
    assert machine.slug() == "intel-r-xeon-r-processor-2-50ghz-x2"


def test_a_run_that_goes_on_names_the_versions_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(commit: str) -> dict[str, str]:
        return {"processor": "P", "mergeops": f"commit {commit}", "mergekit": "0.1.5"}

    earlier = tmp_path / "results.json"
    for commit, named in (
        ("a", "commit a"),
        ("b", "commit a; later commit b"),
        ("b", "commit a; later commit b"),
    ):
        monkeypatch.setattr(machine, "describe", lambda commit=commit: describe(commit))
        about = bench.described(earlier, resume=True)
        assert (about["mergeops"], about["mergekit"]) == (named, "0.1.5")
        earlier.write_text(json.dumps(about))
    assert bench.described(earlier, resume=False)["mergeops"] == "commit b"
