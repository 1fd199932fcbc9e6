"""The account that MLflow's server sees, and what it may do; nothing is changed to find out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mergeops.errors import AwayError, TrackingError
from mergeops.redact import redact
from mergeops.store.client import is_denied, no_patience, or_none
from mergeops.store.connection import Tracking
from mergeops.store.permissions import needed

CURRENT_USER = "/api/2.0/mlflow/users/current"
NO_VERSION = "999999999"
"""A version that no registered model has: setting an alias to it is refused, and before that
whoever may not set one."""
NO_KEY = "../no-key"
"""No tag may be called so."""


@dataclass(frozen=True)
class Account:
    """Who asks, as the server sees it."""

    name: str
    is_admin: bool
    rights: tuple[tuple[str, bool, str], ...]
    """What, whether the account may do it, and the permission that it takes."""


def account(tracking: Tracking) -> Account | None:
    """The account of a server with MLflow's own accounts, and what it may do there.

    Asks for what the server refuses in any case, for one reason or for the other: a tag without a
    possible name, an alias of a version that is not there.

    Returns:
        None for a database, and for a server that does not say who asks.
    """
    with no_patience(tracking.spec.timeout_s):
        user = _current_user(tracking)
        if user is None:
            return None
        name, is_admin = user
        return Account(name, is_admin, tuple(_rights(tracking)))


def check_may_promote(tracking: Tracking, name: str) -> None:
    """Refuse an account that may not move aliases, before anything is scored for it.

    Raises:
        TrackingError: says which permission it lacks.
    """
    if tracking.uri.startswith("http"):
        try:
            tracking.client.set_registered_model_alias(name, "champion", NO_VERSION)
        except TrackingError as error:
            if is_denied(error):
                raise


def account_of(uri: str, user: str, password: str, timeout_s: int) -> tuple[str, bool] | None:
    """The account that a server knows by a name and a password, and whether it administrates.

    Args:
        uri: http(s) URI of the server.
        user, password: of whoever asks; those of this process are not used.
        timeout_s: of the answer.

    Returns:
        None where the server takes them for nobody's.

    Raises:
        TrackingError: the server does not answer, or has no accounts.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils import credentials, rest_utils

    who: Any = credentials.get_default_host_creds  # MLflow gives them no types
    ask: Any = rest_utils.http_request
    parts = urlsplit(uri)
    host = who(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
    host.username, host.password = user, password
    host.token = host.auth = host.aws_sigv4 = None
    try:
        answer = ask(
            host,
            CURRENT_USER,
            "GET",
            max_retries=0,
            timeout=timeout_s,
            raise_on_status=False,
            allow_redirects=False,
        )
        if answer.status_code in (401, 403):
            return None
        return _user_in(answer)
    except MlflowException as error:
        raise AwayError(f"cannot reach the MLflow server at {redact(uri)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrackingError(
            f"the MLflow server at {redact(uri)} does not say who asks; it has accounts where it "
            "is started with --app-name basic-auth"
        ) from error


def _current_user(tracking: Tracking) -> tuple[str, bool] | None:
    from mlflow.utils import credentials, rest_utils

    ask: Any = rest_utils.http_request  # MLflow gives it no types
    who: Any = credentials.get_default_host_creds
    if not tracking.uri.startswith("http"):
        return None
    try:
        return _user_in(ask(who(tracking.uri), CURRENT_USER, "GET"))
    # A server without accounts has no such page, and proxies answer with pages of their own.
    except Exception:
        return None


def _user_in(answer: Any) -> tuple[str, bool]:
    user = answer.json()["user"]
    return str(user["username"]), bool(user["is_admin"])


def _rights(tracking: Tracking) -> list[tuple[str, bool, str]]:
    client, spec = tracking.client, tracking.spec
    rights = []

    def ask(what: str, step: str, probe: Callable[[], object]) -> None:
        rights.append((what, _is_allowed(probe), needed(step)))

    name, model = spec.experiment, spec.registered_model
    if _is_there(lambda: client.get_experiment_by_name(name)):

        def tag_experiment() -> None:
            experiment = client.get_experiment_by_name(name)
            client.set_experiment_tag(experiment.experiment_id if experiment else "", NO_KEY, "")

        ask(f"log to experiment {name!r}", "set experiment tag", tag_experiment)
    if _is_there(lambda: client.get_registered_model(model)):
        ask(
            f"register versions of {model!r} and move its aliases",
            "set registered model alias",
            lambda: client.set_registered_model_alias(model, "champion", NO_VERSION),
        )
    ask(
        "make experiments and registered models",
        "create registered model",
        lambda: client.create_registered_model("/"),
    )
    return rights


def _is_there(find: Callable[[], object]) -> bool:
    try:
        return or_none(find) is not None
    except TrackingError as error:
        if not is_denied(error):
            raise
        # It may be there, and be hidden from this account: then no step with it is allowed either.
        return True


def _is_allowed(probe: Callable[[], object]) -> bool:
    try:
        probe()
    except AwayError as error:
        if is_denied(error):
            return False
        raise
    except TrackingError:
        # Refused for what was asked, not for who asked.
        return True
    return True
