"""What the routes share, and how they answer errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from procrastinate.exceptions import ConnectorException
from psycopg import Error
from psycopg_pool import PoolTimeout
from starlette.exceptions import HTTPException

from mergeops.errors import (
    AwayError,
    ConfigError,
    GateRefusedError,
    MergeopsError,
    ServiceError,
    TrackingError,
)
from mergeops.service.mlflow_view import Registry
from mergeops.service.operator_config import ServiceConfig
from mergeops.service.queue import Queue
from mergeops.service.queued_jobs import JobStateError, UnknownJobError
from mergeops.service.watches import Watches
from mergeops.service.web.callers import Caller
from mergeops.service.web.news import MOST_WATCHERS, Changes

STATUS = {
    UnknownJobError: 404,
    JobStateError: 409,
    ConfigError: 422,
    GateRefusedError: 409,
    AwayError: 503,
    TrackingError: 502,
    ServiceError: 503,
}
"""Class of an error -> status; the first that it is an instance of."""
AWAY = "the database is away; the request can be repeated"


@dataclass(frozen=True)
class Service:
    """What requests are answered with."""

    queue: Queue
    watches: Watches
    registry: Registry
    changes: Changes
    config: ServiceConfig
    directory: Path
    """Where jobs work."""


def service_of(request: Request) -> Service:
    """Of the app that serves the request."""
    service: Service = request.app.state.service
    return service


def caller_of(request: Request) -> Caller:
    """Who asks, as the guard found out."""
    caller: Caller = request.scope["mergeops.caller"]
    return caller


Served = Annotated[Service, Depends(service_of)]
Asking = Annotated[Caller, Depends(caller_of)]


def needs(role: str) -> Any:
    """What a route depends on that only callers of a role may call."""

    def check(caller: Asking) -> None:
        if role not in caller.roles:
            has = ", ".join(sorted(caller.roles))
            raise HTTPException(
                403, f"this takes the role {role}; the account {caller.name} is {has}"
            )

    return Depends(check)


def strict(request: Request) -> None:
    """Refuse query parameters that the route does not know: a typo must not be passed over.

    Raises:
        ConfigError: says which and what is known.
    """
    dependant = request.scope["route"].dependant
    known = {field.alias for field in dependant.query_params}
    if unknown := sorted(set(request.query_params) - known):
        raise ConfigError(
            f"unknown parameter {unknown[0][:60]!r}; allowed: {', '.join(sorted(known)) or 'none'}"
        )


def add_error_answers(app: FastAPI) -> None:
    """Answer every expected error by one line and its status."""

    async def expected(request: Request, error: Exception) -> JSONResponse:
        status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
        exit_code = error.exit_code if isinstance(error, MergeopsError) else 1
        return JSONResponse({"error": str(error), "exit_code": exit_code}, status)

    async def away(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": AWAY, "exit_code": ServiceError.exit_code}, 503)

    async def unread(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")[:200]
        message = f"{where or 'the body'}: {first['msg']}"
        return JSONResponse({"error": message, "exit_code": ConfigError.exit_code}, 422)

    async def no_page(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": str(error.detail), "exit_code": 2}, error.status_code)

    for kind in STATUS:
        app.add_exception_handler(kind, expected)
    for foreign in (Error, PoolTimeout, ConnectorException):
        app.add_exception_handler(foreign, away)
    app.add_exception_handler(RequestValidationError, unread)
    app.add_exception_handler(HTTPException, no_page)


def check_room(service: Service) -> None:
    """Refuse one more stream where there are many: each holds a connection.

    Raises:
        ServiceError: there are.
    """
    if service.changes.watchers >= MOST_WATCHERS:
        raise ServiceError(f"{MOST_WATCHERS} streams are open, and no more may; close some pages")


@asynccontextmanager
async def watching(service: Service) -> AsyncIterator[None]:
    """Count who watches a stream."""
    service.changes.watchers += 1
    try:
        yield
    finally:
        service.changes.watchers -= 1
