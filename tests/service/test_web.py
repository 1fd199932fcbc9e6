"""API and page over HTTP, on a real queue; MLflow is a stand-in."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.service_stand_ins import HOSTILE, Accounts, Mlflow

from mergeops.errors import ServiceError
from mergeops.service import ServiceConfig, Watches
from mergeops.service.queue import open_queue
from mergeops.service.takeover import Ending, Owner
from mergeops.service.web.app import make_app
from mergeops.service.web.guard import COOKIE, CSRF_HEADER, csrf_of
from mergeops.service.web.news import Changes
from mergeops.service.web.served import Service
from mergeops.watching import WatchState

pytestmark = pytest.mark.integration
TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
VISITOR = {"Cookie": f"{COOKIE}={TOKEN}"}


@pytest.fixture(scope="module")
def web(queue_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A client in this process; the application lives in its event loop."""
    directory = tmp_path_factory.mktemp("project")
    mlflow = Mlflow()
    held = SimpleNamespace(mlflow=mlflow, directory=directory)
    app: Any = None

    async def lazily(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            return await app(scope, receive, send)
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    with TestClient(lazily, base_url="http://127.0.0.1", follow_redirects=False) as client:
        portal = client.portal
        assert portal is not None
        opened = open_queue(queue_server)
        queue = portal.call(opened.__aenter__)
        registry: Any = mlflow
        service = Service(
            queue=queue,
            watches=Watches(queue),
            registry=registry,
            changes=Changes(queue),
            config=ServiceConfig(),
            directory=directory,
        )
        accounts: Any = Accounts()
        app = make_app(service, TOKEN, "ben", accounts)
        listening = portal.start_task_soon(service.changes.listen)
        held.client, held.queue, held.portal = client, queue, portal
        held.call = lambda verb, path, **more: client.request(
            verb, f"/api/v1/{path}", headers=BEARER, **more
        )
        held.page = lambda path: client.get(path, headers=VISITOR)
        yield held
        listening.cancel()
        portal.call(opened.__aexit__, None, None, None)


def submitted(web: SimpleNamespace, name: str) -> dict[str, Any]:
    body = {"command": "adopt", "words": ["--experiment", name], "tags": ["nobody"]}
    made: dict[str, Any] = web.call("POST", "jobs", json=body).json()
    return made


def test_a_job_is_submitted_once_listed_cancelled_and_retried(web: SimpleNamespace) -> None:
    body = {"command": "adopt", "words": ["--experiment", "x"], "tags": ["nobody"]}
    first, second = (web.call("POST", "jobs", json=body) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    job = first.json()
    assert second.json() == {**job, "was_there": True}
    assert (job["state"], job["submitted_by"], job["title"]) == (
        "queued",
        "ben",
        "adopt --experiment x",
    )
    assert web.call("GET", f"jobs/{job['id'][:8]}").json()["id"] == job["id"]
    listed = web.call("GET", "jobs?state=queued&limit=1000").json()
    assert job["id"] in [one["id"] for one in listed["jobs"]] and listed["counts"]["queued"] >= 1
    assert web.call("POST", f"jobs/{job['id']}/retry").json()["state"] == "queued"
    for _ in range(2):
        gone = web.call("DELETE", f"jobs/{job['id']}")
        assert (gone.status_code, gone.json()["state"]) == (202, "cancelled")
    assert web.call("POST", f"jobs/{job['id']}/retry").json()["state"] == "queued"


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "message"),
    [
        ("GET", "jobs?sate=queued", None, 422, "unknown parameter 'sate'; allowed: before, limit"),
        ("GET", "jobs?state=nope", None, 422, "query.state.0: Input should be"),
        ("GET", "jobs?limit=0", None, 422, "query.limit"),
        ("GET", "jobs/ffffffffffffffff", None, 404, "there is no job 'ffffffffffffffff'"),
        ("GET", "nothing", None, 404, "Not Found"),
        ("POST", "jobs", {"command": "adopt", "wrds": []}, 422, "wrds: Extra inputs"),
        ("POST", "jobs", {"command": "adopt", "words": [1]}, 422, "words.0: Input should be"),
        ("POST", "jobs", {"words": []}, 422, "command: Field required"),
        ("POST", "jobs", {"command": "serve"}, 422, "'serve' is no command that a job may be"),
        (
            "POST",
            "jobs",
            {"command": "run", "words": ["base=/etc"]},
            422,
            "base: /etc lies outside",
        ),
        ("POST", "jobs", {"command": "adopt", "tags": ["a b"]}, 422, "tag 'a b'"),
        ("POST", "jobs", {"command": "adopt", "priority": 101}, 422, "priority"),
        ("POST", "proposals/skills/approve", {"version": "7"}, 422, "version: Input should be"),
        ("POST", "proposals/skills/approve", {"version": 6}, 409, "was proposed by ann"),
        (
            "POST",
            "proposals/skills/reject",
            {"version": 7, "reason": ""},
            422,
            "the reason is empty",
        ),
        ("GET", "watches/none/report", None, 422, "there is no watch 'none'"),
        ("POST", "watches", {"config": {"name": "w"}}, 422, "experiments is missing"),
        (
            *("POST", "watches"),
            {"config": {"name": "w", "experiments": ["x"], "overrides": ["base=/etc"]}},
            *(422, "base: /etc lies outside"),
        ),
    ],
)
def test_what_is_wrong_is_answered_in_one_line(
    web: SimpleNamespace, verb: str, path: str, body: Any, status: int, message: str
) -> None:
    said = web.call(verb, path, **({"json": body} if body is not None else {}))
    assert said.status_code == status, said.text
    assert message in said.json()["error"] and "\n" not in said.json()["error"]


def test_events_tell_lines_and_states_until_the_end_and_go_on_after_a_line(
    web: SimpleNamespace,
) -> None:
    job = submitted(web, "events")

    async def work() -> None:
        owner = Owner(web.queue, "w:1", "cpu", ("nobody",))
        await owner.beat()
        while (taken := await owner.fetch()) is not None:
            await owner.tell(taken, {"task": "x", "done": 1, "total": 2}, ["one", "two"])
            await owner.end(Ending("succeeded", 0, None, {"ok": True}))
        await owner.leave()

    web.portal.call(work)
    text = web.call("GET", f"jobs/{job['id']}/events").text
    events = re.findall(r"(?:id: (\d+)\n)?event: (\w+)\ndata: (.*)\n\n", text)
    assert [name for _, name, _ in events] == ["log", "log", "job", "end"]
    assert json.loads(events[2][2])["result"] == {"ok": True}
    number = events[0][0]
    headers = {**BEARER, "Last-Event-ID": number}
    rest = web.client.get(f"/api/v1/jobs/{job['id']}/events", headers=headers).text
    assert '"line": "two"' in rest and '"line": "one"' not in rest
    lines = web.call("GET", f"jobs/{job['id']}/logs?after={number}").json()["lines"]
    assert [line["line"] for line in lines] == ["two"]


def test_a_job_shows_what_each_of_its_workers_does(web: SimpleNamespace) -> None:
    job = submitted(web, "workers")
    workers = [{"worker": "node1/1", "unit": "a.safetensors", "done": 1, "total": 4}]
    seen = []

    async def work() -> None:
        owner = Owner(web.queue, "w:1", "cpu", ("nobody",))
        await owner.beat()
        while (taken := await owner.fetch()) is not None:
            told = {"task": "x", "done": 1, "total": 2, "workers": workers}
            await owner.tell(taken, told, [])
            if taken.id == job["id"]:
                seen.append(await asyncio.to_thread(lambda: web.page(f"/jobs/{job['id']}").text))
            await owner.end(Ending("succeeded", 0, None, {"ok": True}))
        await owner.leave()

    web.portal.call(work)
    assert re.search(r"<li>node1/1: a\.safetensors <span[^>]*>25 %</span></li>", seen[0])


def test_the_api_describes_itself_and_tells_its_figures(web: SimpleNamespace) -> None:
    described = web.call("GET", "openapi.json").json()
    assert {"/api/v1/jobs", "/api/v1/jobs/{job_id}/events", "/api/v1/watches"} <= set(
        described["paths"]
    )
    assert "/proposals" not in described["paths"]
    figures = web.call("GET", "metrics").text
    assert re.search(r'^mergeops_jobs\{state="queued"\} \d+$', figures, re.MULTILINE)
    assert web.client.get("/api/v1/health").json() == {"status": "ok"}


def test_proposals_are_shown_and_decided(web: SimpleNamespace) -> None:
    found = web.call("GET", "proposals").json()["proposals"]
    assert (found[0]["name"], found[0]["version"], found[0]["champion"]) == ("skills", 7, 3)
    body = {"version": 7, "reason": "looks good"}
    assert web.call("POST", "proposals/skills/approve", json=body).json()["by"] == "ben"
    assert web.mlflow.decided[-1] == ("approve", "skills", 7, "looks good")
    page = web.page("/proposals").text
    assert "+0.040" in page and "p = 0.002, allowed 0.025" in page and "watch nightly" in page


def test_names_of_strangers_are_text_on_every_page(web: SimpleNamespace) -> None:
    job = submitted(web, HOSTILE)
    for path in ("/", f"/jobs/{job['id']}", "/proposals"):
        page = web.page(path).text
        assert HOSTILE not in page and html.escape(HOSTILE).replace("&#x27;", "&#39;") in page


def test_every_page_is_there_also_while_mlflow_is_away(web: SimpleNamespace) -> None:
    web.mlflow.is_away = True
    try:
        for path in ("/", "/?state=failed", "/proposals", "/leaderboard", "/watches", "/workers"):
            said = web.page(path)
            assert said.status_code == 200 and "<h1>" in said.text
        assert "cannot reach the MLflow server" in web.page("/leaderboard").text
        assert web.call("GET", "proposals").status_code == 503
    finally:
        web.mlflow.is_away = False


def test_the_page_loads_nothing_from_elsewhere(web: SimpleNamespace) -> None:
    page = web.page("/").text
    assert csrf_of(TOKEN, "ben") in page
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert all(place.startswith(("/", "#")) for place in loaded), loaded
    for place in loaded:
        if place.startswith("/static/"):
            assert web.page(place).status_code == 200


def test_a_button_of_the_page_works_by_its_word(web: SimpleNamespace) -> None:
    job = submitted(web, "button")
    own = {"Origin": "http://127.0.0.1", CSRF_HEADER: csrf_of(TOKEN, "ben")}
    client = web.client
    path = f"/api/v1/jobs/{job['id']}"
    assert client.delete(path, headers=VISITOR).status_code == 403
    assert client.delete(path, headers={**VISITOR, **own}).status_code == 202


def test_a_watch_is_added_due_once_changed_and_removed(
    web: SimpleNamespace, call_watches: Callable[..., Any]
) -> None:
    config = {"name": "nightly", "experiments": ["finetunes"], "every_s": 3600}
    made = web.call("POST", "watches", json={"config": config}).json()
    assert (made["name"], made["round"], made["config"]["budget"]["trials"]) == ("nightly", 0, 8)
    [job_id] = call_watches("queue_due")
    job = web.call("GET", f"jobs/{job_id}").json()
    assert job["title"] == "watch run nightly --round 1"
    assert call_watches("queue_due") == []
    changed = web.call("POST", "watches", json={"config": {**config, "batch": 3}}).json()
    assert (changed["round"], changed["config"]["batch"]) == (1, 3)
    # The round is still at work: no second one beside it.
    assert call_watches("queue_due") == []
    # Once it has ended, another is queued when there is something to do.
    web.call("DELETE", f"jobs/{job_id}")
    assert call_watches("queue_due", lambda watch: False) == []
    web.call("POST", "watches", json={"config": config})
    assert len(call_watches("queue_due", lambda watch: True)) == 1
    assert "# Watch nightly" in web.call("GET", "watches/nightly/report").json()["text"]
    assert (
        "nightly" in web.page("/watches").text and "None yet" in web.page("/watches/nightly").text
    )
    for was_there in (True, False):
        gone = web.call("DELETE", "watches/nightly").json()
        assert gone == {"name": "nightly", "was_there": was_there}
    assert web.call("GET", "watches").json() == {"watches": []}
    # Back again, it goes on counting.
    assert web.call("POST", "watches", json={"config": config}).json()["round"] == 2
    web.call("DELETE", "watches/nightly")


def test_a_round_that_another_worker_took_over_keeps_nothing_more(
    web: SimpleNamespace, call_watches: Callable[..., Any]
) -> None:
    config = {"name": "fenced", "experiments": ["finetunes"]}
    web.call("POST", "watches", json={"config": config})
    [job_id] = call_watches("queue_due")
    watches = Watches(web.queue)

    def save(held: str, attempt: int) -> None:
        web.portal.call(watches.save, "fenced", WatchState(held=held), 1, attempt)

    async def begin() -> None:
        async with web.queue.pool.connection() as connection:
            await connection.execute(
                "UPDATE mergeops_jobs SET attempt = attempt + 1 WHERE id = %s", (job_id,)
            )

    web.portal.call(begin)
    save("first", 1)
    # Its worker was cut off, and another begins the round again.
    web.portal.call(begin)
    with pytest.raises(ServiceError, match="another worker took the round over"):
        save("late", 1)
    save("second", 2)
    assert web.portal.call(watches.get, "fenced").state.held == "second"
    web.call("DELETE", f"jobs/{job_id}")
    web.call("DELETE", "watches/fenced")
    with pytest.raises(ServiceError, match="round 1 of the watch fenced ends here"):
        save("gone", 2)


@pytest.fixture
def call_watches(web: SimpleNamespace) -> Callable[..., Any]:
    watches = Watches(web.queue)
    return lambda name, *more: web.portal.call(getattr(watches, name), "ben", *more)


def test_a_place_is_its_users_alone(tmp_path: Path) -> None:
    from mergeops.client import Address, find_server
    from mergeops.errors import ServiceError
    from mergeops.service import ServicePlace

    place = ServicePlace(tmp_path / "service")
    with pytest.raises(ServiceError, match="no server runs in this project"):
        find_server(place.folder)
    place.make()
    token = place.token()
    assert len(token) > 40 and place.token() == token
    place.announce(Address("http://127.0.0.1:1", token, 1))
    for name in ("token", "server.json"):
        assert (place.folder / name).stat().st_mode & 0o777 == 0o600
    assert find_server(place.folder) == Address("http://127.0.0.1:1", token, 1)
    # It is another server's.
    place.withdraw()
    assert (place.folder / "server.json").exists()


def test_an_account_may_what_its_role_allows_and_is_named_by_what_it_did(
    web: SimpleNamespace,
) -> None:
    def ask(role: str, verb: str, path: str, **body: Any) -> Any:
        headers = {"Authorization": f"Basic {base64.b64encode(f'{role}:x'.encode()).decode()}"}
        headers["Content-Type"] = "application/json"
        content = json.dumps(body) if body else None
        return web.client.request(verb, path, headers=headers, content=content)

    job = {"command": "adopt", "words": ["--experiment", "roles"], "tags": ["nobody"]}
    decision = {"version": 7, "reason": "because"}
    changes: list[tuple[str, str, str, dict[str, Any]]] = [
        ("operator", "POST", "/api/v1/jobs", job),
        ("approver", "POST", "/api/v1/proposals/skills/approve", decision),
        ("approver", "POST", "/api/v1/proposals/skills/reject", decision),
    ]
    for may, verb, path, body in changes:
        for role in {"viewer", "operator", "approver"} - {may}:
            said = ask(role, verb, path, **body)
            assert (said.status_code, said.json()["error"]) == (
                403,
                f"this takes the role {may}; the account {role} is {role}",
            )
        assert ask(may, verb, path, **body).status_code in (200, 201)
    made = ask("viewer", "GET", "/api/v1/jobs").json()["jobs"][0]
    assert made["submitted_by"] == "operator"
    for verb, path in (("DELETE", f"jobs/{made['id']}"), ("POST", f"jobs/{made['id']}/retry")):
        assert ask("viewer", verb, f"/api/v1/{path}").status_code == 403
        assert ask("operator", verb, f"/api/v1/{path}").status_code == 202
    watch = {"config": {"name": "of-roles", "experiments": ["x"], "overrides": []}}
    assert ask("approver", "POST", "/api/v1/watches", **watch).status_code == 403
    assert ask("approver", "DELETE", "/api/v1/watches/x").status_code == 403

    assert web.mlflow.deciders[-2:] == ["approver", "approver"]
    # The page offers what its reader may do.
    pages = {role: ask(role, "GET", "/proposals").text for role in ("viewer", "approver")}
    assert "data-decision" in pages["approver"] and "data-decision" not in pages["viewer"]
    assert "viewer (viewer)" in pages["viewer"]
