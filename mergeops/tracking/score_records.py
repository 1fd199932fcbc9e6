"""Scores for other runs and machines: what one has asked, no other asks again.

One experiment of its own holds one run for each model, named by its weights' digest; the records
are its artifacts, and a tag for each says that it is whole and in which way it was asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mergeops.store import Tracking, with_tags

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPERIMENT = "mergeops scores"
ABOUT = (
    "Nothing to look at: mergeops keeps here what each model has answered, one run a model, so "
    "that no other machine asks it again. The scores themselves are on the runs and models of your "
    "experiments. Deleting this experiment costs nothing but the time to ask again."
)
_FOLDER = "records"


class ScoreRecords:
    """Records of scores in the tracking store, by the sha256 of what they are about."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    def find(self, weights_sha256: str, keys: Collection[str]) -> dict[str, str]:
        """The text of each record that is there.

        Raises:
            TrackingError: the store cannot be read.
        """
        texts: dict[str, str] = {}
        for run in self._kept(weights_sha256):
            new = [key for key in keys if key not in texts and _tag(key) in run.data.tags]
            texts |= self._texts(run, new)
        return texts

    def alike(
        self, weights_sha256: str, ways: Collection[str], known: Collection[str]
    ) -> dict[str, str]:
        """The text of each record that was asked in one of these ways, by its key.

        Args:
            known: keys of records that need not be fetched.

        Raises:
            TrackingError: the store cannot be read.
        """
        texts: dict[str, str] = {}
        for run in self._kept(weights_sha256):
            tags = [value.partition(" ") for value in run.data.tags.values()]
            alike = [key for way, _, key in tags if key and way in ways]
            texts |= self._texts(run, [key for key in alike if key not in {*known, *texts}])
        return texts

    def keep(
        self, weights_sha256: str, records: Mapping[str, str], ways: Mapping[str, str]
    ) -> None:
        """Add records; the tags come last, so what is half written is not found.

        Args:
            ways: key -> how the record's items were asked.

        Raises:
            TrackingError: the store cannot be written.
        """
        from mlflow.entities import RunTag

        client = self._tracking.client
        experiment_id = self._tracking.experiment(EXPERIMENT, ABOUT)
        runs = self._runs(experiment_id, weights_sha256)
        if runs:
            run_id = str(runs[0].info.run_id)
        else:
            name = f"answers of weights {weights_sha256[:12]}"
            tags = {"mergeops.weights_sha256": weights_sha256, "mergeops.role": "scores"}
            run_id = str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)
            client.set_terminated(run_id)
        with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
            for key, text in records.items():
                (Path(folder) / f"{key}.json").write_text(text, encoding="utf-8")
            client.log_artifacts(run_id, folder, _FOLDER)
        tags_of_records = [RunTag(_tag(key), f"{ways[key]} {key}") for key in records]
        client.log_batch(run_id, tags=tags_of_records)

    def _texts(self, run: Run, keys: Collection[str]) -> dict[str, str]:
        texts = {}
        with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
            for key in keys:
                name = f"{_FOLDER}/{key}.json"
                path = self._tracking.client.download_artifacts(run.info.run_id, name, folder)
                texts[key] = Path(path).read_text(encoding="utf-8")
        return texts

    def _kept(self, weights_sha256: str) -> list[Run]:
        """The runs that hold the model's records; none before the first was kept."""
        experiment = self._tracking.client.get_experiment_by_name(EXPERIMENT)
        return self._runs(str(experiment.experiment_id), weights_sha256) if experiment else []

    def _runs(self, experiment_id: str, weights_sha256: str) -> list[Run]:
        """Oldest first; two machines that began at once have made two."""
        wanted = with_tags(weights_sha256=weights_sha256)
        order = ["attributes.start_time ASC"]
        return list(self._tracking.client.search_runs([experiment_id], wanted, order_by=order))


def _tag(key: str) -> str:
    return f"mergeops.score.{key[:32]}"
