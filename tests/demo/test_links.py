"""Links open the MLflow UI where the leaderboard is."""

from __future__ import annotations

import dataclasses

from demo import links
from mergeops.store.connection import Tracking


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
    assert tracking.run_page("ab") is None
    assert served.run_page("ab") == f"https://mlflow.example/#/experiments/7/runs/ab{mode}"
    assert "orderByKey=metrics.%60pooled%60&orderByAsc=false" in links.runs_page(served)
