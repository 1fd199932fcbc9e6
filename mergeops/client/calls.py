"""The API's calls, each a method; answers are plain dicts, as the API's page describes them."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from mergeops.client.server_address import Address, find_server
from mergeops.errors import (
    ConfigError,
    GateRefusedError,
    MergeopsError,
    ServiceError,
    TrackingError,
)
from mergeops.version import __version__

TIMEOUT_S = 30.0
TRIES, WAIT_S = 5, 1.0
KINDS: Mapping[int, type[MergeopsError]] = {
    ConfigError.exit_code: ConfigError,
    TrackingError.exit_code: TrackingError,
    GateRefusedError.exit_code: GateRefusedError,
}
"""Exit code that the API names -> the error that a command would end with."""


class _TokenStays(urllib.request.HTTPRedirectHandler):
    """The token goes to the server that it is for, and to no other."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


class ServiceClient:
    """A server.

    Args:
        address: where it is.
    """

    def __init__(self, address: Address) -> None:
        if urlsplit(address.url).scheme not in ("http", "https"):
            raise ConfigError(f"MERGEOPS_SERVER is {address.url!r}; it begins with http or https")
        self._address = address
        self._opener = urllib.request.build_opener(_TokenStays)

    @property
    def url(self) -> str:
        """Of the page."""
        return self._address.url

    def submit(
        self,
        command: str,
        words: Sequence[str] = (),
        *,
        tags: Sequence[str] = (),
        priority: int = 0,
    ) -> dict[str, Any]:
        """Queue a command; the same work again is the same job.

        Args:
            command: e.g. ``search``.
            words: its arguments, as on the command line.
            tags: what the worker must have.
            priority: -100 to 100; more is earlier.

        Raises:
            ConfigError: it is not allowed, or wrong.
            ServiceError: the server cannot be reached.
        """
        body = {"command": command, "words": list(words), "tags": list(tags), "priority": priority}
        return self._call("POST", "jobs", body)

    def jobs(self, *, states: Sequence[str] = (), limit: int = 50) -> list[dict[str, Any]]:
        """The newest jobs first."""
        query = urlencode([*(("state", state) for state in states), ("limit", limit)])
        jobs: list[dict[str, Any]] = self._call("GET", f"jobs?{query}")["jobs"]
        return jobs

    def job(self, job_id: str) -> dict[str, Any]:
        """A job, by its id or the beginning of it."""
        return self._call("GET", f"jobs/{quote(job_id, safe='')}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job."""
        return self._call("DELETE", f"jobs/{quote(job_id, safe='')}")

    def retry(self, job_id: str) -> dict[str, Any]:
        """Queue a job again that failed or was cancelled."""
        return self._call("POST", f"jobs/{quote(job_id, safe='')}/retry")

    def logs(self, job_id: str, *, after: int = 0) -> list[dict[str, Any]]:
        """What a job wrote after the line of that number."""
        lines: list[dict[str, Any]] = []
        while True:
            path = f"jobs/{quote(job_id, safe='')}/logs?after={after}"
            page: list[dict[str, Any]] = self._call("GET", path)["lines"]
            if not page:
                return lines
            lines += page
            after = page[-1]["n"]

    def follow(self, job_id: str, *, every_s: float = 0.5) -> Iterator[str]:
        """The lines of a job as they come, until it ends; a server that is away is waited for."""
        after = 0
        while True:
            has_ended = self.job(job_id)["ended"]
            for line in self.logs(job_id, after=after):
                after = line["n"]
                yield line["line"]
            if has_ended:
                return
            time.sleep(every_s)

    def proposals(self) -> list[dict[str, Any]]:
        """What waits for a decision, with its evidence."""
        found: list[dict[str, Any]] = self._call("GET", "proposals")["proposals"]
        return found

    def approve(self, name: str, version: int, reason: str | None = None) -> dict[str, Any]:
        """Make a proposed version the champion."""
        body = {"version": version, "reason": reason}
        return self._call("POST", f"proposals/{quote(name, safe='')}/approve", body)

    def reject(self, name: str, version: int, reason: str) -> dict[str, Any]:
        """Close a proposal."""
        body = {"version": version, "reason": reason}
        return self._call("POST", f"proposals/{quote(name, safe='')}/reject", body)

    def watches(self) -> list[dict[str, Any]]:
        """All watches."""
        found: list[dict[str, Any]] = self._call("GET", "watches")["watches"]
        return found

    def add_watch(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Add a watch, or change the one of that name."""
        return self._call("POST", "watches", {"config": dict(config)})

    def remove_watch(self, name: str) -> dict[str, Any]:
        """Remove a watch; what it made stays. ``was_there`` says whether there was one."""
        return self._call("DELETE", f"watches/{quote(name, safe='')}")

    def watch_report(self, name: str) -> dict[str, Any]:
        """What a watch found, tried and proposed."""
        return self._call("GET", f"watches/{quote(name, safe='')}/report")

    def workers(self) -> list[dict[str, Any]]:
        """Who works."""
        found: list[dict[str, Any]] = self._call("GET", "workers")["workers"]
        return found

    def _call(self, verb: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One call; repeated where the server was away, for each may be."""
        reason = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(WAIT_S * attempt)
            try:
                return self._once(verb, path, body)
            except _AwayError as error:
                reason = str(error)
        raise ServiceError(f"{self.url} cannot be reached: {reason}")

    def _once(self, verb: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/api/v1/{path}",
            method=verb,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": self._address.authorization,
                "Content-Type": "application/json",
                "User-Agent": f"mergeops/{__version__}",
            },
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                said: dict[str, Any] = json.load(answer)
                return said
        except urllib.error.HTTPError as error:
            text = error.read(20_000).decode("utf-8", "replace")
            raise _as_error(error.code, text, self.url) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise _AwayError(str(reason)) from error


class _AwayError(Exception):
    """The call may pass when it is repeated."""


def _as_error(status: int, text: str, url: str) -> Exception:
    try:
        said = json.loads(text)
        message, code = str(said["error"]), int(said["exit_code"])
    except (ValueError, KeyError, TypeError):
        message, code = text.strip()[:300] or f"status {status}", 0
    if status == 503 and code != TrackingError.exit_code:
        return _AwayError(message)
    if status == 401:
        return ServiceError(
            f"{url} refuses the token or account; is MERGEOPS_TOKEN the server's? With accounts it "
            "takes MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return KINDS.get(code, ServiceError)(message)


def connect(folder: str | Path = "mergeops-work/service") -> ServiceClient:
    """The server that runs in this project, or the one of MERGEOPS_SERVER and MERGEOPS_TOKEN.

    Args:
        folder: the service's directory.

    Raises:
        ServiceError: there is none.
    """
    return ServiceClient(find_server(Path(folder)))
