"""Who is told of a promotion: a command and a signed webhook, at least once, after it is done.

What is to be told is written down with the change itself (tag ``mergeops.hook.ID``), so it is not
lost when mergeops is killed; a hook that fails is recorded there and tried again by the next
command that changes the model. The promotion stands whatever the hooks do. A receiver tells
repeats by the id.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops import __version__
from mergeops.audit import Change, now
from mergeops.errors import ConfigError, TrackingError
from mergeops.journal import HOOK
from mergeops.secrets import redact
from mergeops.settings import HooksSpec
from mergeops.tracking.lock import only_one
from mergeops.tracking.registry import find_registered_model

if TYPE_CHECKING:
    from mergeops.tracking.connection import Tracking

COMMAND, WEBHOOK = "command", "webhook"


class _HookError(Exception):
    """One try failed; ``again`` says whether another may help."""

    def __init__(self, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True)
class Delivery:
    """What is to be told of one change, and what became of it."""

    change: Change
    pending: tuple[str, ...]
    done: Mapping[str, str]
    """Hook -> when it was told."""
    attempts: int
    error: str | None
    """Of the last try that failed."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "change": self.change.to_dict(),
            "pending": list(self.pending),
            "done": dict(self.done),
            "attempts": self.attempts,
            "error": self.error,
        }


def configured(spec: HooksSpec) -> tuple[str, ...]:
    """The hooks of a config, checked before anything is promoted.

    Raises:
        ConfigError: a webhook without its secret in the environment.
    """
    names = (COMMAND,) if spec.command else ()
    if spec.webhook is None:
        return names
    if not os.environ.get(spec.secret_env):
        raise ConfigError(
            f"promote.hooks.webhook needs a secret to sign with: set {spec.secret_env} in the "
            "environment, or name another variable by promote.hooks.secret_env"
        )
    return (*names, WEBHOOK)


def deliveries(tracking: Tracking, name: str) -> list[Delivery]:
    """What was told and what is still to be told, oldest first."""
    tags = find_registered_model(tracking, name).tags
    found = []
    for _, text in sorted((k, v) for k, v in tags.items() if k.startswith(HOOK)):
        raw = json.loads(text)
        found.append(
            Delivery(
                Change.from_dict(raw["change"]),
                tuple(raw["pending"]),
                raw.get("done", {}),
                raw.get("attempts", 0),
                raw.get("error"),
            )
        )
    return found


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
        with only_one(f"the hooks of {name}", "hooks", tracking.uri, name):
            for waiting in deliveries(tracking, name):
                for hook in waiting.pending:
                    waiting = _tell(waiting, hook, spec, sleep)
                    tag = f"{HOOK}{waiting.change.id}"
                    text = json.dumps({**waiting.to_dict(), "error": redact(waiting.error)})
                    tracking.client.set_registered_model_tag(name, tag, text)
                    if hook in waiting.pending:
                        failures.append(
                            f"the {hook} hook of version {waiting.change.to} failed: "
                            f"{waiting.error}; the next command tries again"
                        )
    except TrackingError as error:
        # The promotion stands; what is recorded as pending is told by the next command.
        failures.append(f"hooks: {error}")
    return failures


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
    waiting: Delivery, hook: str, spec: HooksSpec, sleep: Callable[[float], None]
) -> Delivery:
    body = json.dumps(payload(waiting.change), sort_keys=True).encode()
    attempts, error = waiting.attempts, "it is not configured here"
    tries = spec.attempts if hook in _named(spec) else 0
    for i in range(tries):
        if i:
            sleep(spec.backoff_s * 2 ** (i - 1))
        attempts += 1
        try:
            if hook == COMMAND:
                _run(spec, waiting.change, body)
            else:
                _post(spec, waiting.change, body)
        except _HookError as failed:
            error = str(failed)
            if not failed.again:
                break
            continue
        pending = tuple(name for name in waiting.pending if name != hook)
        done = {**waiting.done, hook: now()}
        return Delivery(waiting.change, pending, done, attempts, waiting.error if pending else None)
    return Delivery(waiting.change, waiting.pending, waiting.done, attempts, error[:500])


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
        raise _HookError(message, again=False) from error
    except subprocess.TimeoutExpired as error:
        raise _HookError(f"{spec.command[0]}: no end after {spec.timeout_s:g} s") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        last = f": {said[-1][:200]}" if said else ""
        raise _HookError(f"{spec.command[0]} ended with {done.returncode}{last}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A signed body goes to the address that was configured, and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _post(spec: HooksSpec, change: Change, body: bytes) -> None:
    secret = os.environ.get(spec.secret_env)
    if not secret:
        raise _HookError(f"{spec.secret_env} is not set", again=False)
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
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=spec.timeout_s):
            return
    except urllib.error.HTTPError as error:
        # What the server calls our fault does not change by asking again soon.
        again = error.code >= 500 or error.code in (408, 425, 429)
        raise _HookError(
            f"the webhook answered {error.code} {error.reason}", again=again
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _HookError(f"the webhook cannot be reached: {reason}") from error
