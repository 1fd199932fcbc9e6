"""The page in a real browser: a job is followed live, and two users decide as their roles allow.

MERGEOPS_SCREENSHOTS=FOLDER keeps pictures of the pages: light, dark, and as wide as a phone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from support.browser import IS_THERE, Browser, Chromedriver
from support.service_stand_ins import HOSTILE, Accounts, Mlflow
from support.service_work import settings, words

from mergeops.client import Address, ServiceClient
from mergeops.service import ServiceConfig, Watches
from mergeops.service.job_worker import work
from mergeops.service.queue import open_queue
from mergeops.service.web.app import make_app
from mergeops.service.web.news import Changes
from mergeops.service.web.served import Service

pytestmark = [
    pytest.mark.integration,
    pytest.mark.soak,
    pytest.mark.skipif(not IS_THERE, reason="apt-get install chromium chromium-driver"),
]
TOKEN = "a-token-of-the-tests-of-the-page"


class ServedPage:
    """The application on a port, with a worker whose jobs are small programs, in a thread."""

    def __init__(self, database: str, directory: Path) -> None:
        self.mlflow = Mlflow()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.client = ServiceClient(Address(self.url, TOKEN))
        self._database, self._directory = database, directory
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()

    async def _serve(self) -> None:
        stop = asyncio.Event()
        registry: Any = self.mlflow
        accounts: Any = Accounts()
        async with open_queue(self._database) as queue:
            service = Service(
                queue=queue,
                watches=Watches(queue),
                registry=registry,
                changes=Changes(queue),
                config=ServiceConfig(roots=(".", str(self._directory))),
                directory=self._directory,
            )
            app: Any = make_app(service, TOKEN, "ben", accounts)
            config = uvicorn.Config(
                app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
            )
            self._server = uvicorn.Server(config)
            sides = [
                asyncio.create_task(service.changes.listen()),
                asyncio.create_task(work(settings(self._database), stop)),
            ]
            await self._server.serve(sockets=[self._listener])
            sides[0].cancel()
            stop.set()
            await asyncio.gather(*sides, return_exceptions=True)

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(60)


@pytest.fixture(scope="module")
def served(queue_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPage]:
    page = ServedPage(queue_server, tmp_path_factory.mktemp("project"))
    yield page
    page.stop()


@pytest.fixture(scope="module")
def browse(served: ServedPage) -> Iterator[Callable[[str], Browser]]:
    """Opens the browser of an account, which is called as its role."""
    with ExitStack() as opened:
        driver = Chromedriver()
        opened.callback(driver.stop)

        def make(role: str) -> Browser:
            profile = opened.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            browser = Browser(driver, Path(profile))
            opened.callback(browser.close)
            browser.open(served.url.replace("://", f"://{role}:right@"))
            # A page whose own address has a password may not fetch.
            browser.open(served.url)
            return browser

        yield make


def test_a_job_is_followed_live_and_a_reload_in_the_middle_loses_nothing(
    served: ServedPage, browse: Callable[[str], Browser], folder: Path
) -> None:
    page = browse("operator")
    page.wait_for("Queue", "h1")
    job = served.client.submit("adopt", words(folder, "live", 6.0))
    # Nobody reloads: the page hears of it.
    page.wait_for("running", f"tr:has(#job-{job['id']}) .state")
    page.wait_for("live", f"tr:has(#job-{job['id']}) .task")
    page.click(f"#job-{job['id']}")
    page.wait_for("%", "p.line")
    assert page.count("progress") == 1
    page.reload()
    page.wait_for("running", ".state")
    page.wait_for("75 %", "p.line")
    page.wait_for("succeeded", ".state")
    page.wait_for("live is done", "pre.log[role=log]")
    assert page.text("pre.log[role=log]").count("live is done") == 1
    # It is the same when it is opened later.
    page.reload()
    assert page.text("pre.log[role=log]") == "live is done"
    assert "Result as JSON" in page.text()


def test_a_job_is_cancelled_and_retried_by_its_buttons(
    served: ServedPage, browse: Callable[[str], Browser], folder: Path
) -> None:
    page = browse("operator")
    job = served.client.submit("adopt", words(folder, "stopped", 8.0))
    page.open(f"{served.url}/jobs/{job['id']}")
    page.wait_for("running", ".state")
    page.click("button.quiet")
    assert "Cancel this job?" in page.accept()
    page.wait_for("cancelled", ".state")
    page.click("button[data-reload]")
    page.wait_for("succeeded", ".state")
    assert served.client.job(job["id"])["attempt"] == 2


def test_two_users_decide_as_their_roles_allow(
    served: ServedPage, browse: Callable[[str], Browser]
) -> None:
    operator, approver = browse("operator"), browse("approver")
    for page in (operator, approver):
        page.open(f"{served.url}/proposals")
        page.wait_for("skills", "#proposal-1 h2")
        # A name is text, whoever chose it.
        assert HOSTILE in page.text("#proposal-2 h2")
    assert operator.count("[data-decision]") == 0
    assert "An approver decides on it." in operator.text("#proposal-1")

    approver.click("#proposal-1 [data-decision=approve]")
    assert approver.accept() == "Make version 7 of skills the champion?"
    approver.wait_for("Version 7 of skills is champion now.", "#proposal-1")

    # What stands for MLflow still has it.
    approver.reload()
    approver.click("#proposal-1 [data-decision=reject]")
    approver.wait_for("Say why, for the proposer reads it.", "#proposal-1")
    approver.type("#proposal-1 textarea", "too slow")
    approver.click("#proposal-1 [data-decision=reject]")
    approver.wait_for("Version 7 of skills was rejected.", "#proposal-1")
    assert served.mlflow.decided == [
        ("approve", "skills", 7, None),
        ("reject", "skills", 7, "too slow"),
    ]
    assert served.mlflow.deciders == ["approver", "approver"]


@pytest.mark.skipif("MERGEOPS_SCREENSHOTS" not in os.environ, reason="pictures are for people")
def test_pictures_are_taken(
    served: ServedPage, browse: Callable[[str], Browser], folder: Path
) -> None:
    to, page = Path(os.environ["MERGEOPS_SCREENSHOTS"]), browse("approver")
    served.client.add_watch({"name": "nightly", "experiments": ["finetunes"]})
    for name in ("first", "second"):
        job = served.client.submit("adopt", words(folder, name, 30.0))
    for look, scheme, width in (
        ("light", "light", 1280),
        ("dark", "dark", 1280),
        ("phone", "light", 390),
    ):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        page.tell("Emulation.setEmulatedMedia", features=media)
        page.tell(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        paths = {"queue": "/", "job": f"/jobs/{job['id']}", "workers": "/workers"}
        paths |= {"watches": "/watches", "watch": "/watches/nightly"}
        paths |= {"proposals": "/proposals", "leaderboard": "/leaderboard"}
        for name, path in paths.items():
            page.open(served.url + path)
            page.wait_for("mergeops", "footer")
            # Nothing is wider than the window.
            assert page.run("return document.documentElement.scrollWidth") <= width, name
            page.screenshot(to / f"{name}_{look}.png")
    served.client.cancel(job["id"])
