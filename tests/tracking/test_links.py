"""Links open the MLflow UI where the leaderboard is."""

from __future__ import annotations

import dataclasses

from mergeops.tracking import links
from mergeops.tracking.connection import Tracking


def test_an_embedded_store_comes_with_the_command_that_serves_it(tracking: Tracking) -> None:
    assert links.server_command(tracking) == (
        f"mlflow server --backend-store-uri {tracking.uri} --port 5000"
    )
    assert links.models_page(tracking) == (
        f"http://127.0.0.1:5000/#/experiments/{tracking.experiment_id}/models"
        "?workflowType=machine_learning"
    )


def test_a_server_is_linked_without_credentials(tracking: Tracking) -> None:
    served = dataclasses.replace(tracking, uri="https://me:pw@mlflow.example", experiment_id="7")
    assert links.server_command(served) is None
    mode = "?workflowType=machine_learning"
    assert links.run_page(served, "ab") == f"https://mlflow.example/#/experiments/7/runs/ab{mode}"
    assert links.run_page(served, "ab", "plots/a b.png") == (
        f"https://mlflow.example/#/experiments/7/runs/ab/artifacts/plots/a%20b.png{mode}"
    )
    assert links.version_page(served, "my model", 3) == (
        f"https://mlflow.example/#/models/my%20model/versions/3{mode}"
    )
    assert "orderByKey=metrics.%60pooled%60&orderByAsc=false" in links.runs_page(served)
