"""Shell completion, as the shells ask for it: by an environment variable, in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergeops.store import keep_seen, seen


def completed(folder: Path, shell: str, *words: str) -> list[str]:
    """What is offered for the last word; the shell's own columns are left out."""
    environment = {
        **os.environ,
        "_MERGEOPS_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(["mergeops", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", "from mergeops.cli.main import cli; cli(prog_name='mergeops')"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if shell == "zsh":
        # zsh takes a ":" for the end of the word where it is not marked.
        return [line.replace("\\:", ":") for line in lines[1::3]]
    return [line.partition(",")[2] for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "mine.yaml").write_text("# @package _global_\n")
    (tmp_path / "soup.yaml").write_text("method: linear\n")
    return tmp_path


def test_commands_are_offered(folder: Path) -> None:
    assert completed(folder, "zsh", "rol") == ["rollback"]


def test_methods_are_offered_behind_the_equals_sign(folder: Path) -> None:
    assert completed(folder, "zsh", "run", "method=slerp") == ["method=slerp"]
    assert "method=nuslerp" in completed(folder, "zsh", "run", "method=")
    # bash cuts words at "=", so the part behind it is a word of its own.
    assert completed(folder, "bash", "run", "method", "=", "sle") == ["slerp"]
    assert "slerp" in completed(folder, "bash", "run", "method", "=")
    keys = completed(
        folder, "bash", "run", "recipe", "=", "mine", "method", "=", "ties", "method.d"
    )
    assert keys == ["method.density="]


def test_recipes_of_the_config_directory_are_offered_beside_the_packaged_ones(
    folder: Path,
) -> None:
    offered = completed(folder, "zsh", "run", "--config-dir", "conf", "recipe=")
    assert {"recipe=mine", "recipe=soup"} <= set(offered)


def test_keys_words_strategies_and_recipe_files_are_offered(folder: Path) -> None:
    assert completed(folder, "zsh", "run", "dtype.save=b") == ["dtype.save=bfloat16"]
    assert completed(folder, "zsh", "search", "strategy=gri") == ["strategy=grid"]
    assert completed(folder, "zsh", "run", "evaluate.batch") == ["evaluate.batch_size="]
    assert completed(folder, "zsh", "run", "method=ties", "method.dens") == ["method.density="]
    assert completed(folder, "zsh", "run", "sou") == ["sources=", "soup.yaml"]


def test_runs_that_a_command_saw_are_offered_where_a_source_goes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    keep_seen(f"sqlite:///{folder}/mlflow.db", {"runs:/4f2c": "math (FAILED)"})
    keep_seen(f"sqlite:///{folder}/mlflow.db", {"models:/merged/1": "ties", "runs:/9b0d": "dates"})
    keep_seen("http://elsewhere:5000", {"runs:/7777": "another server's"})
    everything = ["models:/merged/1", "runs:/9b0d", "runs:/4f2c"]
    assert completed(folder, "zsh", "open", "") == everything
    assert completed(folder, "zsh", "lineage", "models:") == ["models:/merged/1"]
    assert completed(folder, "zsh", "run", "sources.a.uri=runs:/4") == ["sources.a.uri=runs:/4f2c"]
    server = "tracking.uri=http://elsewhere:5000"
    assert completed(folder, "zsh", "run", server, "base=") == ["base=runs:/7777"]
    # bash cuts words at "=" and at ":".
    assert completed(folder, "bash", "run", "base", "=", "ru") == ["runs:/9b0d", "runs:/4f2c"]
    assert completed(folder, "bash", "run", "base", "=", "runs", ":", "/4") == ["/4f2c"]
    assert completed(folder, "bash", "open", "runs", ":", "/4") == ["/4f2c"]
    assert (
        completed(folder, "bash", "lineage", "models", ":")
        == ["/merged/1"]
        == completed(folder, "bash", "lineage", "models", ":", "/")
    )


def test_what_was_seen_is_kept_for_the_newest_and_never_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for i in range(30):
        keep_seen(f"http://server-{i}", {f"runs:/{i}": "a"})
    assert seen("http://server-29") == {"runs:/29": "a"}
    assert seen("http://server-3") == {}
    keep_seen("http://server-29", {f"runs:/{n}": "b" for n in range(400)})
    assert len(seen("http://server-29")) == 300
    assert "server" not in (tmp_path / "mergeops" / "seen.json").read_text()
    (tmp_path / "mergeops" / "seen.json").write_text("[1]")
    assert seen("http://server-29") == {}
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    keep_seen("http://server-29", {"runs:/1": "a"})
