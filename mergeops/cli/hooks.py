"""``mergeops hooks``: have the MLflow server tell a deployer of aliases and versions."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mergeops import store
from mergeops.cli.console import console, echo, escape, table
from mergeops.cli.options import AS_JSON, CONFIG_DIR, OVERRIDES, PATH, Call, options
from mergeops.errors import ConfigError, TrackingError
from mergeops.store import DEPLOYERS, RegistryWebhook, Tracking, WebhookAnswer, connect_to_server

SECRET_VARIABLE = "MERGEOPS_WEBHOOK_SECRET"
WHICH = click.argument("which", metavar="NAME")


@click.group()
def hooks() -> None:
    """Webhooks of MLflow's registry: who is told when an alias moves.

    The server sends and signs them, whoever moves the alias; promote.hooks are those of a
    promotion by mergeops.
    """


@hooks.command()
@click.argument("url")
@OVERRIDES
@click.option("--name", help="Of the webhook; default: made of the URL's host.")
@click.option(
    "--events",
    default=",".join(DEPLOYERS),
    show_default=True,
    help="Which, with commas between them.",
)
@click.option(
    "--secret-env",
    default=SECRET_VARIABLE,
    show_default=True,
    help="Environment variable that holds the secret to sign with.",
)
@click.option("--secret-file", type=PATH, help="File that holds it, in place of the variable.")
@click.option("--unsigned", is_flag=True, help="Sign nothing: anybody may then claim to be MLflow.")
@options(CONFIG_DIR, AS_JSON)
def mlflow(
    call: Call,
    url: str,
    name: str | None,
    events: str,
    secret_env: str,
    secret_file: Path | None,
    unsigned: bool,
) -> None:
    """Have the MLflow server post to URL when an alias of a registered model is set or deleted.

    The same URL or name again changes the webhook that is there.
    """
    secret = None if unsigned else read_secret(secret_env, secret_file)
    wanted = [event.strip() for event in events.split(",") if event.strip()]
    if not wanted:
        raise ConfigError(f"--events is empty; e.g. {','.join(DEPLOYERS)}")
    store.check_events(wanted)
    tracking = _registry(call)
    made = store.set_webhook(tracking, url, name=name, events=wanted, secret=secret)
    call.show(made, lambda hook: print_set(hook, tracking))


@hooks.command("list")
@OVERRIDES
@options(CONFIG_DIR, AS_JSON)
def list_hooks(call: Call) -> None:
    """The webhooks of the registry."""
    call.show(store.webhooks(_registry(call)), print_webhooks)


@hooks.command()
@WHICH
@OVERRIDES
@options(CONFIG_DIR, AS_JSON)
def remove(call: Call, which: str) -> None:
    """Delete the webhook of this name, id or URL."""
    tracking = _registry(call)
    gone = store.remove_webhook(tracking, which)
    if gone is not None:
        return call.show(gone, f"removed: {gone.name}, which told {gone.url}")
    names = ", ".join(hook.name for hook in store.webhooks(tracking)) or "none"
    call.show({}, f"there is no webhook {which}, so nothing is removed; webhooks: {names}")


@hooks.command()
@WHICH
@OVERRIDES
@click.option("--event", help="An example of which event; default: the webhook's first.")
@options(CONFIG_DIR, AS_JSON)
def test(call: Call, which: str, event: str | None) -> None:
    """Have the server send the webhook an example, and say what the receiver answered."""
    result = store.try_webhook(_registry(call), which, event)
    call.show(result, print_test)
    if not result.passed:
        raise TrackingError(
            f"{result.webhook.url} {result.said}; check that it runs, that the server reaches it, "
            "and that it verifies the signature with the same secret"
        )


def read_secret(variable: str, file: Path | None) -> str:
    """The secret to sign with.

    Raises:
        ConfigError: there is none, or the file cannot be read.
    """
    if file is not None:
        try:
            secret = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"--secret-file {file} cannot be read: {reason}") from error
        if not secret:
            raise ConfigError(f"--secret-file {file} is empty; write the secret into it")
        return secret
    secret = os.environ.get(variable, "")
    if not secret:
        raise ConfigError(
            f"a webhook needs a secret to be signed with: set {variable} in the environment, or "
            "name --secret-file FILE; --unsigned goes without"
        )
    return secret


def print_set(hook: RegistryWebhook, tracking: Tracking) -> None:
    """What was set up, and how it is tried."""
    out = console()
    done = "set up" if hook.is_new else "changed"
    where = f"{tracking.shown_place} tells {hook.url} of {', '.join(hook.events)}"
    out.print(f"[bold green]{done}[/]: {escape(f'{hook.name}: {where}')}", soft_wrap=True)
    out.print(f"next: mergeops hooks test {escape(hook.name)}", style="dim", soft_wrap=True)


def print_webhooks(found: list[RegistryWebhook]) -> None:
    """One line a webhook."""
    rows = [(hook.name, hook.status, ", ".join(hook.events), hook.url) for hook in found]
    if rows:
        console().print(table(("name", "status", "events", "URL"), rows))
    else:
        echo("no webhook; `mergeops hooks mlflow URL` sets one up")


def print_test(result: WebhookAnswer) -> None:
    """What the receiver said."""
    verdict = "ok" if result.passed else "failed"
    echo(f"{verdict}: {result.webhook.url} {result.said}")


def _registry(call: Call) -> Tracking:
    return connect_to_server(call.recipe().tracking)
