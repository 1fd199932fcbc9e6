"""Who is at the keyboard, as well as can be told."""

from __future__ import annotations

import getpass
import os


def current_user() -> str:
    """The name that changes are recorded under.

    The user that MLflow's server authenticates (MLFLOW_TRACKING_USERNAME, or MLflow's credentials
    file), else the name of the operating system's user. The server does not check the second, and
    mergeops does not check the first: both say who, and prove nothing, unless the server
    authenticates every writer.
    """
    from mlflow.utils.credentials import read_mlflow_creds

    named = read_mlflow_creds().username
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # Containers run under numbers that no passwd file names.
        return f"uid {os.getuid()}"
