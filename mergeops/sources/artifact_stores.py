"""Directories of artifact stores as sources: s3://BUCKET/PATH and whatever else MLflow reads."""

from __future__ import annotations

from mergeops.sources.contents import Location
from mergeops.sources.find_context import FindContext
from mergeops.sources.schemes import STORE, Scheme
from mergeops.sources.training_runs import open_remote

PROXIED = "mlflow-artifacts:/"


@Scheme(
    (STORE, PROXIED),
    hints=("a directory in a store that MLflow reads, such as s3://BUCKET/PATH",),
    is_place=True,
)
def find(uri: str, context: FindContext) -> Location:
    """The directory, whatever it holds.

    Raises:
        SourceError: MLflow does not know the scheme, or the store cannot be read.
        TrackingError: the server that the store is behind cannot be reached.
    """
    # Only the server knows where mlflow-artifacts: are; a bucket needs none.
    is_proxied = uri.startswith(PROXIED)
    directory = context.training_runs().open(uri) if is_proxied else open_remote(uri)
    return Location.at(directory)
