"""strategy=optuna: a study end to end; killed, it goes on; what it cannot do is said first."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.user_place import command, ended, environment, mergeops

from mergeops.errors import ConfigError
from mergeops.recipe import compose
from mergeops.search import completed, parameter_types
from mergeops.search.space import Space
from mergeops.search.study import SAMPLERS, open_sampler
from mergeops.store import connect

WORDS = ("search", "--config-dir", "conf", "recipe=three", "strategy=optuna")
TOY = ("base=/b", "sources={a: /a, b: /b}", "search=optuna")


def study(place: Path, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mergeops(place, *WORDS, *words, "--json"))
    return found


@pytest.mark.slow
def test_a_study_beats_its_baselines_or_says_that_it_did_not(place: Path) -> None:
    found = study(place, "search.trials=3", "search.keep=2")
    assert [each["number"] for each in found["candidates"]] == [1, 2, 3]
    assert all(each["state"] == "whole" for each in found["candidates"]), "too few items to race"
    assert {"best_source", "uniform_soup", "task_arithmetic_0.3"} <= found["baselines"].keys()
    assert len(found["kept"]) == 2
    # Seventy items a candidate: three of the sampler, three soups and two of the greedy soup's.
    assert found["cost"]["answers"] == 70 * found["cost"]["full_evaluations"]
    whole = [each["dev"] for each in found["candidates"]]
    kept = [trial["dev_score"] for trial in found["trials"]]
    assert max(kept) >= max(whole), "the best of all is kept, scored as it was in memory"
    assert not list((place / "mergeops-work" / "studies").rglob("*.safetensors"))
    assert not list(Path("/dev/shm").glob("mergeops-*"))

    # The same command again is the same study: nothing is merged or asked.
    again = study(place, "search.trials=3", "search.keep=2")
    assert again["candidates"] == found["candidates"] and again["kept"] == found["kept"]
    assert again["cost"]["merge_seconds"] == 0

    recipe = compose([f"tracking.uri=sqlite:///{place}/mlflow.db", "base=/b", "sources.a=/a"])
    tracking = connect(recipe.tracking)
    runs = tracking.search_runs("tags.`mergeops.role` = 'candidate'")
    assert [run.data.tags["mergeops.candidate"] for run in runs] == ["1", "2", "3"]
    assert runs[0].data.params["method"] == found["candidates"][0]["values"]["method"]
    assert [run.data.metrics["pooled"] for run in runs] == whole
    [log] = tracking.search_runs("tags.`mergeops.role` = 'search'")
    names = {item.path for item in tracking.client.list_artifacts(log.info.run_id)}
    assert {"study.json", "optuna.log"} <= names


@pytest.mark.sweep
def test_a_killed_study_goes_on_and_is_the_same_study(place: Path) -> None:
    words = (*WORDS, "search.trials=3", "search.sampler=random")
    process = subprocess.Popen(
        command(*words),
        cwd=place,
        env=environment(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "1/3" in line:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    found = study(place, "search.trials=3", "search.sampler=random")
    fresh = study(place, "search.trials=3", "search.sampler=random", "output.dir=elsewhere")
    table = ("number", "values", "answers", "dev", "state")
    assert [[c[k] for k in table] for c in found["candidates"]] == [
        [c[k] for k in table] for c in fresh["candidates"]
    ]


def test_the_config_that_is_shown_has_the_space_that_will_be_searched() -> None:
    recipe = completed(compose(TOY, strategies=parameter_types()))
    assert recipe.search.parameters["space"]["sources.*.weight"] == [0.0, 1.0]
    assert recipe.search.parameters["space"]["method"][-1] == "dare_ties"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("search.trials=0", "search.trials is 0; allowed: at least 1|from 1 to"),
        ("search.sampler=tep", "search.sampler is 'tep'; allowed: tpe, gp, cmaes, random"),
        ("search.margin=2", "search.margin is 2.0; allowed: from 0 to 1"),
        ("search.keep=0", "search.keep is 0; allowed: from 1 to 100"),
    ],
)
def test_a_parameter_out_of_range_is_refused_when_the_recipe_is_read(
    word: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([*TOY, word], strategies=parameter_types())


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_proposes_the_same_for_the_same_seed(name: str) -> None:
    import optuna

    recipe = compose([*TOY, "method=linear"])
    space = Space.read(recipe, {"sources.*.weight": [0.2, 1.0]})

    def proposals() -> list[dict[str, Any]]:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        made = optuna.create_study(direction="maximize", sampler=open_sampler(name, space, 7))
        values = []
        for _ in range(12):
            trial = made.ask()
            values.append(space.drawn(trial))
            made.tell(trial, -abs(values[-1]["sources.a.weight"] - 0.5))
        return values

    first = proposals()
    assert first == proposals() and len({str(v) for v in first}) > 6


def test_cma_es_takes_no_words() -> None:
    space = Space.read(compose(TOY), {"method": ["linear", "ties"], "sources.*.weight": [0.0, 1.0]})
    with pytest.raises(
        ConfigError, match="cmaes takes numbers only, and search.space chooses meth"
    ):
        open_sampler("cmaes", space, 0)


def test_one_source_is_nothing_to_search(place: Path) -> None:
    done = ended(place, *WORDS, "only=[math]")
    assert done.returncode == ConfigError.exit_code
    assert "optuna needs at least two sources to merge; the recipe has 1" in done.stderr


def test_two_processes_do_not_run_one_study_at_once(place: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from mergeops.checkpoint import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    study(place, "search.trials=1")
    [lock] = (place / "mergeops-work" / "studies").glob("*/lock")
    with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        done = ended(place, *WORDS, "search.trials=1")
        other.kill()
    assert done.returncode == ConfigError.exit_code
    assert "another process runs this study in" in done.stderr
