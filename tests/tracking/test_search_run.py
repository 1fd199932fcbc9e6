"""A search is one run, continued when the same search runs again."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tracking_case import Case, make_scores

from mergeops.store import own_tags
from mergeops.tracking import search_run

DIGEST = "5" * 64
SETTINGS: dict[str, object] = {"strategy": "grid", "grid": {"method.density": [0.2, 0.5]}}


def test_the_same_search_is_the_same_run(case: Case, tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        with search_run(case.tracking, "grid", DIGEST, SETTINGS) as search:
            search.log_json([{"step": 1}], "steps.json")
            search.log_text("# steps", "steps.md")
            search.describe("a **grid**")
            search.log_best("b" * 32, make_scores())
            ids.append(search.run_id)
    assert ids[0] == ids[1]
    client = case.tracking.client
    run = client.get_run(ids[0])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"strategy": "grid", "grid.method.density": "[0.2, 0.5]"}
    # 10 of 16 items are right; Wilson's interval.
    assert run.data.metrics == {
        "best/pooled": 0.625,
        "best/pooled_low": pytest.approx(0.386408, abs=1e-5),
        "best/pooled_high": pytest.approx(0.815190, abs=1e-5),
    }
    assert len(client.get_metric_history(ids[0], "best/pooled")) == 1
    assert own_tags(run.data.tags)["mergeops.best_run_id"] == "b" * 32
    assert run.data.tags["mlflow.note.content"] == "a **grid**"
    path = Path(client.download_artifacts(ids[0], "steps.md", str(tmp_path)))
    assert path.read_text() == "# steps"


def test_the_curves_grow_with_each_trial_and_a_search_that_goes_on_doubles_nothing(
    case: Case,
) -> None:
    client = case.tracking.client

    def curves(run_id: str) -> list[list[tuple[int, float]]]:
        names = ("steps/trial", "steps/best")
        return [[(m.step, m.value) for m in client.get_metric_history(run_id, n)] for n in names]

    with (
        pytest.raises(KeyboardInterrupt),
        search_run(case.tracking, "grid", DIGEST, SETTINGS) as search,
    ):
        search.log_trial(0.5)
        assert curves(search.run_id) == [[(1, 0.5)], [(1, 0.5)]]
        search.log_trial(0.25)
        raise KeyboardInterrupt
    with search_run(case.tracking, "grid", DIGEST, SETTINGS) as again:
        for score in (0.5, 0.25, 0.75):
            again.log_trial(score)
    assert again.run_id == search.run_id
    trials, best = curves(again.run_id)
    assert trials == [(1, 0.5), (2, 0.25), (3, 0.75)]
    assert best == [(1, 0.5), (2, 0.5), (3, 0.75)]


def test_figures_of_a_search_are_images(case: Case, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([0, 1])
    with search_run(case.tracking, "grid", DIGEST, SETTINGS) as search:
        search.log_figure(figure, "plots/steps.png")
    path = case.tracking.client.download_artifacts(search.run_id, "plots", str(tmp_path))
    assert (Path(path) / "steps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_search_that_stops_says_how(case: Case, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), search_run(case.tracking, "grid", DIGEST, SETTINGS) as search:
        raise error
    client = case.tracking.client
    assert client.get_run(search.run_id).info.status == status
    with search_run(case.tracking, "grid", DIGEST, SETTINGS) as again:
        assert client.get_run(again.run_id).info.status == "RUNNING"
    assert again.run_id == search.run_id
