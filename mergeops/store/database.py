"""An sqlite file that MLflow may open: whole, readable and of this MLflow, or refused in one line.

MLflow makes a database with tens of migrations that sqlite commits one by one, and tries again for
minutes to open what it cannot read. So a database is made under another name and gets its own when
it is finished; and what lies there already is looked at first.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mergeops.checkpoint import alone, sync_directory, sync_file
from mergeops.errors import AwayError, TrackingError

SQLITE = "sqlite:///"
MAKING_TAKES_S = 120
"""After this many seconds another process that makes the database is taken for stopped."""
WRITTEN_LATELY_S = 5


@dataclass(frozen=True)
class _Contents:
    tables: frozenset[str]
    revision: str
    """Of the schema, as alembic names it; empty where there is none."""
    has_experiments: bool


def database_file(uri: str) -> Path:
    """The file of an ``sqlite:///`` URI, without the options after its question mark."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def ready(uri: str, timeout_s: int) -> None:
    """Make the database of an sqlite URI where its file does not exist; else check that it is one.

    A process that is killed while it makes one leaves none, and the next makes it anew.

    Args:
        uri: of a tracking server or registry; of other schemes there is nothing to do.
        timeout_s: how long another program may keep the database locked.

    Raises:
        TrackingError: it cannot be read, is no MLflow database, was never finished, or is another
            version's.
    """
    if not uri.startswith(SQLITE) or str(database_file(uri)) == ":memory:":
        return
    path = Path(os.path.realpath(database_file(uri)))
    try:
        with _making(path) as directory:
            if not os.path.lexists(path):
                _make(path, directory)
    except OSError as error:
        raise TrackingError(f"{path} cannot be made: {error.strerror}") from error
    examine(path, timeout_s)


def examine(path: Path, timeout_s: int) -> None:
    """Check a file that MLflow is to open, and change nothing.

    Raises:
        TrackingError: see ``ready``.
    """
    contents, give_up = _contents(path, timeout_s), time.monotonic() + MAKING_TAKES_S
    while not (is_whole := _is_whole(contents)) and _is_being_written(path):
        # An MLflow server that starts now makes its database as slowly.
        if time.monotonic() > give_up:
            break
        time.sleep(0.5)
        contents = _contents(path, timeout_s)
    if is_whole:
        return
    known = _tables_of_mlflow() | {"alembic_version"}
    if contents.tables and not contents.tables & known:
        some = ", ".join(sorted(contents.tables)[:3])
        raise TrackingError(
            f"{path} is the database of another program (its tables: {some}); set tracking.uri to "
            "another file"
        )
    if not contents.has_experiments:
        raise TrackingError(
            f"{path} was never finished: the program that began to make it ended too early. It "
            "holds no runs; remove it, and the same command makes it anew"
        )
    raise TrackingError(
        f"{path} has schema {contents.revision or 'unknown'} of another version of MLflow; make a "
        f"copy of the file, then run `mlflow db upgrade {SQLITE}{path}`, or set tracking.uri to "
        "another file"
    )


def _is_whole(contents: _Contents) -> bool:
    has_all = _tables_of_mlflow() <= contents.tables
    # Where there are experiments and all tables, MLflow compares the revisions itself.
    return has_all and (contents.has_experiments or contents.revision in _newest_revisions())


def _is_being_written(path: Path) -> bool:
    journal = path.with_name(path.name + "-journal")
    times = [file.stat().st_mtime for file in (path, journal) if file.exists()]
    return 0 <= time.time() - max(times, default=0) < WRITTEN_LATELY_S


def _contents(path: Path, timeout_s: int) -> _Contents:
    try:
        if not path.is_file():
            kind = "a directory" if path.is_dir() else "no regular file"
            raise TrackingError(f"tracking.uri is {SQLITE}{path}, but that is {kind}")
        # A transaction that a killed process left open is undone by who may write.
        mode = "rw" if os.access(path, os.W_OK) else "ro"
        database = sqlite3.connect(f"{path.as_uri()}?mode={mode}", timeout=timeout_s, uri=True)
        try:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = frozenset(str(name) for (name,) in rows if not name.startswith("sqlite_"))
            revision, has_experiments = "", False
            if "alembic_version" in tables:
                found = database.execute("SELECT version_num FROM alembic_version").fetchone()
                revision = str(found[0]) if found else ""
            if "experiments" in tables:
                found = database.execute("SELECT 1 FROM experiments LIMIT 1").fetchone()
                has_experiments = found is not None
        finally:
            database.close()
    except (sqlite3.Error, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if "locked" in str(reason):
            raise AwayError(
                f"{path} is kept locked by another program for {timeout_s} s; end it, then run "
                "the same command again"
            ) from error
        raise TrackingError(
            f"{path} cannot be read as an MLflow database: {reason}; restore it from a copy, or "
            "set tracking.uri to another file"
        ) from error
    return _Contents(tables, revision, has_experiments)


def _tables_of_mlflow() -> frozenset[str]:
    import mlflow.store.db.utils  # noqa: F401 - its import fills the metadata
    from mlflow.store.db.base_sql_model import Base

    return frozenset(Base.metadata.tables)


def _newest_revisions() -> list[str]:
    import mlflow
    from alembic.script import ScriptDirectory

    folder = Path(mlflow.__file__).parent / "store" / "db_migrations"
    return list(ScriptDirectory(str(folder)).get_heads())


@contextmanager
def _making(path: Path) -> Iterator[Path]:
    """Have the directory in which this database is made to oneself; it is gone afterwards."""
    directory = path.with_name(f".{path.name}.making")
    with ExitStack() as held:
        if directory.exists() or not os.path.lexists(path):
            _enter(held, directory)
        yield directory


def _enter(held: ExitStack, directory: Path) -> None:
    give_up = time.monotonic() + MAKING_TAKES_S
    while time.monotonic() < give_up:
        directory.mkdir(exist_ok=True)
        try:
            held.enter_context(alone(directory))
        except FileNotFoundError:
            # Who was faster has finished, and removed it.
            continue
        except BlockingIOError:
            time.sleep(0.1)
            continue
        held.callback(shutil.rmtree, directory, ignore_errors=True)
        return
    raise TrackingError(
        f"another process is making the database in {directory}, and has not finished after "
        f"{MAKING_TAKES_S} s; end it, then run the same command again"
    )


def _make(path: Path, directory: Path) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    made = directory / "mlflow.db"
    for left in directory.iterdir():
        left.unlink()
    store = SqlAlchemyStore(f"{SQLITE}{made}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()
    sync_file(made)
    try:
        os.link(made, path)
    except FileExistsError:
        # An MLflow server that was started meanwhile made its own.
        return
    except OSError:
        # A file system without hard links.
        if not os.path.lexists(path):
            os.rename(made, path)
    sync_directory(path.parent)
