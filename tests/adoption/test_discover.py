"""What adopt finds in experiments of many trainers, and what it says of what it cannot use."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file
from support.quantised_models import FILE, rewritten
from support.training_runs import Fabricator, cut_short, discover

from mergeops.adoption import adoption as adopt_module
from mergeops.adoption.adoption import adopt
from mergeops.adoption.found import FoundRun
from mergeops.adoption.groups import group
from mergeops.adoption.recipe_file import write_recipe
from mergeops.checkpoint import weights_sha256
from mergeops.cli.adopt import print_adoption
from mergeops.errors import ConfigError, SourceError, TrackingError


def find(fabricate: Fabricator, **how: Any) -> dict[str, FoundRun]:
    return {f.run_name: f for f in discover("old", tracking_uri=fabricate.uri, **how)}


def hf_run(fabricate: Fabricator, name: str, base: str = "org/base", **how: Any) -> str:
    """A run with an output directory of its own and one checkpoint in it."""
    output = fabricate.folder / "out" / name
    fabricate.save(output / "checkpoint-2", lora=how.pop("lora", False))
    return fabricate.run(name, params={"output_dir": str(output), "_name_or_path": base}, **how)


def test_a_run_that_goes_on_is_found_with_what_it_has_so_far(fabricate: Fabricator) -> None:
    run_id = hf_run(fabricate, "going", status="RUNNING")
    one = find(fabricate)["going"]
    assert (one.status, one.uri) == ("RUNNING", f"runs:/{run_id}/checkpoint-2")
    first = adopt("old", tracking_uri=fabricate.uri).adopted[0]
    fabricate.save(fabricate.folder / "out/going/checkpoint-4")
    second = adopt("old", tracking_uri=fabricate.uri).adopted[0]
    assert (first.found.step, second.found.step) == (2, 4)
    assert first.model_id != second.model_id
    assert fabricate.client.get_run(run_id).info.status == "RUNNING"


def test_a_running_run_without_a_sign_of_life_for_an_hour_is_marked_in_the_table(
    fabricate: Fabricator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_run(fabricate, "going", status="RUNNING")
    fabricate.save(fabricate.folder / "out/going/checkpoint-4")
    hf_run(fabricate, "done")

    def shown() -> str:
        adopted = adopt("old", tracking_uri=fabricate.uri, dry_run=True)
        print_adoption(adopted, adopted.rows(), None)
        return capsys.readouterr().out

    assert "silent" not in shown()
    now = time.time()
    monkeypatch.setattr("mergeops.adoption.facts.time.time", lambda: now + 3700)
    said = shown()
    assert said.count("RUNNING, silent") == 1
    assert "silent: RUNNING, but it has logged nothing for an hour; most likely it was kil" in said
    assert "step 4, 1 of 2" in said
    assert "1 of N: the run kept N checkpoints; the best by its own metric is taken, else" in said


def test_a_hub_id_stays_a_hub_id_and_a_directory_becomes_absolute(fabricate: Fabricator) -> None:
    beside = fabricate.folder / "store/bases/tiny"
    shutil.copytree(fabricate.checkpoint, beside)
    hf_run(fabricate, "hub")
    hf_run(fabricate, "local", base="bases/tiny")
    hf_run(fabricate, "moved", base="/old/tiny")
    found = find(fabricate, path_map={"/old": str(beside.parent)})
    assert {name: one.base for name, one in found.items()} == {
        "hub": "org/base",
        "local": str(beside),
        "moved": str(beside),
    }


def test_the_current_directory_says_where_a_base_is_only_if_the_run_trained_there(
    fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = fabricate.folder / "project"
    shutil.copytree(fabricate.checkpoint, here / "bases/tiny")
    state = {"log_history": [{"step": 2, "loss": 1.5}]}
    fabricate.save(here / "out/checkpoint-2", state=state)
    monkeypatch.chdir(here)
    hf_run(fabricate, "elsewhere", base="bases/tiny")
    params = {"output_dir": "out", "_name_or_path": "bases/tiny"}
    fabricate.run("here", params=params, metrics={"loss": [(2, 1.5)]})
    (here / "bases/empty").mkdir()
    hf_run(fabricate, "empty", base="bases/empty")
    digest = weights_sha256(fabricate.checkpoint)
    hf_run(fabricate, "told", base="bases/tiny", tags={"mergeops.base_sha256": digest})
    found = find(fabricate)
    assert found["elsewhere"].base == "bases/tiny"
    assert found["empty"].base == "bases/empty"
    assert found["told"].base == str(here / "bases/tiny")
    assert found["here"].base == str(here / "bases/tiny")


def test_unsloths_four_bit_base_becomes_its_sixteen_bit_twin(fabricate: Fabricator) -> None:
    hf_run(fabricate, "a", base="unsloth/llama-3.2-1b-unsloth-bnb-4bit")
    hf_run(fabricate, "b", base="unsloth/llama-3.2-1b-bnb-4bit")
    tagged = f"unsloth/llama-3.2-1b-bnb-4bit@{'c' * 40}"
    hf_run(fabricate, "c", tags={"mergeops.base": tagged})
    for one in find(fabricate).values():
        assert one.base == "unsloth/llama-3.2-1b"
        assert one.found_by["base"].endswith(" without its 4-bit suffix")


def test_a_directory_with_codes_of_four_bits_is_no_base_that_merges(
    fabricate: Fabricator, fabricate_adapter: Any
) -> None:
    weights = load_file(fabricate.checkpoint / FILE)
    name = "model.layers.0.mlp.up_proj.weight"
    coded = {name: torch.zeros(9, 1, dtype=torch.uint8), f"{name}.absmax": torch.ones(4)}
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    base = rewritten(fabricate.checkpoint, fabricate.folder / "base", weights | coded, said)
    shutil.copytree(fabricate_adapter(str(base)), fabricate.folder / "out/checkpoint-2")
    fabricate.run("a", params={"output_dir": str(fabricate.folder / "out")})
    assert str(find(fabricate)["a"].problem).endswith(
        f"is an adapter on {base}, which is quantised (bitsandbytes 4 bits): set the run's tag "
        "mergeops.base to the 16-bit model that it was made from"
    )


def test_the_tag_of_the_base_wins(fabricate: Fabricator) -> None:
    hf_run(fabricate, "tagged", tags={"mergeops.base": "org/other"})
    assert find(fabricate)["tagged"].base == "org/other"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("axolotl_config_a1.yml", "base_model: org/axolotl\n"),
        ("home/me/out/torchtune_config.yaml", "checkpointer: {checkpoint_dir: org/axolotl}\n"),
    ],
)
def test_a_logged_config_tells_the_base(file: str, text: str, fabricate: Fabricator) -> None:
    output = fabricate.folder / "out"
    fabricate.save(output / "checkpoint-1")
    run_id = fabricate.run("a", params={"output_dir": str(output)})
    fabricate.client.log_text(run_id, text, file)
    one = find(fabricate)["a"]
    assert one.base == "org/axolotl"
    assert one.found_by["base"] == f"artifact {Path(file).name}"


def test_an_adapters_architecture_comes_from_the_params_where_its_base_is_away(
    fabricate: Fabricator, fabricate_adapter: Any
) -> None:
    output = fabricate.folder / "out"
    shutil.copytree(fabricate_adapter("org/far"), output / "checkpoint-3")
    params = {
        "output_dir": str(output),
        "architectures": "['LlamaForCausalLM']",
        "vocab_size": "32000",
        "hidden_size": "64",
        "num_key_value_heads": "None",
    }
    fabricate.run("a", params=params)
    one = find(fabricate)["a"]
    assert (one.kind, one.base) == ("lora", "org/far")
    assert one.architectures == ("LlamaForCausalLM",)
    assert one.shape == {"vocab_size": 32000, "hidden_size": 64}
    assert one.found_by["architectures"] == "params"


def test_losses_that_are_no_numbers_are_left_out(fabricate: Fabricator) -> None:
    nan, inf = float("nan"), float("inf")
    hf_run(fabricate, "a", metrics={"loss": [(1, nan)], "eval_loss": [(1, inf)]})
    assert find(fabricate)["a"].metrics == {}
    json.dumps(find(fabricate)["a"].row(), allow_nan=False)


def test_a_shared_output_directory_gives_each_run_its_own_checkpoints(
    fabricate: Fabricator,
) -> None:
    output = fabricate.folder / "shared"
    params = {"output_dir": str(output)}
    for step, losses in ((2, [9.0]), (4, [2.0, 1.0])):
        history = [{"step": 2 * (i + 1), "loss": loss} for i, loss in enumerate(losses)]
        fabricate.save(output / f"checkpoint-{step}", state={"log_history": history})
    fabricate.run("long", params=params, metrics={"loss": [(2, 2.0), (4, 1.0)]})
    fabricate.run("short", params=params, metrics={"loss": [(2, 9.0)]})
    found = find(fabricate)
    assert {name: one.step for name, one in found.items()} == {"long": 4, "short": 2}


def test_of_repetitions_into_one_directory_the_last_run_keeps_it(fabricate: Fabricator) -> None:
    output = fabricate.folder / "shared"
    fabricate.save(output / "checkpoint-2")
    fabricate.run("first", params={"output_dir": str(output)})
    last = fabricate.run("last", params={"output_dir": str(output)})
    found = find(fabricate)
    assert found["last"].problem is None
    wanted = f"its output directory was used again by run last ({last}), which wrote {output}"
    assert str(found["first"].problem).startswith(wanted)


def test_merges_and_scored_parents_are_no_training_runs(fabricate: Fabricator) -> None:
    hf_run(fabricate, "real")
    hf_run(fabricate, "merge", tags={"mergeops.role": "merge"})
    assert list(find(fabricate)) == ["real"]


def test_the_listing_asks_for_no_run_by_itself(
    fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    for name in ("a", "b", "c"):
        hf_run(fabricate, name)
    asked: list[str] = []
    for method in ("get_run", "get_metric_history", "get_logged_model", "list_artifacts"):
        record = lambda self, *a, method=method, **k: asked.append(method)  # noqa: E731
        monkeypatch.setattr(mlflow.MlflowClient, method, record)
    assert len(find(fabricate)) == 3
    assert asked == []


def test_more_runs_than_a_page_are_all_read(
    fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeops.adoption import discover as module
    from mergeops.sources import training_runs as store

    monkeypatch.setattr(module, "RUNS_PER_PAGE", 2)
    monkeypatch.setattr(store, "MODELS_PER_PAGE", 2)
    for i in range(5):
        fabricate.logged_model(fabricate.run(f"r{i}"), "final", fabricate.checkpoint, "model")
    found = find(fabricate)
    assert sorted(found) == ["r0", "r1", "r2", "r3", "r4"]
    assert all(one.model_id for one in found.values())


def test_an_unknown_experiment_is_answered_with_the_like(fabricate: Fabricator) -> None:
    wanted = "no experiment 'olt' at sqlite:///.*; did you mean 'old'. experiments: old, Default"
    with pytest.raises(SourceError, match=wanted):
        discover("olt", tracking_uri=fabricate.uri)


def test_a_deleted_experiment_says_how_to_restore_it(fabricate: Fabricator) -> None:
    fabricate.client.delete_experiment(fabricate.experiment)
    with pytest.raises(SourceError, match="is deleted in MLflow; restore it with `mlflow exper"):
        discover("old", tracking_uri=fabricate.uri)


def test_an_experiment_without_runs_says_so(fabricate: Fabricator) -> None:
    with pytest.raises(SourceError, match="experiment 'old' at sqlite:///.*db has no runs$"):
        discover("old", tracking_uri=fabricate.uri)
    fabricate.run()
    with pytest.raises(SourceError, match="has no runs that match 'params.x = \"1\"'"):
        discover("old", filter_string='params.x = "1"', tracking_uri=fabricate.uri)


def test_a_filter_that_mlflow_cannot_read_is_quoted(fabricate: Fabricator) -> None:
    with pytest.raises(
        TrackingError, match="MLflow cannot read the filter 'loss << 2'; write e.g."
    ):
        discover("old", filter_string="loss << 2", tracking_uri=fabricate.uri)


def test_where_no_run_is_usable_each_ones_problem_is_named(fabricate: Fabricator) -> None:
    checkpoint = fabricate.save(fabricate.folder / "out/checkpoint-1")
    cut_short(checkpoint / "model.safetensors")
    fabricate.run("cut", params={"output_dir": str(checkpoint.parent)})
    fabricate.run("gone", params={"output_dir": "/mnt/gone"})
    fabricate.run("bare")
    wanted = (
        r"experiment 'old' has 3 run\(s\), none with a usable checkpoint: bare: it left no "
        r"checkpoint: .*; gone: param output_dir is /mnt/gone, .*; cut: .*truncated"
    )
    with pytest.raises(SourceError, match=wanted):
        adopt("old", tracking_uri=fabricate.uri)


def test_one_broken_run_does_not_hide_the_others(fabricate: Fabricator) -> None:
    hf_run(fabricate, "good")
    bad = hf_run(fabricate, "bad", lora=True)
    (fabricate.folder / "out/bad/checkpoint-2/adapter_config.json").write_text("{")
    found = find(fabricate)
    assert found["good"].problem is None
    assert "adapter_config.json is not JSON" in str(found["bad"].problem)
    adoption = adopt("old", tracking_uri=fabricate.uri)
    assert [one.found.run_name for one in adoption.adopted] == ["good"]
    rows = {row["run_name"]: row for row in adoption.rows()}
    assert (rows["bad"]["run_id"], rows["bad"]["adopted_model_id"]) == (bad, None)
    assert rows["bad"]["group"] is None


def test_an_adoption_that_was_killed_half_way_is_completed(
    fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    run_id = hf_run(fabricate, "a")

    def die(*args: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    # The last one links the version to its model.
    for method in (
        "finalize_logged_model",
        "log_outputs",
        "create_model_version",
        "set_logged_model_tags",
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(mlflow.MlflowClient, method, die)
            adopt("old", tracking_uri=fabricate.uri, register="ing")
    done = adopt("old", tracking_uri=fabricate.uri, register="ing").adopted[0]
    (model,) = fabricate.client.search_logged_models([fabricate.experiment])
    assert (model.model_id, str(model.status)) == (done.model_id, "READY")
    outputs = fabricate.client.get_run(run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [done.model_id]
    assert done.registered == "ing/1"
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "ing", "version": 1}]


def test_adoptions_at_the_same_time_make_everything_once(
    fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ids = [hf_run(fabricate, name) for name in "ab"]
    both_have_read = threading.Barrier(2, timeout=60)
    real = adopt_module.read_experiment

    def read_by_both(*args: Any) -> Any:
        found = real(*args)
        both_have_read.wait()
        return found

    monkeypatch.setattr(adopt_module, "read_experiment", read_by_both)
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(adopt, "old", tracking_uri=fabricate.uri, register="ing") for _ in "12"
        ]
        first, second = (call.result().adopted for call in calls)
    made = {one.model_id: one.registered for one in first}
    assert made == {one.model_id: one.registered for one in second}
    assert sorted(one.is_new for one in [*first, *second]) == [False, False, True, True]
    models = fabricate.client.search_logged_models([fabricate.experiment])
    assert sorted(model.model_id for model in models) == sorted(made, key=str)
    assert len(fabricate.client.search_model_versions("name = 'ing'")) == 2
    for run_id in run_ids:
        assert len(fabricate.client.get_run(run_id).outputs.model_outputs) == 1


def test_what_another_machine_adopted_first_is_taken_and_the_own_goes(
    fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = hf_run(fabricate, "a")
    client = fabricate.client
    real_model, real_version = MlflowClient.create_logged_model, MlflowClient.create_model_version

    # The other machine has no part in the lock here; each of its writes comes just before ours.
    def twice_model(self: Any, *args: Any, **how: Any) -> Any:
        real_model(self, *args, **how)
        time.sleep(0.002)
        return real_model(self, *args, **how)

    def twice_version(self: Any, *args: Any, **how: Any) -> Any:
        real_version(self, *args, **how)
        return real_version(self, *args, **how)

    monkeypatch.setattr(MlflowClient, "create_logged_model", twice_model)
    monkeypatch.setattr(MlflowClient, "create_model_version", twice_version)
    (one,) = adopt("old", tracking_uri=fabricate.uri, register="ing").adopted
    (model,) = client.search_logged_models([fabricate.experiment])
    (version,) = client.search_model_versions("name = 'ing'")
    assert (one.model_id, one.is_new) == (model.model_id, False)
    assert (one.registered, version.source) == ("ing/1", f"models:/{model.model_id}")
    outputs = client.get_run(run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [model.model_id]


def test_a_name_that_mlflow_would_refuse_is_refused_before_anything_is_written(
    fabricate: Fabricator,
) -> None:
    hf_run(fabricate, "a")
    with pytest.raises(ConfigError, match="--register is 'a/b'; MLflow allows any name without"):
        adopt("old", tracking_uri=fabricate.uri, register="a/b")


def test_a_run_name_with_signs_that_a_model_name_may_not_have_is_adopted(
    fabricate: Fabricator,
) -> None:
    hf_run(fabricate, "lr=0.5 80% \"x\": 'y'")
    one = adopt("old", tracking_uri=fabricate.uri).adopted[0]
    name = fabricate.client.get_logged_model(one.model_id).name
    assert name.startswith("lr=0p5 80_ _x__ _y_")


def make(name: str, **facts: Any) -> FoundRun:
    shape = {"vocab_size": 128, "hidden_size": facts.pop("hidden_size", 32)}
    known: dict[str, Any] = {"architectures": ("LlamaForCausalLM",), "base": "org/base"}
    return FoundRun(name, name, "FINISHED", shape=shape, **(known | facts))


def test_groups_say_what_sets_them_apart_from_the_largest() -> None:
    groups = group(
        [
            make("small", hidden_size=16),
            make("a"),
            make("other", base="org/other"),
            make("b"),
            make("qwen", architectures=("Qwen3ForCausalLM",)),
            make("broken", problem="is gone"),
            make("scratch", base=None),
            make("coded", quantisation="fp8"),
            make("pinned", base="org/base@v1"),
        ]
    )
    assert [member.run_name for member in groups[0].members] == ["a", "b"]
    assert {g.members[0].run_name: g.reason for g in groups} == {
        "a": None,
        "small": "has hidden_size 16, the largest group 32",
        "other": "was trained on org/other, the largest group on org/base",
        "qwen": "is Qwen3ForCausalLM, the largest group is LlamaForCausalLM",
        "scratch": "was trained on no base, the largest group on org/base",
        "coded": "holds fp8 weights, the largest group plain ones",
        "pinned": "was trained on org/base@v1, the largest group on org/base",
    }


def test_main_and_the_commit_that_it_is_are_one_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repository, commit = tmp_path / "models--org--base", "c" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    names = {"a": "org/base", "b": f"org/base@{commit}", "c": "org/base@v1"}
    groups = group([make(name, base=base) for name, base in names.items()])
    assert [[run.run_name for run in g.members] for g in groups] == [["a", "b"], ["c"]]
    assert groups[0].base == f"org/base@{commit}"


@pytest.mark.parametrize(
    ("config", "kind", "problem"),
    [
        ({"peft_type": "LOHA"}, "loha", None),
        ({"peft_type": "LORA", "use_dora": True}, "dora", None),
        ({"peft_type": "LORA", "init_lora_weights": "mica"}, "lora", None),
        ({"peft_type": "PROMPT_TUNING"}, "prompt_tuning", "so no weights stand for it"),
        ({"peft_type": "LORA", "init_lora_weights": "lora_ga"}, "lora", "init_lora_weights is 'lo"),
        ({"peft_type": "LORA", "alora_invocation_tokens": [1]}, "lora", "an activated LoRA chang"),
    ],
)
def test_an_adapters_kind_and_whether_it_merges_are_read_from_its_own_config(
    config: dict[str, Any], kind: str, problem: str | None, fabricate: Fabricator
) -> None:
    hf_run(fabricate, "a", lora=True)
    file = fabricate.folder / "out/a/checkpoint-2/adapter_config.json"
    file.write_text(json.dumps({"base_model_name_or_path": "org/base"} | config))
    one = find(fabricate)["a"]
    assert (one.kind, one.base) == (kind, "org/base")
    assert problem is None if one.problem is None else str(problem) in one.problem


def test_the_revision_of_an_adapters_base_is_part_of_its_name(
    fabricate: Fabricator, fabricate_adapter: Any
) -> None:
    snapshot = f"/srv/hub/models--org--base/snapshots/{'a' * 40}"
    for name, base in {"pinned": "org/base", "path": snapshot}.items():
        output = fabricate.folder / "out" / name / "checkpoint-2"
        shutil.copytree(fabricate_adapter(base), output)
        config = json.loads((output / "adapter_config.json").read_text())
        (output / "adapter_config.json").write_text(json.dumps(config | {"revision": "v1"}))
        fabricate.run(name, params={"output_dir": str(output.parent)})
    bases = {name: one.base for name, one in find(fabricate).items()}
    assert bases == {"pinned": "org/base@v1", "path": f"org/base@{'a' * 40}"}


def test_a_diverged_loss_is_told_in_words_and_never_as_a_number(
    fabricate: Fabricator, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hf_run(fabricate, "a", metrics={"loss": [(1, float("nan"))], "eval_loss": [(1, 2.0)]})
    adoption = adopt("old", tracking_uri=fabricate.uri)
    one = adoption.adopted[0]
    print_adoption(adoption, adoption.rows(), None)
    assert (
        "a (FINISHED): diverged, its last loss is no number; merge its" in capsys.readouterr().out
    )
    write_recipe([one.found], tmp_path / "recipe.yaml")
    assert "diverged: loss is no number" in (tmp_path / "recipe.yaml").read_text()
    assert one.found.not_finite == ("loss",)
    model = fabricate.client.get_logged_model(one.model_id)
    assert model.tags["mergeops.not_finite"] == "loss"
    assert not model.metrics


def test_a_full_model_with_an_adapter_beside_it_is_not_adopted(fabricate: Fabricator) -> None:
    hf_run(fabricate, "a")
    hf_run(fabricate, "both")
    both = fabricate.folder / "out/both/checkpoint-2"
    shutil.copytree(fabricate.adapter, both, dirs_exist_ok=True)
    found = find(fabricate)
    assert found["a"].problem is None
    wanted = f"{both} holds a full model and an adapter beside it, and only one of them can be mea"
    assert str(found["both"].problem).startswith(wanted)
