"""LoggedModels as MLflow's own flavours write them: MLmodel says what each folder is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import Fabricator, discover

from mergeops.errors import SourceError
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources.resolution import resolve_uri
from mergeops.sources.source import Source


@dataclass(frozen=True)
class Flavours:
    """LoggedModels of one run each, by ``mlflow.transformers.log_model``."""

    uri: str
    base: Path
    runs: dict[str, str]
    models: dict[str, str]

    def find(self, uri: str, cache: Path, **how: Any) -> Source:
        return resolve_uri(uri, cache_dir=cache, tracking=TrackingSpec(uri=self.uri), **how)


@pytest.fixture(scope="module")
def flavours(
    template_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama: Callable[..., Path],
) -> Iterator[Flavours]:
    import mlflow
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor

    folder = tmp_path_factory.mktemp("flavours")
    shutil.copy(template_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    base = tiny_llama(path=folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    full = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    )
    what: dict[str, dict[str, Any]] = {
        "full": {"model": full, "processor": CLIPImageProcessor()},
        "peft": {"model": wrapped},
        "peft-on-path": {"model": wrapped, "base_model_path": str(base)},
        "checkpoint-6": {"model": full},
    }
    patch = pytest.MonkeyPatch()
    before = mlflow.get_tracking_uri()
    patch.setattr(mlflow.models, "infer_pip_requirements", lambda *args, **kwargs: [])
    mlflow.set_tracking_uri(uri)
    runs, models = {}, {}
    try:
        client = mlflow.MlflowClient()
        place = (folder / "artifacts").as_uri()
        mlflow.set_experiment(experiment_id=client.create_experiment("flavours", place))
        for name, how in what.items():
            with mlflow.start_run(run_name=name) as run:
                logged = mlflow.transformers.log_model(
                    transformers_model={"model": how.pop("model"), "tokenizer": tokenizer},
                    name=name,
                    task="text-generation",
                    pip_requirements=[],
                    **how,
                )
            runs[name], models[name] = run.info.run_id, logged.model_id
    finally:
        patch.undo()
        mlflow.set_tracking_uri(before)
    yield Flavours(uri, base, runs, models)


@pytest.mark.parametrize("name", ["peft", "peft-on-path"])
def test_a_peft_model_is_its_adapter_and_not_the_wrapped_base_beside_it(
    name: str, flavours: Flavours, tmp_path: Path
) -> None:
    for uri in (f"runs:/{flavours.runs[name]}", f"models:/{flavours.models[name]}"):
        source = flavours.find(uri, tmp_path)
        assert source.adapter_base == flavours.base
        assert (source.path / "adapter_model.safetensors").is_file()
        assert source.model_id == flavours.models[name]


def test_a_model_inside_peft_that_is_named_is_refused_with_the_adapter_beside_it(
    flavours: Flavours, tmp_path: Path
) -> None:
    wanted = (
        r"holds \d+ tensors of modules that PEFT had wrapped, such as \S*(base_layer|lora_A)\S*, "
        r"and no model has such parameters: loaded, they would be random; name the adapter that "
        r"was saved beside it: \S+/peft$"
    )
    with pytest.raises(SourceError, match=wanted):
        flavours.find(f"models:/{flavours.models['peft']}/model", tmp_path)


@pytest.mark.parametrize("name", ["full", "peft", "checkpoint-6"])
def test_the_tokenizer_that_mlflow_keeps_beside_a_model_belongs_to_it(
    name: str, flavours: Flavours, tmp_path: Path
) -> None:
    path = flavours.find(f"runs:/{flavours.runs[name]}", tmp_path).path
    assert (path / "tokenizer.json").read_text() == (flavours.base / "tokenizer.json").read_text()
    weights = "adapter_model.safetensors" if name == "peft" else "model.safetensors"
    assert "models" in (path / weights).resolve().parts
    # The second time the same links are found.
    assert flavours.find(f"runs:/{flavours.runs[name]}", tmp_path).path == path


def test_the_processor_that_mlflow_keeps_beside_a_model_belongs_to_it(
    flavours: Flavours, tmp_path: Path
) -> None:
    path = flavours.find(f"models:/{flavours.models['full']}", tmp_path).path
    assert (path / "preprocessor_config.json").is_file()


def test_a_model_of_mlflow_before_2_4_1_lies_in_its_pipeline(fabricate: Fabricator) -> None:
    files = mlmodel(fabricate.folder / "old-format", OLD_FORMAT)
    shutil.copytree(fabricate.checkpoint, files / "pipeline")
    model = fabricate.logged_model(fabricate.run(), "final", files)
    assert find(f"models:/{model.model_id}", fabricate).path.name == "pipeline"


def test_a_model_that_is_called_as_a_checkpoint_is_read_as_what_it_is(
    flavours: Flavours, tmp_path: Path
) -> None:
    found = {one.run_name: one for one in discover("flavours", tracking_uri=flavours.uri)}
    one = found["checkpoint-6"]
    assert (one.problem, one.kind, one.step) == (None, "full", 6)
    assert one.uri == f"runs:/{flavours.runs['checkpoint-6']}/checkpoint-6"
    assert flavours.find(one.uri, tmp_path).model_id == flavours.models["checkpoint-6"]
    assert {name: one.kind for name, one in found.items()} == {
        "full": "full",
        "peft": "lora",
        "peft-on-path": "lora",
        "checkpoint-6": "full",
    }


SENTENCE = (
    "flavors:\n  python_function:\n    data: model.sentence_transformer\n"
    "  sentence_transformers:\n    source_model_name: org/base\n"
)


def test_a_model_of_sentence_transformers_is_read(fabricate: Fabricator) -> None:
    files = mlmodel(fabricate.folder / "sentence", SENTENCE)
    inner = Path(shutil.copytree(fabricate.checkpoint, files / "model.sentence_transformer"))
    (inner / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    (inner / "1_Pooling").mkdir()
    (inner / "1_Pooling" / "config.json").write_text("{}")
    model = fabricate.logged_model(fabricate.run(), "final", files)
    source = find(f"models:/{model.model_id}", fabricate)
    assert source.path.name == "model.sentence_transformer"
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert (one.problem, one.kind) == (None, "full")
    # One whose model lies in a folder of its own is not.
    shutil.move(inner / "model.safetensors", inner / "1_Pooling")
    other = fabricate.logged_model(fabricate.run(), "other", files)
    with pytest.raises(SourceError, match="model.sentence_transformer has config.json but no mod"):
        find(f"models:/{other.model_id}", fabricate)


def mlmodel(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "MLmodel").write_text(text)
    return folder


def reference(commit: str = "c" * 40) -> str:
    """A model of the hub's that MLflow logged by its name alone, as save_pretrained=False does."""
    return (
        "flavors:\n  transformers:\n    source_model_name: org/base\n"
        f"    source_model_revision: {commit}\n    components: [tokenizer]\n"
    )


OLD_FORMAT = (
    "flavors:\n  transformers:\n    components: [tokenizer]\n    source_model_name: org/base\n"
    "    pipeline_model_type: LlamaForCausalLM\n"
)


def test_a_model_of_which_mlflow_kept_the_name_alone_is_refused(fabricate: Fabricator) -> None:
    files = mlmodel(fabricate.folder / "reference", reference())
    model = fabricate.logged_model(fabricate.run(), "final", files)
    wanted = rf"holds no weights: MLflow noted org/base@{'c' * 40} in their place"
    with pytest.raises(SourceError, match=wanted):
        find(f"models:/{model.model_id}", fabricate)
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert "holds no weights" in str(one.problem)


def find(uri: str, fabricate: Fabricator, **how: Any) -> Source:
    tracking = TrackingSpec(uri=fabricate.uri)
    return resolve_uri(uri, cache_dir=fabricate.folder / "cache", tracking=tracking, **how)


def hub_adapter(fabricate: Fabricator, make: Any, commit: str) -> str:
    """The run of a PEFT model on a hub's base, of which MLflow noted the commit."""
    files = fabricate.folder / f"peft-{commit[:1]}"
    shutil.copytree(make("org/base"), files / "peft")
    mlmodel(files, reference(commit) + "    peft_adaptor: peft\n")
    run_id = fabricate.run(f"on {commit[:1]}")
    fabricate.logged_model(run_id, "final", files)
    return run_id


def test_the_commit_of_the_base_that_mlflow_noted_is_the_adapters(
    fabricate: Fabricator, fabricate_adapter: Any
) -> None:
    commits = ["c" * 40, "d" * 40]
    run_ids = [hub_adapter(fabricate, fabricate_adapter, commit) for commit in commits]
    found = {one.run_id: one for one in discover("old", tracking_uri=fabricate.uri)}
    assert [found[run_id].base for run_id in run_ids] == [f"org/base@{c}" for c in commits]
    wanted = rf"trained on hf://org/base@{commits[0]}, and hf://org/base is another commit of it"
    with pytest.raises(SourceError, match=wanted):
        find(f"runs:/{run_ids[0]}", fabricate, base="hf://org/base")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("flavors: [", "MLmodel is not YAML"),
        ("artifact_path: x\n", "MLmodel names no flavors"),
        ("flavors: {transformers: {model_binary: ../../x}}\n", "leaves its directory"),
        (
            "flavors: {pytorch: {model_data: data}}\n",
            "holds no checkpoint: it is a model of MLflow's pytorch fla",
        ),
        ("flavors: {transformers: {model_binary: gone}}\n", "gone is empty or does not exist"),
    ],
)
def test_an_mlmodel_that_leads_nowhere_is_named(
    text: str, wanted: str, fabricate: Fabricator
) -> None:
    files = mlmodel(fabricate.folder / "odd", text)
    model = fabricate.logged_model(fabricate.run(), "odd", files)
    with pytest.raises(SourceError, match=wanted):
        find(f"models:/{model.model_id}", fabricate)


def steps(
    fabricate: Fabricator, losses: dict[int, float], metric: str = "eval_loss", **params: str
) -> dict[int, Any]:
    """A run that logged a model of one name at each step, and its metric there."""
    from mlflow.entities import LoggedModelOutput

    run_id = fabricate.run("steps", params=params)
    models = {}
    for step, loss in losses.items():
        fabricate.client.log_metric(run_id, metric, loss, step=step)
        model = fabricate.client.create_logged_model(
            fabricate.experiment, "final", source_run_id=run_id
        )
        fabricate.client.log_model_artifacts(model.model_id, str(fabricate.checkpoint))
        fabricate.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        fabricate.client.finalize_logged_model(model.model_id, "READY")
        models[step] = model
    return models


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({10: 1.0, 20: 2.0}, 10),
        ({10: 2.0, 20: 1.0}, 20),
        ({20: 1.0, 10: 2.0}, 20),
        # MLflow shows NaN as 0.0 on a LoggedModel; the run keeps it.
        ({10: 1.0, 20: float("nan")}, 10),
    ],
)
def test_of_logged_models_the_one_with_the_lowest_loss_is_the_best(
    losses: dict[int, float], best: int, fabricate: Fabricator
) -> None:
    models = steps(fabricate, losses)
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert (one.step, one.model_id) == (best, models[best].model_id)
    assert one.metrics["eval_loss"] == losses[best]
    assert one.found_by["checkpoint"].endswith("; lowest eval_loss that the run logged")
    # Two models have the name, so the name is no address.
    assert one.uri == f"models:/{models[best].model_id}"
    assert find(str(one.uri), fabricate).model_id == models[best].model_id


@pytest.mark.parametrize("order", [(10, 20), (20, 10)])
def test_a_name_that_two_models_of_a_run_have_is_the_one_that_mlflow_takes(
    order: tuple[int, int], fabricate: Fabricator
) -> None:
    import mlflow

    models = steps(fabricate, dict.fromkeys(order, 1.0))
    uri = f"runs:/{models[10].source_run_id}/final"
    # MLflow downloads the newest, and registers that of the largest step.
    assert find(uri, fabricate).model_id == models[order[1]].model_id
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(fabricate.uri)
    version = mlflow.register_model(uri, "ing")
    mlflow.set_tracking_uri(before)
    assert version.source == f"models:/{models[20].model_id}"
    fabricate.client.set_registered_model_alias("ing", "champion", version.version)
    assert find("models:/ing@champion", fabricate).model_id == models[20].model_id


@pytest.mark.parametrize(
    ("metric", "facts", "best"),
    [
        ("val/loss", {}, 20),
        ("Validation Loss", {}, 20),
        ("valid_loss", {}, 20),
        ("eval_accuracy", {}, 30),
        ("quality", {"metric_for_best_model": "quality", "greater_is_better": "False"}, 20),
        # Of training, or of nobody knows what.
        ("loss", {}, 30),
        ("train_loss", {}, 30),
        ("wer", {}, 30),
    ],
)
def test_held_out_losses_and_accuracies_are_known_by_their_names(
    metric: str, facts: dict[str, str], best: int, fabricate: Fabricator
) -> None:
    models = steps(fabricate, {10: 2.0, 20: 1.0, 30: 3.0}, metric, **facts)
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert one.model_id == models[best].model_id


@pytest.mark.parametrize(("told", "best"), [("True", 20), ("false", 10), (None, 30)])
def test_the_primary_metric_of_the_experiment_tells_the_best(
    told: str | None, best: int, fabricate: Fabricator
) -> None:
    tag = "mlflow.experiment.primaryMetric"
    fabricate.client.set_experiment_tag(fabricate.experiment, f"{tag}.name", "wer")
    if told is not None:
        fabricate.client.set_experiment_tag(fabricate.experiment, f"{tag}.greaterIsBetter", told)
    models = steps(fabricate, {10: 0.1, 20: 0.9, 30: 0.5}, "wer")
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert one.model_id == models[best].model_id


@pytest.mark.parametrize(("name", "best"), [("loss", 20), ("accuracy", 30)])
def test_what_is_logged_onto_the_models_themselves_tells_the_best(
    name: str, best: int, fabricate: Fabricator
) -> None:
    from mlflow.entities import Metric

    run_id, models = fabricate.run(), {}
    for step, value in ((10, 2.0), (30, 3.0), (20, 1.0)):
        model = models[step] = fabricate.logged_model(run_id, f"at-{step}", fabricate.checkpoint)
        facts = {"model_id": model.model_id, "run_id": run_id}
        fabricate.client.log_batch(run_id, metrics=[Metric(name, value, 1, step, **facts)])
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert one.model_id == models[best].model_id


def test_an_output_that_does_not_name_its_run_is_found(fabricate: Fabricator) -> None:
    from mlflow.entities import LoggedModelOutput

    elsewhere = fabricate.client.create_experiment(
        "models", (fabricate.folder / "elsewhere").as_uri()
    )
    model = fabricate.client.create_logged_model(elsewhere, "final")
    fabricate.client.log_model_artifacts(model.model_id, str(fabricate.checkpoint))
    fabricate.client.finalize_logged_model(model.model_id, "READY")
    run_id = fabricate.run()
    fabricate.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 3)])
    assert find(f"runs:/{run_id}", fabricate).model_id == model.model_id
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert (one.uri, one.step) == (f"runs:/{run_id}/final", 3)
    assert find(str(one.uri), fabricate).model_id == model.model_id


def test_a_diverged_loss_on_a_logged_model_alone_is_not_the_best(fabricate: Fabricator) -> None:
    from mlflow.entities import Metric

    models = steps(fabricate, {})
    run_id = discover("old", tracking_uri=fabricate.uri)[0].run_id
    for step, loss in ((10, 1.5), (20, float("nan"))):
        model = fabricate.logged_model(run_id, f"at-{step}", fabricate.checkpoint)
        metric = Metric(
            "eval_loss", loss, 1000 + step, step, model_id=model.model_id, run_id=run_id
        )
        fabricate.client.log_batch(run_id, metrics=[metric])
        models[step] = model
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert one.model_id == models[10].model_id


def test_a_reward_that_is_no_number_is_not_the_highest_of_negative_ones(
    fabricate: Fabricator,
) -> None:
    from mlflow.entities import Metric

    params = {"metric_for_best_model": "reward", "greater_is_better": "True"}
    run_id = fabricate.run("rewards", params=params)
    # By another run, that evaluated them: the training run itself does not have the numbers.
    judge = fabricate.client.create_run(fabricate.client.create_experiment("judged")).info.run_id
    models = {}
    for step, reward in ((10, -1.5), (20, -2.5), (30, float("nan"))):
        model = fabricate.logged_model(run_id, f"at-{step}", fabricate.checkpoint)
        facts = {"model_id": model.model_id, "run_id": judge}
        metric = Metric("eval_reward", reward, 1000 + step, step, **facts)
        fabricate.client.log_batch(judge, metrics=[metric])
        models[step] = model
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert one.model_id == models[10].model_id


def test_files_that_the_registry_keeps_of_a_deleted_logged_model_are_read(
    fabricate: Fabricator,
) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(fabricate.uri)
    try:
        run_id = fabricate.run()
        model = fabricate.logged_model(run_id, "final", fabricate.checkpoint, "model")
        fabricate.client.create_registered_model("skills")
        fabricate.client.create_model_version("skills", model.model_uri, run_id)
        fabricate.client.delete_logged_model(model.model_id)
        theirs = Path(mlflow.artifacts.download_artifacts("models:/skills/1"))
    finally:
        mlflow.set_tracking_uri(before)
    source = find("models:/skills/1", fabricate)
    ours = (source.path / "model.safetensors").read_bytes()
    assert ours == (theirs / "model/model.safetensors").read_bytes()
    assert (source.registered, source.run_id, source.model_id) == ("skills/1", run_id, None)
    shutil.rmtree(source.path)
    wanted = rf"its LoggedModel models:/{model.model_id} was deleted, and .*use another version"
    with pytest.raises(SourceError, match=wanted):
        find("models:/skills/1", fabricate)
