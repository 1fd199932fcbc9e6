"""Hooks: a command and a signed webhook are told of a promotion, at least once, after it is done.

What is to be told is written down with the change itself (tag ``mergeops.hook.ID``), so it is not
lost when mergeops is killed. A hook that fails is recorded there, and the next command that changes
the model tries it again. The promotion stands whatever the hooks do. A receiver recognises repeats
by the id.

The webhook's signature is, in the header ``X-Mergeops-Signature``, ``v1=`` and the hex HMAC-SHA256,
keyed with the secret, of the timestamp (header ``X-Mergeops-Timestamp``, Unix seconds), a dot, and
the body.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mergeops.errors import ConfigError, TrackingError
from mergeops.progress import Progress
from mergeops.promotion.audit import Change, now
from mergeops.promotion.changes import HOOK
from mergeops.recipe import HooksSpec, Recipe
from mergeops.redact import redact
from mergeops.schema import build
from mergeops.store import (
    NoRedirects,
    Tracking,
    connect_to_server,
    hidden,
    only_one,
    own_tags,
)
from mergeops.tracking import find_registered_model
from mergeops.version import __version__

COMMAND, WEBHOOK = "command", "webhook"


class _HookError(Exception):
    """One try failed; ``may_pass`` says whether another may help."""

    def __init__(self, message: str, *, may_pass: bool = True) -> None:
        super().__init__(message)
        self.may_pass = may_pass


@dataclass(frozen=True)
class Delivery:
    """What is to be told of one change, and what became of it."""

    change: Change
    pending: tuple[str, ...]
    done: Mapping[str, str] = field(default_factory=dict)
    """Hook -> when it was told."""
    attempts: int = 0
    error: str | None = None
    """Of the last try that failed."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"change": self.change.to_dict(), "pending": list(self.pending)}


def configured(spec: HooksSpec) -> tuple[str, ...]:
    """The hooks of a config, checked before anything is promoted.

    Raises:
        ConfigError: a webhook without its secret in the environment.
    """
    names = _named(spec)
    if WEBHOOK in names and not os.environ.get(spec.secret_env):
        raise ConfigError(
            f"promote.hooks.webhook needs a secret to sign with: set {spec.secret_env} in the "
            "environment, or name another variable by promote.hooks.secret_env"
        )
    return names


def deliveries(tracking: Tracking, name: str) -> list[Delivery]:
    """What was told and what is still to be told, oldest first."""
    tags = own_tags(find_registered_model(tracking, name).tags)
    recorded = [json.loads(tags[tag]) for tag in sorted(tags) if tag.startswith(HOOK)]
    return [
        build(Delivery, raw, "hook.", {"change": Change.from_dict(raw.pop("change"))})
        for raw in recorded
    ]


def deliver(
    tracking: Tracking, name: str, spec: HooksSpec, *, sleep: Callable[[float], None] = time.sleep
) -> list[str]:
    """Tell what is still to be told, as far as ``spec`` says whom.

    Args:
        sleep: waits between tries, in seconds.

    Returns:
        One line for each hook that failed; it stays recorded, and is never an error.
    """
    failures = []
    try:
        with only_one(f"the hooks of {name}", "hooks", tracking.place, name):
            for delivery in deliveries(tracking, name):
                for hook in delivery.pending:
                    delivery = _tell(delivery, hook, spec, sleep)
                    tag = hidden(f"{HOOK}{delivery.change.id}")
                    text = json.dumps({**delivery.to_dict(), "error": redact(delivery.error)})
                    tracking.client.set_registered_model_tag(name, tag, text)
                    if hook in delivery.pending:
                        failures.append(
                            f"the {hook} hook of version {delivery.change.to} failed: "
                            f"{delivery.error}; the next command tries again"
                        )
    except TrackingError as error:
        # The promotion stands; what is recorded as pending is told by the next command.
        failures.append(f"hooks: {error}")
    return failures


@contextmanager
def registry(recipe: Recipe, name: str, progress: Progress) -> Iterator[Tracking]:
    """Reach the model registry for a change; what the block changed is then told to the hooks.

    Args:
        recipe: its tracking and promote settings hold.
        name: the registered model.
        progress: where to say which hook failed.

    Raises:
        TrackingError: the server cannot be reached.
    """
    tracking = connect_to_server(recipe.tracking)
    yield tracking
    for failure in deliver(tracking, name, recipe.promote.hooks):
        progress.step(f"note: {failure}")


def payload(change: Change) -> dict[str, Any]:
    """What a hook is told."""
    return {
        "id": change.id,
        "event": change.kind,
        "name": change.name,
        "version": change.to,
        "previous_version": change.came_from,
        "uri": f"models:/{change.name}/{change.to}",
        "by": change.by,
        "proposed_by": change.proposed_by,
        "at": change.at,
        "forced": change.forced,
        "reason": change.reason,
        "evidence_sha256": change.evidence_sha256,
    }


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """The value of ``X-Mergeops-Signature``."""
    signed = timestamp.encode() + b"." + body
    return "v1=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def _tell(
    delivery: Delivery, hook: str, spec: HooksSpec, sleep: Callable[[float], None]
) -> Delivery:
    """Try a hook until it is told, or no further try is allowed or may help."""
    change, attempts = delivery.change, delivery.attempts
    body = json.dumps(payload(change), sort_keys=True).encode()
    error = "it is not configured here"
    tell = _run if hook == COMMAND else _post
    for i in range(spec.attempts if hook in _named(spec) else 0):
        if i:
            sleep(spec.backoff_s * 2 ** (i - 1))
        attempts += 1
        try:
            tell(spec, change, body)
        except _HookError as failed:
            error = str(failed)
            if not failed.may_pass:
                break
            continue
        pending = tuple(name for name in delivery.pending if name != hook)
        done = {**delivery.done, hook: now()}
        return Delivery(change, pending, done, attempts, delivery.error if pending else None)
    return replace(delivery, attempts=attempts, error=error[:500])


def _named(spec: HooksSpec) -> tuple[str, ...]:
    return (*((COMMAND,) if spec.command else ()), *((WEBHOOK,) if spec.webhook else ()))


def _run(spec: HooksSpec, change: Change, body: bytes) -> None:
    told = {
        "MERGEOPS_EVENT": change.kind,
        "MERGEOPS_NAME": change.name,
        "MERGEOPS_VERSION": str(change.to),
        "MERGEOPS_PREVIOUS_VERSION": str(change.came_from or ""),
    }
    environment = {k: v for k, v in os.environ.items() if k != spec.secret_env} | told
    try:
        done = subprocess.run(
            spec.command,
            input=body,
            capture_output=True,
            env=environment,
            timeout=spec.timeout_s,
            check=False,
        )
    except OSError as error:
        message = f"{spec.command[0]}: {error.strerror}"
        raise _HookError(message, may_pass=False) from error
    except subprocess.TimeoutExpired as error:
        raise _HookError(f"{spec.command[0]}: no end after {spec.timeout_s:g} s") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        last = f": {said[-1][:200]}" if said else ""
        raise _HookError(f"{spec.command[0]} ended with {done.returncode}{last}")


def _post(spec: HooksSpec, change: Change, body: bytes) -> None:
    secret = os.environ.get(spec.secret_env)
    if not secret:
        raise _HookError(f"{spec.secret_env} is not set", may_pass=False)
    timestamp = str(int(time.time()))
    request = urllib.request.Request(
        str(spec.webhook),
        data=body,
        headers={
            "Content-Type": "application/json",
            "User-Agent": f"mergeops/{__version__}",
            "X-Mergeops-Delivery": change.id,
            "X-Mergeops-Timestamp": timestamp,
            "X-Mergeops-Signature": signature(secret, timestamp, body),
        },
    )
    try:
        with urllib.request.build_opener(NoRedirects).open(request, timeout=spec.timeout_s):
            return
    except urllib.error.HTTPError as error:
        # What the server calls our fault does not change by asking again soon.
        may_pass = error.code >= 500 or error.code in (408, 425, 429)
        message = f"the webhook answered {error.code} {error.reason}"
        raise _HookError(message, may_pass=may_pass) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _HookError(f"the webhook cannot be reached: {reason}") from error
