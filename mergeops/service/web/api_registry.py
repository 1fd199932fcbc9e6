"""Proposals and watches: /api/v1."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from mergeops.service.operator_config import APPROVER, OPERATOR
from mergeops.service.web.served import Asking, Served, needs, strict
from mergeops.watching import digest_text

router = APIRouter(prefix="/api/v1", dependencies=[Depends(strict)])


class Approval(BaseModel):
    """Which version is meant: another that was proposed meanwhile is not approved."""

    model_config = ConfigDict(extra="forbid", strict=True)
    version: int = Field(ge=1)
    reason: str | None = Field(default=None, max_length=2000)


class Rejection(BaseModel):
    """Which version is meant, and why."""

    model_config = ConfigDict(extra="forbid", strict=True)
    version: int = Field(ge=1)
    reason: str = Field(max_length=2000)


class NewWatch(BaseModel):
    """A watch's config, as its file holds it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    config: dict[str, Any]


@router.get("/proposals")
async def list_proposals(service: Served) -> dict[str, Any]:
    """What waits for a decision, with the gate's evidence."""
    waiting = await run_in_threadpool(service.registry.proposals)
    return {"proposals": [proposal.to_dict() for proposal in waiting]}


@router.post("/proposals/{model}/approve", dependencies=[needs(APPROVER)])
async def approve(model: str, body: Approval, service: Served, caller: Asking) -> dict[str, Any]:
    """Make the proposed version the champion; refused to who proposed it."""
    change = await run_in_threadpool(
        service.registry.approve, model, body.version, body.reason, caller.name
    )
    return change.to_dict()


@router.post("/proposals/{model}/reject", dependencies=[needs(APPROVER)])
async def reject(model: str, body: Rejection, service: Served, caller: Asking) -> dict[str, Any]:
    """Close a proposal; the champion stays."""
    change = await run_in_threadpool(
        service.registry.reject, model, body.version, body.reason, caller.name
    )
    return change.to_dict()


@router.get("/watches")
async def list_watches(service: Served) -> dict[str, Any]:
    """All watches, by name."""
    return {"watches": [watch.to_dict() for watch in await service.watches.all()]}


@router.post("/watches", status_code=201, dependencies=[needs(OPERATOR)])
async def add_watch(body: NewWatch, service: Served, caller: Asking) -> dict[str, Any]:
    """Add a watch, or change the config of the one of that name; what it knows stays."""
    watch = await service.watches.add(body.config, caller.name, service.config, service.directory)
    return watch.to_dict()


@router.delete("/watches/{name}", dependencies=[needs(OPERATOR)])
async def remove_watch(name: str, service: Served) -> dict[str, Any]:
    """Remove a watch; models, runs and proposals that it made stay."""
    return {"name": name, "was_there": await service.watches.remove(name)}


@router.get("/watches/{name}/report")
async def report(name: str, service: Served) -> dict[str, Any]:
    """What came in, what each run contributed, what was tried, what it cost, what is proposed."""
    watch = await service.watches.get(name)
    return watch.to_dict() | {
        "state": watch.state.to_dict(),
        "text": digest_text(watch.spec, watch.state),
    }
