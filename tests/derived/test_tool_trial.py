"""What extract, moe and transplant make, and merges as adapters, as trials in a real store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from click.testing import CliRunner
from support.user_place import write_task

from mergeops.checkpoint import adapter_sha256, verify_checkpoint, weights_sha256
from mergeops.cli.main import cli
from mergeops.errors import ConfigError, GateRefusedError, MergeopsError
from mergeops.recipe import Recipe, compose
from mergeops.store import own_tags

Make = Callable[..., Path]
TASKS = ("evaluate.tasks=[add]", "evaluate.include_path=tasks")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Make, tiny_lora: Make) -> Path:
    """A base, two fine-tunes and two adapters of it."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(path=folder / "base")
    for seed, name in enumerate(("math", "code"), 1):
        tiny_llama(path=folder / name, like=base, seed=seed, noise=0.02)
        tiny_lora(base, seed=seed, path=folder / f"{name}_lora")
    return folder


@pytest.fixture
def place(
    models: Path, template_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A directory with the models, a task and a database of its own."""
    for name in ("base", "math", "code", "math_lora", "code_lora"):
        (tmp_path / name).symlink_to(models / name)
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "add", 1, n=24)
    shutil.copy(template_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(*words: str) -> Any:
    """The JSON of a command."""
    done = CliRunner().invoke(cli, [*words, "--json", "-q"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*words: str) -> str:
    with pytest.raises(MergeopsError) as caught:
        CliRunner().invoke(cli, [*words, "-q"], catch_exceptions=False)
    return str(caught.value)


def artifact(run_id: str, name: str, to: Path) -> Any:
    found = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(to))
    return yaml.safe_load(Path(found).read_text())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(torch.arange(4, 40)[None]).logits
    return answer


def family(uri: str) -> dict[str, str]:
    """Kind and name of a model's parents, and how it was made, as lineage says."""
    done = CliRunner().invoke(cli, ["lineage", uri, "--json"], catch_exceptions=False)
    tree = json.loads(done.stdout)
    return {"made by": tree["method"], **{p["name"]: p["kind"] for p in tree["parents"]}}


EXTRACT = ("extract", "base", "math", "out", "--rank", "4", "--log", *TASKS)


def test_an_extracted_adapter_is_a_scored_version_that_mlflow_loads(
    place: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = ran(*EXTRACT)
    trial = made["trial"]
    assert trial["registered"] == "merged/1"
    assert {row["name"] for row in trial["leaderboard"]["rows"]} == {"base", "tuned", "extract out"}
    run = mlflow.MlflowClient().get_run(trial["run_id"])
    assert run.data.metrics["adapter/relative_error"] == made["relative_error"]
    assert run.data.metrics["adapter/bytes"] == made["bytes"]
    assert run.data.params["method"] == "extract"
    assert run.data.params["extract.rank"] == "4"
    tags = own_tags(run.data.tags)
    assert tags["mergeops.method"] == "extract" and tags["mergeops.parents"] == "base,tuned"
    sha256 = adapter_sha256(place / "out", weights_sha256(place / "base"))
    assert tags["mergeops.weights_sha256"] == sha256
    assert artifact(run.info.run_id, "made.json", tmp_path)["matrices"] == made["matrices"]
    lock = artifact(run.info.run_id, "lock.json", tmp_path)
    assert lock["parents"]["tuned"]["sha256"] == weights_sha256(place / "math")
    assert verify_checkpoint(place / "out") == []
    assert family("models:/merged/1") == {"made by": "extract", "base": "base", "tuned": "source"}

    parts = mlflow.transformers.load_model("models:/merged/1", return_type="components")
    base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    assert torch.equal(
        logits(parts["model"].float()), logits(PeftModel.from_pretrained(base, "out"))
    )
    answer = mlflow.pyfunc.load_model("models:/merged/1").predict("1 + 1 =")
    assert isinstance(answer[0], str)

    again = ran(*EXTRACT)
    assert again["was_there"] and again["trial"] == trial
    # What the run keeps is the record of a tool, and no recipe of a merge.
    recipe = artifact(run.info.run_id, "recipe.yaml", tmp_path)
    assert Recipe.from_dict(recipe).made_by == "extract"
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match="what `mergeops extract` made, and no recipe"):
        compose(recipe_file=tmp_path / "again.yaml")
    assert "controls are for merges" in refused("controls", "merged")

    # The gate scores the adapter on its base; these models have nothing to show.
    done = CliRunner().invoke(cli, ["promote", "merged", "--json", "-q"])
    assert isinstance(done.exception, GateRefusedError)
    checks = json.loads(done.stdout)["verdict"]["checks"]
    assert {check["reference"] for check in checks} == {"best_parent:tuned", "base"}
    assert all(check["n"] > 0 for check in checks)


def test_a_mixture_and_a_transplant_are_versions_where_asked(place: Path, tmp_path: Path) -> None:
    experts = [{"source_model": name} for name in ("math", "code")]
    recipe = {"base_model": "base", "gate_mode": "random", "experts": experts}
    (place / "moe.yml").write_text(yaml.safe_dump(recipe))
    log = ("--log", "--experiment", "tools", "--register")
    made = ran("moe", "moe.yml", "experts", *log, "mixed")
    run = mlflow.MlflowClient().get_run(made["trial"]["run_id"])
    assert made["trial"]["registered"] == "mixed/1"
    assert run.data.metrics["moe/experts"] == 2 and run.data.params["moe.seed"] == "0"
    assert mlflow.get_experiment(run.info.experiment_id).name == "tools"
    assert made["trial"]["plan_digest"] == made["plan_digest"]
    assert family("models:/mixed/1") == {
        "made by": "moe",
        "base": "base",
        "expert_1": "source",
        "expert_2": "source",
    }
    loaded = mlflow.transformers.load_model("models:/mixed/1", return_type="components")
    assert type(loaded["model"]).__name__ == "MixtralForCausalLM"

    moved = ran("transplant", "math", "code", "moved", *log, "moved")
    assert moved["trial"]["registered"] == "moved/1"
    assert family("models:/moved/1") == {
        "made by": "transplant",
        "model": "source",
        "donor": "source",
    }
    unscored = ran("transplant", "math", "code", "moved", "--log")
    assert unscored["trial"]["registered"] == ""


def test_a_tool_s_trial_waits_for_the_server(place: Path) -> None:
    away = ran("extract", "base", "math", "out", "--rank", "2", "--log", "tracking.offline=true")
    assert away["trial"]["run_id"] == ""
    [synced] = ran("sync")
    run = mlflow.MlflowClient().get_run(synced["run_id"])
    assert run.data.metrics["adapter/relative_error"] == away["relative_error"]
    assert own_tags(run.data.tags)["mergeops.method"] == "extract"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--log", "method=ties"], "'method=ties' is no setting of `mergeops extract`"),
        (["--experiment", "x"], "--experiment is 'x', which is for --log"),
        (["--register", "x"], "--register is 'x', which is for --log"),
        ([TASKS[0]], "'evaluate.tasks=[add]' scores what is made, which takes --log"),
        (["--log", "--register", "a/b"], "registered_model is 'a/b'"),
        (["--log", "evaluate.tasks=[nothing_like_it]"], "nothing_like_it"),
    ],
)
def test_what_no_tool_takes_is_refused_before_work(
    words: list[str], said: str, place: Path
) -> None:
    assert said in refused("extract", "base", "math", "out", *words)
    assert not (place / "out").exists()


LORAS = """
base: base
sources: {math: math_lora, code: code_lora}
method: linear
"""


def test_a_run_registers_a_merge_as_an_adapter(place: Path) -> None:
    (place / "loras.yaml").write_text(LORAS)
    words = ("run", "loras.yaml", *TASKS, "tracking.heat_maps=false")
    whole = ran(*words)
    trial = ran(*words, "output.as=adapter")
    assert (whole["registered"], trial["registered"]) == ("merged/1", "merged/2")
    folder = Path(trial["checkpoint"])
    assert (folder / "adapter_model.safetensors").is_file()
    assert trial["dev_score"] == whole["dev_score"]
    run = mlflow.MlflowClient().get_run(trial["run_id"])
    assert run.data.metrics["adapter/largest_rank"] == 8
    assert family("models:/merged/2") == {
        "made by": "linear",
        "base": "base",
        "math": "source",
        "code": "source",
    }
    info = mlflow.models.get_model_info("models:/merged/2").flavors["transformers"]
    assert info["peft_adaptor"] == "model" and info["local_base_model_path"] == f"{place}/base"
    assert ran(*words, "output.as=adapter") == trial
    # It is a source as others are.
    later = ran("run", "base=base", "method=linear", "sources.a=models:/merged/2", "sources.b=math")
    assert later["run_id"]


def test_adapters_are_refused_where_they_cannot_be(place: Path) -> None:
    (place / "loras.yaml").write_text(LORAS)
    words = ("loras.yaml", *TASKS, "output.as=adapter")
    assert "of these sources is not of low rank" in refused("run", *words, "sources.code=code")
    searched = refused("search", *words, "sources.code=code")
    assert "sources.code is code, a full model; a search takes adapters only" in searched
    assert "method is ties; whether its merges are" in refused("search", *words, "method=ties")
    assert "executor is ray; leave one of them out" in refused("run", *words, "executor=ray")
    # What is wrong before any work leaves no failed run.
    runs = len(mlflow.search_runs(search_all_experiments=True))
    assert "base is missing; name the full model" in refused("run", *words, "base=null")
    assert len(mlflow.search_runs(search_all_experiments=True)) == runs


def test_a_search_among_adapters_registers_adapters(place: Path) -> None:
    (place / "loras.yaml").write_text(LORAS)
    grid = ("strategy=grid", "search.grid={sources.math.weight: [1.0, 3.0]}")
    found = ran("search", "loras.yaml", *TASKS, "output.as=adapter", *grid)
    folders = [Path(trial["checkpoint"]) for trial in found["trials"]]
    assert len(folders) == 2
    assert all((folder / "adapter_config.json").is_file() for folder in folders)
