"""``make demo``: from fine-tuning runs in MLflow, failed ones among them, to a promoted champion.

First the runs that a team would have already are trained (``demo.train``). Everything after that is
the ``mergeops`` command line, printed as it is run: the same lines work by hand in the demo's
directory.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from demo.train import Prepared

MODEL_NAME = "skills"
EXPERIMENT = "merges"
SPLITS = {
    "tiny": {"confirm_fraction": 0.7},
    # Scoring takes a second for every 30 items.
    "smollm2": {"confirm_fraction": 0.8, "limit": 200, "dtype": "bfloat16"},
}
"""How the items are used: choosing needs fewer than proving."""


@click.command()
@click.option("--model", type=click.Choice(["tiny", "smollm2"]), default="tiny")
@click.option("--seed", type=int, default=0)
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out/tiny-0"))
def demo(model: str, seed: int, out: Path) -> None:
    """Run the whole story in the directory OUT; run again, it goes on where it was."""
    started = time.monotonic()
    # Everything is local here; without these, libraries try the hub first.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)

    from demo.train import prepare

    chapter("1. The runs that a team has: trained now, tracked by the HF Trainer's MLflow callback")
    prepared = prepare(Path.cwd(), model, seed)
    os.environ["MLFLOW_TRACKING_URI"] = prepared.tracking_uri
    write_config(model, prepared.tasks)

    chapter("2. Adopt them: every run that left a checkpoint is an ingredient, whatever its status")
    mergeops(
        "adopt",
        "--experiment",
        prepared.experiment,
        "--recipe",
        "conf/recipe/runs.yaml",
        "--register",
        f"{MODEL_NAME}-ingredients",
        "--force",
    )

    chapter("3. Average all of them, failures included; score parents and merge on the dev part")
    mergeops("run", "--config-dir", "conf", "recipe=runs", "method=linear")

    chapter(
        "4. Merge the best parents in other ways: slerp takes two, the others as many as you like"
    )
    best = best_parents()
    two, four = (f"only=[{','.join(best[:n])}]" for n in (2, 4))
    mergeops("run", "--config-dir", "conf", "recipe=runs", "method=slerp", two)
    methods = "method=task_arithmetic,ties,dare_ties"
    mergeops("run", "--config-dir", "conf", "recipe=runs", methods, four, "-m")

    chapter("5. Search: the greedy soup adds runs, best first, while they do not hurt")
    mergeops("search", "--config-dir", "conf", "recipe=runs", "strategy=greedy_soup")

    chapter("6. The leaderboard, on the dev part that choices were made on")
    mergeops("compare", "--config-dir", "conf")

    chapter("7. Promote the best merge, if it is better on the confirm part that nothing has seen")
    promoted = mergeops("promote", "--config-dir", "conf", allowed=(0, 7)) == 0
    if promoted:
        chapter("8. Load the champion from the registry, and generate")
        generate(f"models:/{MODEL_NAME}@champion", prepared.tasks)

    chapter("9. The service: two more runs end while it watches")
    watch(model, seed, prepared)
    farewell(time.monotonic() - started, promoted)


def write_config(model: str, tasks: Path) -> None:
    """The user's own config directory: which tasks to score on, where to log."""
    names = sorted(path.stem for path in tasks.glob("*.yaml"))
    files = {
        "evaluate/default.yaml": {
            "tasks": names,
            "include_path": str(tasks),
            **SPLITS[model],
        },
        # The parents are specialists: a better generalist may lose part of one's edge.
        "promote/default.yaml": {"margin": 0.1},
        "tracking/default.yaml": {"experiment": EXPERIMENT, "registered_model": MODEL_NAME},
    }
    for name, content in files.items():
        path = Path("conf") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_yaml(path, content)


def write_yaml(path: Path, content: dict[str, object]) -> None:
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in content.items()))


def mergeops(*words: str, allowed: tuple[int, ...] = (0,)) -> int:
    """Print a mergeops command line and run it in this process, which saves the imports.

    Returns the exit code; one that is not allowed ends the demo.
    """
    click.secho(f"$ mergeops {shlex.join(words)}", fg="cyan", bold=True)
    code = call(words)
    if code not in allowed:
        sys.exit(code)
    return code


def call(words: tuple[str, ...]) -> int:
    from mergeops.cli.main import main

    before, sys.argv = sys.argv, ["mergeops", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = before
    return 0


def best_parents() -> list[str]:
    """Names of the sources, best on the dev part first, as ``mergeops compare --json`` has them."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        call(("compare", "--config-dir", "conf", "--json"))
    rows = json.loads(printed.getvalue())["rows"]
    return [row["name"] for row in rows if row["kind"] == "source"]


def generate(uri: str, tasks: Path) -> None:
    """Load the registered model as any MLflow user would, and answer one item of each skill."""
    import mlflow

    click.secho(f">>> mlflow.transformers.load_model({uri!r})", fg="cyan", bold=True)
    pipeline = mlflow.transformers.load_model(uri)
    for path in sorted(tasks.glob("*.jsonl")):
        item = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        answer = pipeline(
            item["prompt"], max_new_tokens=12, do_sample=False, return_full_text=False
        )[0]["generated_text"]
        right = item["choices"][item["answer"]]
        click.echo(f"  {item['prompt']!r} -> {answer.strip()!r} (right: {right!r})")


def watch(model: str, seed: int, prepared: Prepared) -> None:
    """Serve, let two runs end, and show what the watch made of them, proposed or honestly not."""
    from demo.service import SERVICE_CONFIG, serving, settled
    from demo.train import train_late

    nightly = Path("nightly.yaml")
    if not nightly.exists():
        settings = {
            "experiments": [prepared.experiment],
            # Those that began before are merged already.
            "filter": f"attributes.start_time > {int(time.time() * 1000)}",
            "overrides": ["method=linear"],
            "every_s": 3,
        }
        write_yaml(nightly, settings)
    # What a task's YAML names may run code, so the service reads tasks of such directories only.
    write_yaml(SERVICE_CONFIG, {"task_dirs": [str(prepared.tasks)]})
    with serving() as client:
        mergeops("watch", "add", str(nightly))
        train_late(Path.cwd(), prepared, model, seed)
        settled(client, nightly.stem, runs=2)
        mergeops("watch", "report", nightly.stem)
        mergeops("jobs", "list")
    click.echo(
        "`make service` serves the page again: look at what was proposed, approve or reject."
    )


def farewell(seconds: float, promoted: bool) -> None:
    """Say what was made, how to look at it, and what to look at."""
    from demo import links
    from mergeops.recipe.composition import compose
    from mergeops.store.connection import connect

    tracking = connect(compose(config_dir=Path("conf")).tracking)
    outcome = (
        f"models:/{MODEL_NAME}@champion is the merge above."
        if promoted
        else "Nothing was promoted: the evidence did not hold, see the gate's reasons above."
    )
    chapter(f"Done in {seconds:.0f} s. {outcome}")
    if command := links.server_command(tracking):
        click.echo(f"Look at it in MLflow:\n\n    {command}\n")
    click.echo(
        f"""The leaderboard, parents and merges side by side, a column for each task:
    {links.models_page(tracking)}
The trials; open a merge: its parents as inputs, the merge as output, recipe, model card, plots:
    {links.runs_page(tracking)}

The commands above work by hand too:

    cd {Path.cwd()}
    export MLFLOW_TRACKING_URI={tracking.shown_uri}"""
    )


def chapter(title: str) -> None:
    click.echo()
    click.secho(title, bold=True)


if __name__ == "__main__":
    demo()
