"""What the tests of tracking and promotion share: a store made once and a whole trial."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mergeops.recipe.recipe import Recipe
from mergeops.recipe.settings import TrackingSpec
from mergeops.scores import ItemResult, Scores, TaskScore
from mergeops.sources.source import Source
from mergeops.store.connection import Tracking, connect
from mergeops.tracking import register_trial


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="session")
def template_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with nothing in it; making one takes eight seconds, copying it none."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    connect(TrackingSpec(uri=f"sqlite:///{path}", experiment="unused"))
    return path


@pytest.fixture
def spec(template_database: Path, tmp_path: Path) -> TrackingSpec:
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(template_database, path)
    return TrackingSpec(uri=f"sqlite:///{path}", experiment="merges", registered_model="skills")


@pytest.fixture
def tracking(spec: TrackingSpec) -> Tracking:
    return connect(spec)


def make_recipe(spec: TrackingSpec, **changes: Any) -> Recipe:
    raw: dict[str, Any] = {
        "method": {"name": "task_arithmetic"},
        "base": "hf://someone/tiny@abc",
        "sources": {
            "math": {"uri": "runs:/math", "weight": 0.5},
            "dates": {"uri": "/checkpoints/dates", "weight": 0.25},
        },
        "tracking": {
            "uri": spec.uri,
            "experiment": spec.experiment,
            "registered_model": spec.registered_model,
        },
    }
    return Recipe.from_dict(raw | changes)


def make_source(name: str, **facts: Any) -> Source:
    return Source(
        name=name,
        uri=facts.pop("uri", f"/checkpoints/{name}"),
        path=Path("/checkpoints") / name,
        sha256=facts.pop("sha256", sha256(f"weights of {name}")),
        **facts,
    )


def make_scores(
    name: str = "merge",
    part: str = "dev",
    *,
    right: Mapping[str, int] | None = None,
    n: int = 8,
    stderr: float | None = 0.125,
) -> Scores:
    """Scores on two tasks of ``n`` items, the first ``right[task]`` of them right."""
    tasks = {}
    for task, hits in (right or {"arithmetic": 6, "dates": 4}).items():
        items = tuple(
            ItemResult(
                doc_id=i,
                doc_hash=sha256(f"{task} {part} doc {i}"),
                prompt_hash=sha256(f"{task} {part} prompt {i}"),
                target_hash=sha256(f"{task} {part} target {i}"),
                value=float(i < hits),
            )
            for i in range(n)
        )
        tasks[task] = TaskScore(
            task, "acc", hits / n, stderr, items, "1", sha256(f"{task} {part} {n}")
        )
    settings = {"batch_size": "32", "dtype": "auto", "lm_eval": "0.4.13"}
    return Scores(sha256(f"weights of {name}"), part, tasks, settings)


@dataclasses.dataclass(frozen=True)
class Case:
    """Everything that a trial is made of."""

    tracking: Tracking
    recipe: Recipe
    sources: dict[str, Source]
    base: Source
    checkpoint: Path
    digest: str = sha256("plan")
    weights: str = sha256("weights of merge")

    def trial(self, **changes: Any) -> Any:
        from mergeops.tracking.trials import open_trial

        wanted = {
            "name": "task_arithmetic density=0.5",
            "plan": {"digest": self.digest},
            "plan_digest": self.digest,
            "tracking": self.tracking,
            **changes,
        }
        return open_trial(
            wanted.pop("tracking"),
            self.recipe,
            wanted.pop("plan_digest"),
            self.sources,
            self.base,
            **wanted,
        )

    def whole(self, **changes: Any) -> tuple[str, int]:
        """Everything a trial does, as the pipeline does it; gives run id and version."""
        with self.trial(**changes) as log:
            log.log_model(self.checkpoint, weights_sha256=self.weights)
            for name, source in {"base": self.base, **self.sources}.items():
                log.log_parent(source, make_scores(name))
            log.log_scores(make_scores())
            log.log_text("# leaderboard", "leaderboard.md")
            log.describe("a merge")
            version = register_trial(log)
        return log.run_id, version


@pytest.fixture(scope="session")
def checkpoint(tiny_llama: Callable[..., Path]) -> Path:
    """A small merged model with its tokenizer."""
    folder = tiny_llama(seed=3)
    (folder / "README.md").write_text("# A merge\n")
    (folder / "mergeops.json").write_text('{"plan_digest": "1"}\n')
    return folder


def make_case(tracking: Tracking, checkpoint: Path, *, finetunes: str = "finetunes") -> Case:
    """A case whose source ``math`` comes from a failed training run in another experiment."""
    client = tracking.client
    known = client.get_experiment_by_name(finetunes)
    experiment = known.experiment_id if known else client.create_experiment(finetunes)
    run_id = client.create_run(experiment, run_name="math lr=1e-4").info.run_id
    client.set_terminated(run_id, "FAILED")
    sources = {"math": make_source("math", run_id=run_id), "dates": make_source("dates")}
    base = make_source("base", uri="hf://someone/tiny@abc", revision="abc")
    return Case(tracking, make_recipe(tracking.spec), sources, base, checkpoint)


@pytest.fixture
def case(tracking: Tracking, checkpoint: Path) -> Case:
    return make_case(tracking, checkpoint)


@pytest.fixture
def fresh_case(template_database: Path, tmp_path: Path, checkpoint: Path) -> Callable[[], Case]:
    """A factory of cases, each in a store of its own."""

    def make() -> Case:
        path = Path(tempfile.mkdtemp(dir=tmp_path)) / "mlflow.db"
        shutil.copy(template_database, path)
        spec = TrackingSpec(uri=f"sqlite:///{path}", experiment="merges", registered_model="skills")
        return make_case(connect(spec), checkpoint)

    return make


@pytest.fixture(scope="session")
def three_versions(
    template_database: Path, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> Case:
    """Three versions of ``skills``, in a store to be copied."""
    path = tmp_path_factory.mktemp("three") / "mlflow.db"
    shutil.copy(template_database, path)
    spec = TrackingSpec(uri=f"sqlite:///{path}", experiment="merges", registered_model="skills")
    case = make_case(connect(spec), checkpoint)
    for digest in "123":
        case.whole(plan_digest=digest * 64, name=f"merge {digest}")
    return case


@pytest.fixture
def registered(three_versions: Case, tmp_path: Path) -> Case:
    """A copy of its own of the three versions."""
    original = three_versions.tracking
    shutil.copy(original.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    spec = dataclasses.replace(original.spec, uri=f"sqlite:///{tmp_path}/mlflow.db")
    return dataclasses.replace(three_versions, tracking=connect(spec))
