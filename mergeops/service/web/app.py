"""The application: API, page and assets behind the guard."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from mergeops.service.web import api_jobs, api_registry, pages
from mergeops.service.web.callers import Accounts
from mergeops.service.web.guard import Application, Guard
from mergeops.service.web.served import Service, add_error_answers
from mergeops.version import __version__


def make_app(
    service: Service, token: str, user: str, accounts: Accounts | None = None
) -> Application:
    """The whole application as ASGI.

    Args:
        service: what requests are answered with.
        token: that they need.
        user: whom the token stands for.
        accounts: of MLflow, which get in too.
    """
    # FastAPI's own pages of the documentation load scripts from a foreign host.
    app = FastAPI(
        title="mergeops",
        version=__version__,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    add_error_answers(app)
    app.include_router(api_jobs.router)
    app.include_router(api_registry.router)
    app.include_router(pages.router)
    assets = resources.files("mergeops.service.web").joinpath("static")
    app.mount("/static", StaticFiles(directory=str(assets)))
    return Guard(
        app,
        token=token,
        user=user,
        accounts=accounts,
        per_minute=service.config.requests_per_minute,
        hosts=service.config.hosts,
        max_body=service.config.max_body_kb * 1024,
    )
