"""Workspaces, accounts and registry webhooks of a real server that has all three.

team-a, team-b   workspaces
ann, service     may write in both
ben              a member of team-a who may read what is others'
carl             may write in team-a as ann may, with DENY of the versions of registered models
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.mlflow_server import PASSWORD, Server
from support.receiver import Receiver
from support.tracking_case import make_case

from mergeops.checkpoint import weights_sha256
from mergeops.cli.main import cli
from mergeops.errors import AwayError, TrackingError
from mergeops.progress import Progress
from mergeops.promotion.approval import approve
from mergeops.promotion.champion import make_champion
from mergeops.promotion.changes import aliases, proposal
from mergeops.promotion.history import read_history
from mergeops.promotion.hooks import configured, deliver
from mergeops.recipe.settings import HooksSpec, OutputSpec, TrackingSpec
from mergeops.service.web.callers import Accounts
from mergeops.store import account_of, check_may_promote, leases, workspaces
from mergeops.store.connection import Tracking, connect, connect_to_server
from mergeops.tracking.pending import pending_trials
from mergeops.tracking.sync import sync_trials

pytestmark = pytest.mark.integration
TEAMS = ("team-a", "team-b")
AUTH_CONFIG = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/accounts.db
admin_username = admin
auth_cache_ttl_seconds = 600
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory, template_database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("accounts")
    config = folder / "auth.ini"
    config.write_text(AUTH_CONFIG.format(folder=folder))
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "0",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(b"k" * 32).decode(),
    }
    running = Server(
        folder, template_database, environment=environment, password=PASSWORD, workspaces=True
    )
    running.start()
    with pytest.MonkeyPatch.context() as patch:
        as_user(patch, "admin")
        _fill(running)
    yield running
    running.stop()


def _fill(server: Server) -> None:
    import mlflow
    from mlflow.server.auth.client import AuthServiceClient

    client, users = mlflow.MlflowClient(server.uri), AuthServiceClient(server.uri)
    for name in ("ann", "ben", "carl", "service"):
        users.create_user(name, PASSWORD)
    for team in TEAMS:
        client.create_workspace(team)
        role = users.create_role(workspace=team, name="members")
        users.add_role_permission(role.id, "workspace", "*", "USE")
        for name in ("ann", "ben", "carl", "service") if team == "team-a" else ("ann", "service"):
            users.assign_role(name, role.id)
    writers = users.create_role(workspace="team-a", name="writers")
    for thing in ("registered_model", "experiment"):
        users.add_role_permission(writers.id, thing, "*", "EDIT")
    for name in ("ann", "carl", "service"):
        users.assign_role(name, writers.id)
    trainers = users.create_role(workspace="team-a", name="trainers")
    users.add_role_permission(trainers.id, "registered_model_version", "*", "DENY")
    users.assign_role("carl", trainers.id)
    # In a workspace nobody has the server's default permission.
    readers = users.create_role(workspace="team-a", name="readers")
    for thing in ("registered_model", "experiment"):
        users.add_role_permission(readers.id, thing, "*", "READ")
    users.assign_role("ben", readers.id)


def as_user(patch: pytest.MonkeyPatch, name: str) -> None:
    patch.setenv("MLFLOW_TRACKING_USERNAME", name)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


@pytest.fixture(autouse=True)
def users_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from mlflow.utils.workspace_context import set_workspace

    monkeypatch.setenv("MLFLOW_WORKSPACE", "unset")
    monkeypatch.delenv("MLFLOW_WORKSPACE")
    monkeypatch.setattr(workspaces, "_switched", (None, ""))
    as_user(monkeypatch, "ann")
    yield
    set_workspace(None)


def spec(server: Server, workspace: str | None, **changes: Any) -> TrackingSpec:
    return TrackingSpec(
        uri=server.uri,
        workspace=workspace,
        experiment=changes.pop("experiment", "merges"),
        registered_model=changes.pop("registered_model", "skills"),
        timeout_s=5,
        **changes,
    )


def connected(server: Server, workspace: str = "team-a", **changes: Any) -> Tracking:
    return connect(spec(server, workspace, **changes))


def run(*words: str, code: int = 0) -> str:
    """What a command prints, with its error line."""
    result = CliRunner().invoke(cli, words)
    error = result.exception
    said = f"{result.stdout}{error if error is not None else ''}"
    got = getattr(error, "exit_code", result.exit_code)
    assert got == code, said
    return said


def merges(tracking: Tracking) -> list[str]:
    return [run.info.run_id for run in tracking.search_runs("tags.`mergeops.role` = 'merge'")]


@pytest.fixture
def versions(accounts: Server, request: pytest.FixtureRequest) -> Tracking:
    """A registered model of ann's with two versions, under a name of the test's own."""
    tracking = connected(accounts, registered_model=f"skills-{request.node.name}"[:60])
    name, client = tracking.spec.registered_model, tracking.client
    client.create_registered_model(name)
    for i in range(2):
        client.create_model_version(name, f"s3://bucket/{i}")
    return tracking


def test_a_kept_trial_goes_to_the_workspace_that_it_was_made_for(
    accounts: Server, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = []
    for team in TEAMS:
        made = make_case(connected(accounts, team), checkpoint)
        away = dataclasses.replace(made.tracking.spec, offline=True)
        output = OutputSpec(dir=str(tmp_path))
        recipe = dataclasses.replace(made.recipe, tracking=away, output=output)
        case = dataclasses.replace(made, tracking=connect(away), recipe=recipe)
        case = dataclasses.replace(case, weights=weights_sha256(checkpoint))
        with case.trial() as log:
            log.log_model(case.checkpoint, weights_sha256=case.weights)
            log.pending.note_registration("")
            log.pending.write()
        cases.append(case)
    # The same plan waits for both, and neither was written over.
    assert [kept.workspace for kept in pending_trials(tmp_path)] == list(TEAMS)
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-b")
    said = run("sync", f"output.dir={tmp_path}", "--dry-run")
    assert f"for {accounts.uri}, workspace team-a:" in said
    results = sync_trials(tmp_path, Progress(quiet=True))
    assert [(one.outcome, one.server) for one in results] == [
        ("logged", f"{accounts.uri}, workspace {team}") for team in TEAMS
    ]
    for team, result in zip(TEAMS, results, strict=True):
        assert merges(connected(accounts, team)) == [result.run_id]
    # What the user chose in the environment is what the next command without a recipe means.
    assert connect_to_server(spec(accounts, None)).workspace == "team-b"


def test_a_workspace_that_is_not_there_or_not_ones_own_is_named_with_those_that_are(
    accounts: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrackingError, match=r"no workspace 'team-c' that this account may enter"):
        connected(accounts, "team-c")
    as_user(monkeypatch, "ben")
    with pytest.raises(TrackingError, match=r"no workspace 'team-b' .* may enter: team-a; set"):
        connected(accounts, "team-b")


def test_a_server_without_workspaces_says_so(server: Server, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"has no workspaces, but tracking.workspace or MLFLOW"):
        connected(server, "team-a")
    database = TrackingSpec(uri=f"sqlite:///{tmp_path}/mlflow.db", workspace="team-a")
    with pytest.raises(TrackingError, match="is opened directly and has none; use the address of"):
        connect(database)


def test_two_workspaces_have_locks_and_pages_of_their_own(accounts: Server) -> None:
    a, b = (connected(accounts, team) for team in TEAMS)
    assert a.place != b.place
    assert a.registry_place != b.registry_place
    assert str(a.run_page("1")).endswith("/runs/1?workflowType=machine_learning&workspace=team-a")


def test_the_lease_of_another_accounts_dead_process_is_taken_over(
    versions: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, client = versions.spec.registered_model, versions.client
    claim = {"host": "elsewhere#1", "pid": 1, "at": time.time() - leases.LEASE_S - 1}
    client.set_registered_model_tag(name, f"{leases.CLAIM}0", json.dumps(claim))
    # What mergeops 0.1 left behind belongs to who made it.
    dead = json.dumps({"token": "t", "host": leases._host(), "pid": 2**22 + 1})
    client.create_registered_model(f"{name} (mergeops lock)", {leases.HOLDER: dead})
    as_user(monkeypatch, "service")
    with leases.lease(versions, "the champion", name) as check:
        check()
    tags = client.get_registered_model(name).tags
    assert [tag for tag in tags if tag.startswith(leases.CLAIM)] == []


def test_who_may_only_read_is_told_which_permission_moving_the_champion_takes(
    versions: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = versions.spec.registered_model
    check_may_promote(versions, name)
    as_user(monkeypatch, "ben")
    with pytest.raises(AwayError, match="'ben' may not set registered model alias"):
        check_may_promote(versions, name)
    with pytest.raises(AwayError) as caught:
        make_champion(versions, name, 1, {}, passed=True, user="ben")
    said = str(caught.value)
    assert said.startswith(f"the MLflow server at {versions.uri} denies access: the account 'ben'")
    assert f"may not set registered model tag '{name}', which takes EDIT of the reg" in said
    assert "\n" not in said
    words = (f"tracking.uri={versions.uri}", "tracking.workspace=team-a")
    assert "takes EDIT of the registered model" in run("rollback", name, *words, code=6)
    assert aliases(versions, name) == {}


def test_a_rule_for_one_alias_cannot_be_written(
    accounts: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.client import AuthServiceClient

    as_user(monkeypatch, "admin")
    users = AuthServiceClient(accounts.uri)
    role = users.create_role(workspace="team-a", name="no champion")
    for kind, pattern in (
        ("registered_model_alias", "champion"),
        ("registered_model_version", "skills@champion"),
        ("registered_model_version", "champion"),
    ):
        with pytest.raises(MlflowException, match=r"Invalid resource type|supports only wildcard"):
            users.add_role_permission(role.id, kind, pattern, "DENY")


def test_who_is_denied_the_versions_may_not_move_the_champion_and_the_service_may(
    versions: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = versions.spec.registered_model
    as_user(monkeypatch, "carl")
    wanted = (
        rf"the account 'carl' may not set registered model alias '{name}', which takes EDIT of the "
        "registered model and READ of its versions"
    )
    with pytest.raises(AwayError, match=wanted):
        check_may_promote(versions, name)
    with pytest.raises(AwayError, match=r"takes READ of the registered model and its versions"):
        make_champion(versions, name, 1, {}, passed=True, user="carl")
    as_user(monkeypatch, "service")
    check_may_promote(versions, name)
    make_champion(versions, name, 1, {}, passed=True, user="service")
    # Nor may carl move it with MLflow itself.
    as_user(monkeypatch, "carl")
    with pytest.raises(AwayError, match="may not set registered model alias"):
        versions.client.set_registered_model_alias(name, "champion", "2")
    as_user(monkeypatch, "service")
    assert aliases(versions, name) == {"champion": 1}


def test_the_trial_of_who_may_not_log_it_is_kept_and_the_permission_named(
    accounts: Server, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_case(connected(accounts), checkpoint, finetunes="of ben")
    recipe = dataclasses.replace(made.recipe, output=OutputSpec(dir=str(tmp_path)))
    case = dataclasses.replace(made, recipe=recipe)
    as_user(monkeypatch, "ben")
    message = r"the account 'ben' may not create run, which takes EDIT of the exp.* `mergeops sync`"
    # A plan that nobody has logged in this workspace.
    with pytest.raises(AwayError, match=message), case.trial(plan_digest="b" * 64) as log:
        log.log_model(case.checkpoint, weights_sha256=case.weights)
    [kept] = pending_trials(tmp_path)
    assert kept.workspace == "team-a"


def test_the_service_asks_the_server_whom_a_name_and_a_password_belong_to(
    accounts: Server, server: Server
) -> None:
    assert account_of(accounts.uri, "ben", PASSWORD, 10) == ("ben", False)
    assert account_of(accounts.uri, "ben", "wrong", 10) is None
    assert account_of(accounts.uri, "nobody", "", 10) is None
    with pytest.raises(TrackingError, match="does not say who asks; it has accounts where it is"):
        account_of(server.uri, "ben", PASSWORD, 10)
    with pytest.raises(AwayError, match="cannot reach the MLflow server"):
        account_of("http://127.0.0.1:9", "ben", PASSWORD, 10)

    callers = Accounts(accounts.uri, {"viewer": ("*",), "approver": ("ben",)}, 10)

    def roles(user: str, password: str = PASSWORD) -> set[str] | None:
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        caller = asyncio.run(callers.caller(credentials))
        assert caller is None or caller.name == user
        return None if caller is None else set(caller.roles)

    assert roles("ben") == {"viewer", "approver"}
    assert roles("ann") == {"viewer"}
    assert roles("admin") == {"viewer", "operator", "approver"}
    assert roles("ann", "wrong") is None
    assert asyncio.run(callers.caller("no base64")) is None


def test_a_missing_model_is_no_question_of_the_password(accounts: Server) -> None:
    with pytest.raises(TrackingError, match=r"no registered model 'nothing' at .* workspace team-"):
        read_history(connected(accounts), "nothing")


def test_an_approval_is_completed_by_who_may_set_aliases_and_not_delete_them(
    versions: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = versions.spec.registered_model
    make_champion(versions, name, 1, {}, passed=True, user="ann", approval=True)
    as_user(monkeypatch, "service")
    assert approve(versions, name, user="service").to == 1
    assert proposal(versions, name) is None
    # MLflow keeps the alias, and the history shows that nothing waits.
    assert aliases(versions, name) == {"champion": 1, "challenger": 1}
    assert read_history(versions, name).challenger is None
    assert [event.what for event in read_history(versions, name).events] == [
        *("proposed", "approved and promoted"),
    ]


def test_doctor_shows_server_workspace_account_and_what_it_may_do(
    versions: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = versions.spec.registered_model
    words = [f"tracking.uri={versions.uri}", "tracking.workspace=team-a"]
    words += ["tracking.experiment=merges", f"tracking.registered_model={name}"]

    def checks() -> dict[str, dict[str, str]]:
        found = CliRunner().invoke(cli, ["doctor", "--json", *words]).stdout
        return {check["name"]: check for check in json.loads(found)}

    before = versions.client.get_registered_model(name)
    mine = checks()
    assert mine["tracking"]["detail"].startswith(versions.uri)
    assert mine["workspace"]["detail"] == "team-a"
    assert mine["account"]["status"] == "ok"
    assert mine["account"]["detail"] == (
        f"ann may log to experiment 'merges'; register versions of '{name}' and move its aliases; "
        "make experiments and registered models"
    )
    as_user(monkeypatch, "ben")
    bens = checks()["account"]
    assert bens["status"] == "warn"
    assert f"may not log to experiment 'merges'; register versions of '{name}'" in bens["detail"]
    assert "takes EDIT of the registered model" in bens["fix"]
    as_user(monkeypatch, "admin")
    assert checks()["account"]["detail"] == "admin, an administrator"
    after = versions.client.get_registered_model(name)
    assert (after.tags, after.aliases) == (before.tags, before.aliases)


def verified(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """As MLflow documents it."""
    got = {name.lower(): value for name, value in headers.items()}
    signed = f"{got['x-mlflow-delivery-id']}.{got['x-mlflow-timestamp']}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    wanted = f"v1,{base64.b64encode(digest).decode()}"
    is_fresh = abs(time.time() - int(got["x-mlflow-timestamp"])) < 60
    return is_fresh and hmac.compare_digest(wanted, got["x-mlflow-signature"])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.stop()


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert done()


def test_a_deployer_is_told_signed_of_a_champion_and_of_no_lock(
    versions: Tracking, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = versions.spec.registered_model
    words = [f"tracking.uri={versions.uri}", "tracking.workspace=team-a"]
    denied = run("hooks", "mlflow", receiver.url, *words, "--unsigned", code=6)
    assert "'ann' may not list webhooks, which takes an administrator's account" in denied

    as_user(monkeypatch, "admin")
    monkeypatch.delenv("MERGEOPS_WEBHOOK_SECRET", raising=False)
    said = run("hooks", "mlflow", receiver.url, *words, code=2)
    assert "set MERGEOPS_WEBHOOK_SECRET in the environment, or name --secret-file FILE" in said
    (tmp_path / "secret").write_text("first one\n")
    said = run(
        "hooks", "mlflow", receiver.url, *words, "--secret-file", str(tmp_path / "secret"),
        "--events", "model_version_alias.created,registered_model.created",
    )  # fmt: skip
    assert said.startswith("set up: mergeops-127.0.0.1-")
    # The same URL again changes it: here the secret.
    monkeypatch.setenv("MERGEOPS_WEBHOOK_SECRET", "between us")
    changed = json.loads(
        run(
            "hooks", "mlflow", receiver.url, *words, "--json",
            "--events", "model_version_alias.created,registered_model.created",
        )
    )  # fmt: skip
    assert changed["is_new"] is False
    listed = json.loads(run("hooks", "list", *words, "--json"))
    assert [(hook["name"], hook["url"]) for hook in listed] == [(changed["name"], receiver.url)]
    assert json.loads(run("hooks", "list", words[0], "tracking.workspace=team-b", "--json")) == []

    assert run("hooks", "test", changed["name"], *words).endswith("answered 200\n")
    assert verified("between us", *receiver.got.pop())
    receiver.codes = [401]
    said = run("hooks", "test", changed["name"], *words, code=6)
    assert "answered 401; check that it runs" in said
    receiver.codes = [200]
    receiver.got.clear()

    as_user(monkeypatch, "ann")
    make_champion(versions, name, 2, {}, passed=True, user="ann")
    wait_for(lambda: len(receiver.got) >= 1)
    time.sleep(0.3)
    told = [json.loads(body) for _, body in receiver.got]
    assert all(verified("between us", *delivery) for delivery in receiver.got)
    assert [(one["entity"], one["data"]["alias"], one["data"]["version"]) for one in told] == [
        ("model_version_alias", "champion", "2")
    ]

    as_user(monkeypatch, "admin")
    assert run("hooks", "remove", receiver.url, *words).startswith("removed: mergeops-127.0.0.1-")
    assert run("hooks", "list", *words) == "no webhook; `mergeops hooks mlflow URL` sets one up\n"
    said = run("hooks", "remove", "mine", *words)
    assert said == "there is no webhook mine, so nothing is removed; webhooks: none\n"
    said = run("hooks", "test", "mine", *words, code=6)
    assert "there is no webhook 'mine' at" in said
    said = run("hooks", "mlflow", receiver.url, *words, "--events", "alias.moved", code=2)
    assert "--events has 'alias.moved'; MLflow knows: model_version.created, " in said


def test_the_deployer_of_the_docs_deploys_each_new_champion_once_and_nothing_forged(
    versions: Tracking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = versions.spec.registered_model
    monkeypatch.setenv("MERGEOPS_WEBHOOK_SECRET", "between us")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    script = Path(__file__).parents[2] / "docs" / "deployer.py"
    deployed = tmp_path / "deployed"
    command = ["sh", "-c", f"echo $MODEL_NAME $MODEL_VERSION >> {deployed}"]
    as_user(monkeypatch, "ann")
    account = {"MLFLOW_TRACKING_URI": versions.uri, "MLFLOW_WORKSPACE": "team-a"}
    deployer = subprocess.Popen(
        [sys.executable, str(script), str(port), *command], env={**os.environ, **account}
    )
    try:
        wait_for(lambda: answers(url))
        as_user(monkeypatch, "admin")
        words = [f"tracking.uri={versions.uri}", "tracking.workspace=team-a"]
        run("hooks", "mlflow", url, *words)
        as_user(monkeypatch, "ann")
        ours = HooksSpec(webhook=url)
        for version in (2, 1):
            make_champion(
                versions, name, version, {}, passed=True, user="ann", hooks=configured(ours)
            )
            # MLflow tells it, and so does mergeops.
            deliver(versions, name, ours)
            wait_for(
                lambda version=version: (
                    deployed.exists() and f"{name} {version}\n" in deployed.read_text()
                )
            )
        time.sleep(0.3)
        assert deployed.read_text() == f"{name} 2\n{name} 1\n"
        deployed.unlink()
        forged = json.dumps({"event": "promote", "name": "other", "version": 9}).encode()
        headers = {"X-Mergeops-Signature": "v1=00", "X-Mergeops-Timestamp": str(int(time.time()))}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(urllib.request.Request(url, forged, headers), timeout=5)
        assert not deployed.exists()
        as_user(monkeypatch, "admin")
        run("hooks", "remove", url, *words)
    finally:
        deployer.kill()
        deployer.wait()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def test_only_a_server_sends_webhooks_and_a_refused_url_says_what_to_do(
    server: Server, tracking: Tracking
) -> None:
    said = run("hooks", "list", f"tracking.uri={tracking.uri}", code=6)
    assert "is opened directly, and only an MLflow server sends webhooks; start one" in said
    words = (f"tracking.uri={server.uri}", "--unsigned")
    said = run("hooks", "mlflow", "http://hooks.example/x", *words, code=6)
    assert "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https, or use an https:// URL" in said
    said = run("hooks", "mlflow", "https://127.0.0.1/x", *words, code=6)
    assert "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true where the receiver is in" in said
    assert "write the http(s):// address" in run("hooks", "mlflow", "hooks.example", *words, code=2)
