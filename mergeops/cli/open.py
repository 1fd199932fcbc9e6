"""The command that shows a page of MLflow in the browser."""

from __future__ import annotations

import click

from mergeops.cli.options import AS_JSON, CONFIG_DIR, OVERRIDES, URIS, Call, composed, options
from mergeops.errors import TrackingError
from mergeops.store import Tracking, connect, connect_to_server
from mergeops.tracking import find_registered_model, find_version


@click.command("open")
@click.argument("what", required=False, metavar="[URI or NAME]", shell_complete=URIS)
@OVERRIDES
@click.option("--print", "only_print", is_flag=True, help="Print the link; open no browser.")
@options(CONFIG_DIR, AS_JSON)
def open(call: Call, what: str | None, only_print: bool) -> None:
    """Open the page of MLflow: the leaderboard, a run, a registered model or one of its versions.

    URI is runs:/ID, models:/NAME/VERSION or models:/NAME@ALIAS; NAME is a registered model's.
    Without either it is the leaderboard of tracking.experiment.
    """
    words = call.overrides
    if what is not None and "=" in what:
        words, what = (what, *words), None
    recipe = composed(words, call.config_dir)
    if what is None:
        tracking = connect(recipe.tracking, create=False)
    else:
        tracking = connect_to_server(recipe.tracking)
    link = page_of(tracking, what)
    call.show({"page": link}, link)
    if not (only_print or call.as_json):
        click.launch(link)


def page_of(tracking: Tracking, what: str | None) -> str:
    """The link of what a user names.

    Raises:
        TrackingError: no server serves pages, or there is no such run or version.
    """
    if not tracking.uri.startswith("http"):
        raise TrackingError(
            f"the tracking store {tracking.shown_uri} is a database without a server; start one, "
            f"`mlflow server --backend-store-uri {tracking.shown_uri}`, and name it: "
            "tracking.uri=http://127.0.0.1:5000"
        )
    if what is None:
        link = tracking.experiment_page()
    elif what.startswith("runs:/"):
        run_id = what.removeprefix("runs:/").split("/")[0]
        run = tracking.client.get_run(run_id)
        link = tracking.run_page(run_id, experiment_id=run.info.experiment_id)
    else:
        link = _model_page(tracking, what.removeprefix("models:/"))
    assert link is not None, "a server was made sure of"
    return link


def _model_page(tracking: Tracking, named: str) -> str | None:
    if "@" in named:
        name, _, alias = named.partition("@")
        aliases = find_registered_model(tracking, name).aliases
        if alias not in aliases:
            known = ", ".join(sorted(aliases)) or "none"
            raise TrackingError(f"{name} has no alias {alias!r}; its aliases: {known}")
        return tracking.version_page(name, int(aliases[alias]))
    name, _, number = named.partition("/")
    if not number:
        return tracking.model_page(find_registered_model(tracking, name).name)
    if not number.isdecimal():
        raise TrackingError(f"models:/{named} names no version; write models:/NAME/3")
    find_version(tracking, name, int(number))
    return tracking.version_page(name, int(number))
