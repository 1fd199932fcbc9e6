"""Hydra composition: overrides, groups, the user's directory, recipe files, sweeps."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mergeops.errors import ConfigError
from mergeops.recipe.composition import compose, expand_sweep

TWO = ["sources.math.uri=a", "sources.code.uri=b"]


def test_the_defaults_are_a_recipe_but_for_the_sources() -> None:
    recipe = compose()
    assert recipe.method.name == "linear"
    assert recipe.sources == {}
    assert recipe.tracking.registered_model == "merged"


def test_overrides_reach_every_level_without_a_plus_sign() -> None:
    recipe = compose(
        [
            *TWO,
            "base=models:/llama/3",
            "method=ties",
            "method.density=0.3",
            "sources.math.weight=0.4",
            "evaluate.tasks=[arith,dates]",
            "evaluate.metrics.arith=acc_norm",
            "seed=7",
        ]
    )
    assert recipe.base == "models:/llama/3"
    assert recipe.method.name == "ties"
    assert recipe.method.parameters.density == 0.3
    assert recipe.sources["math"].parameters == {"weight": 0.4}
    assert recipe.sources["code"].parameters == {}
    assert recipe.evaluate.tasks == ("arith", "dates")
    assert recipe.evaluate.metrics == {"arith": "acc_norm"}
    assert recipe.seed == 7


@pytest.mark.parametrize(
    "uri", ["runs:/4f2c/checkpoint-40", "models:/m@champion", "models:/m/3", "hf://o/n@rev", "/a/b"]
)
def test_source_uris_need_no_quotes(uri: str) -> None:
    assert compose([f"sources.a.uri={uri}"]).sources["a"].uri == uri


def test_a_source_can_be_deleted_and_others_selected() -> None:
    recipe_file = ["sources.a.uri=a", "sources.b.uri=b", "sources.c.uri=c"]
    assert list(compose([*recipe_file, "only=[c,a]"]).sources) == ["c", "a"]
    with pytest.raises(ConfigError, match="only: source d; .*allowed: a, b, c"):
        compose([*recipe_file, "only=[d]"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["methd=ties"], "unknown key methd; did you mean 'method'"),
        (
            ["method=tise"],
            "^method is 'tise'; did you mean 'ties'\\? there are: .*ties",
        ),
        (["hydra.run.dir=x"], "Hydra's own programs.*instead: output.dir is where work is kept"),
        (["hydra/launcher=joblib"], "instead: trials run one after the other"),
        (["hydra.job.chdir=true"], "nothing stands in its place"),
        (["method=ties", "method.densty=0.3"], "unknown key method.densty; did you mean 'density'"),
        (["method=ties", "method.density=abc"], "method.density is 'abc'; it takes a number"),
        (["method=ties", "method.density=2"], "density.*2"),
        (
            ["sources.a.uri=x", "sources.a.wieght=1"],
            "sources.a.wieght of linear; did you mean 'weig",
        ),
        (["sources.a.weight=1"], "sources.a is .*; it needs a uri"),
        (["sources.base.uri=x"], "'base' is no source name"),
        (
            ["sources.a.uri=x", "sources.a.weight=heavy"],
            "sources.a.weight is 'heavy'; it takes a nu",
        ),
        (["tokenizer.source=b"], "tokenizer.source is 'b'; allowed: same, union, base"),
        (["recipe=nope"], "Could not find 'recipe/nope'.*soup"),
        (["evaluate.batch_size=0"], "evaluate.batch_size is 0; allowed: at least 1"),
        (["promote.against=[parent]"], r"promote.against\[0\] is 'parent'; allowed: best_parent"),
        (["tracking.registered_model=a/b"], "registered_model is 'a/b'; MLflow allows"),
        (["dtype.save=fp8"], "dtype.save is 'fp8'; allowed: auto, bfloat16"),
        (["method=ties,linear"], "lists several values; add -m"),
        (["method"], "override 'method' cannot be read.*KEY=VALUE"),
        (["base=${nowhere}"], "nowhere"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        compose(overrides)
    assert "\n" not in str(caught.value)


def test_files_of_the_users_directory_win_over_the_packaged_ones(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(
        "# @package _global_\nbase: b\nsources: {x: {uri: u, weight: 2}}\n"
    )
    (tmp_path / "recipe" / "soup.yaml").write_text("# @package _global_\nseed: 99\n")
    mine = compose(["recipe=mine"], config_dir=tmp_path)
    assert mine.sources["x"].parameters == {"weight": 2.0}
    assert compose(["recipe=soup"], config_dir=tmp_path).seed == 99
    assert compose(["recipe=soup"]).seed == 0


def test_a_config_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config-dir .*gone is not a directory"):
        compose([], config_dir=tmp_path / "gone")


def test_a_recipe_file_is_layered_below_the_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "base: b\nseed: 5\nmethod: {name: ties, density: 0.4}\n"
        "sources: {x: {uri: u}, y: {uri: v}}\n"
    )
    recipe = compose(["seed=6", "method.normalize=false"], recipe_file=path)
    assert (recipe.method.name, recipe.method.parameters.density) == ("ties", 0.4)
    assert recipe.method.parameters.normalize is False
    assert recipe.seed == 6


def test_another_method_on_the_command_line_replaces_the_files_method(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("method: {name: ties, density: 0.4}\nsources: {x: {uri: u}}\n")
    recipe = compose(["method=linear", "method.normalize=false"], recipe_file=path)
    assert recipe.method.name == "linear"
    assert recipe.method.parameters.normalize is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds no mapping"),
        ("a: [", "is not YAML"),
        ("merge_method: ties\nmodels: []", "r.yaml, line 2: models is empty"),
        ("seed: 1\nmodels: []", "r.yaml, line 2: models is a key of mergekit's.*no merge_method"),
        ("seed: 1\nbase: b\nseed: 2", "r.yaml, line 3: seed is given twice, first in line 1"),
        (
            "sources:\n  x: {uri: u}\n  x: {uri: v}",
            "r.yaml, line 3: sources.x is given twice, first in line 2",
        ),
        ("seed: 1\nsources: [u, v]", "r.yaml, line 2: sources is a list; it takes a mapping"),
        ("method: [ties]", "r.yaml, line 1: method is a list; it takes a mapping"),
        ("output: here", "r.yaml, line 1: output is 'here'; it takes a mapping"),
        ("rules: {match: x}", "r.yaml, line 1: rules is a mapping; it takes a list"),
        ("seed: 1\n---\nseed: 2", "r.yaml, line 3: begins a second of 2 documents"),
        ("sources: {x: {uri: u, weight: .nan}}", "sources.x.weight is nan; it takes a finite num"),
        ("sources: {x: {uri: u, weight: [0, .inf]}}", r"x.weight is \[0, inf\]; a gradient is a"),
        ("sources: {x: {uri: u}}\ntypo: 1", "unknown key typo"),
    ],
)
def test_a_broken_recipe_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        compose([], recipe_file=path)


def test_a_missing_recipe_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone.yaml does not exist"):
        compose([], recipe_file=tmp_path / "gone.yaml")


def test_a_sweep_expands_to_every_combination() -> None:
    jobs = expand_sweep(["method=linear,ties", "seed=1,2", "base=b"])
    assert jobs == [
        ["method=linear", "seed=1", "base=b"],
        ["method=linear", "seed=2", "base=b"],
        ["method=ties", "seed=1", "base=b"],
        ["method=ties", "seed=2", "base=b"],
    ]


@pytest.mark.parametrize("name", ["soup", "skills_ties", "gradient_slerp"])
def test_each_shipped_recipe_composes_once_its_sources_are_named(name: str) -> None:
    recipe = compose([f"recipe={name}", "base=b", "sources.a.uri=x", "sources.b.uri=y"])
    assert list(recipe.sources) == ["a", "b"]


def test_many_threads_may_compose_at_once() -> None:
    failures: list[BaseException] = []

    def work(i: int) -> None:
        try:
            assert compose([f"seed={i}"]).seed == i
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_recipe_survives_the_round_trip_through_plain_types() -> None:
    from mergeops.recipe.recipe import Recipe

    recipe = compose(
        ["recipe=gradient_slerp", "sources.a.uri=x", "sources.b.uri=y", "path_map={/old:/new}"]
    )
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_scoring_and_tracking_settings_do_not_change_what_decides_the_weights() -> None:
    one = compose([*TWO, "evaluate.limit=5", "tracking.experiment=a", "output.dir=x"])
    other = compose([*TWO])
    assert one.weights_dict() == other.weights_dict()
    assert one.sha256() != other.sha256()
    assert compose([*TWO, "seed=1"]).weights_dict() != other.weights_dict()


def test_numbers_of_a_recipe_file_are_those_of_the_command_line(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-1 for a text, Hydra and YAML 1.2 for a number; what is quoted is a text."""
    path = tmp_path / "r.yaml"
    path.write_text("sources: {x: {uri: '1e3', weight: 1e-1}, y: {uri: v, weight: [1E0, 2.5e+1]}}")
    sources = compose([], recipe_file=path).sources
    assert sources["x"].uri == "1e3"
    assert sources["x"].parameters == {"weight": 0.1}
    assert sources["y"].parameters == {"weight": (1.0, 25.0)}
    said = compose(["sources.x.uri=a", "sources.x.weight=1e-1"]).sources["x"]
    assert said.parameters == sources["x"].parameters


def test_a_recipe_file_may_stand_among_the_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_text("seed: 5\nsources: {x: {uri: u}}\n")
    assert compose(["seed=6", str(path)]) == compose(["seed=6"], recipe_file=path)
    jobs = expand_sweep([str(path), "seed=1,2"])
    assert jobs == [[str(path), "seed=1"], [str(path), "seed=2"]]
    with pytest.raises(ConfigError, match="recipe file .*gone.yml does not exist"):
        compose([str(tmp_path / "gone.yml")])
    with pytest.raises(ConfigError, match="a.yml, b.yaml: only one recipe file can be given"):
        compose(["a.yml", "b.yaml"])
    with pytest.raises(ConfigError, match="a.yml: only one recipe file can be given"):
        compose(["a.yml"], recipe_file=path)


def test_a_reference_to_another_key_that_cannot_be_read_is_refused_with_its_key(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: of-${[]}\nsources: {x: {uri: u}}\n")
    with pytest.raises(ConfigError, match=r"^name: mismatched input '\]'"):
        compose([], recipe_file=path)


def test_a_recipe_that_hydra_cannot_layer_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("base: b\nsources: {x: {uri: u}}\n")
    with pytest.raises(ConfigError, match="recipe=mine names must begin with the line '# @package"):
        compose(["recipe=mine"], config_dir=tmp_path)
    (tmp_path / "recipe" / "mine.yaml").rename(tmp_path / "recipe" / "mine.yml")
    with pytest.raises(ConfigError, match="mine.yml is there, but Hydra reads .yaml only: rename"):
        compose(["recipe=mine"], config_dir=tmp_path)


NATIVE = "method: linear\nbase: b\nsources: {a: {uri: u}}\nseed: 7\n"


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:SECRET}",
        "${oc.env:SECRET,none}",
        "x ${ oc.env : SECRET } y",
        "${oc.decode:${oc.env:SECRET}}",
        "${${a}:SECRET}",
        "${oc.${seed}:SECRET}",
        "\\\\${oc.env:SECRET}",
        "${env:SECRET}",
        "${hydra:runtime.cwd}",
        "${oc.env:SECRET",
    ],
)
@pytest.mark.parametrize("where", ["tracking: {{experiment: {}}}", "dtype: {{'{}': x}}"])
def test_a_recipe_file_cannot_read_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, where: str
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    file = tmp_path / "recipe.yaml"
    line = where.format(f"'{value}'" if "experiment" in where else value)
    file.write_text(f"{NATIVE}{line}\n")
    with pytest.raises(ConfigError, match="may refer to its own keys only") as caught:
        compose(recipe_file=file)
    assert f"{file}, line 5: " in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_recipe_file_may_refer_to_its_own_keys_and_quote_what_looks_like_more(
    tmp_path: Path,
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"{NATIVE}tracking: {{experiment: 'of ${{seed}}'}}\n"
        "path_map: {a: '\\${oc.env:HOME}', b: '${path_map.a}'}\n"
    )
    recipe = compose(recipe_file=file)
    assert recipe.tracking.experiment == "of 7"
    assert recipe.path_map["a"] == "${oc.env:HOME}"


def test_the_command_line_may_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM", "vision")
    assert compose(["tracking.experiment=${oc.env:TEAM}"]).tracking.experiment == "vision"


def test_a_mergekit_config_cannot_read_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    file = tmp_path / "config.yml"
    file.write_text("merge_method: linear\nmodels:\n- model: a\n- model: '${oc.env:SECRET}'\n")
    with pytest.raises(ConfigError, match=r"config.yml, line 4: models\[1\].model is .*own keys"):
        compose(recipe_file=file)


def test_what_yaml_takes_for_a_date_is_a_text(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{NATIVE}name: 2024-01-01\nevaluate: {{tasks: [2024-01-02 03:04:05]}}\n")
    recipe = compose(recipe_file=file)
    assert (recipe.name, recipe.evaluate.tasks) == ("2024-01-01", ("2024-01-02 03:04:05",))
