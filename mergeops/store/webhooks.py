"""Webhooks of MLflow's own registry: the server tells a deployer of aliases, versions and tags.

MLflow signs each delivery with HMAC-SHA256, see docs/servers.md. Webhooks belong to a workspace,
and only an administrator of a server with accounts may make, see or change them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mergeops.errors import AwayError, ConfigError, TrackingError
from mergeops.redact import redact
from mergeops.store.client import pages
from mergeops.store.connection import Tracking

if TYPE_CHECKING:
    from mlflow.entities.webhook import Webhook

DEPLOYERS = ("model_version_alias.created", "model_version_alias.deleted")
"""What who serves ``models:/NAME@champion`` has to know. Moving an alias is ``created``."""
SERVER_RULES = (
    (
        "scheme",
        "start the server with MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https, or use an https:// URL",
    ),
    (
        "resolve",
        "start the server with MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true where the receiver is in your "
        "own network",
    ),
)
"""Sign in MLflow's refusal of a URL -> what to do."""


@dataclass(frozen=True, kw_only=True)
class RegistryWebhook:
    """One webhook, without its secret."""

    name: str
    id: str
    url: str
    """Without credentials."""
    events: tuple[str, ...]
    status: str
    """ACTIVE or DISABLED."""
    is_new: bool = field(default=False, compare=False)
    """Whether this command made it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "events": list(self.events)}


@dataclass(frozen=True)
class WebhookAnswer:
    """What the receiver said to a test delivery."""

    webhook: RegistryWebhook
    passed: bool
    said: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"webhook": self.webhook.to_dict(), "passed": self.passed, "said": self.said}


def known_events() -> list[str]:
    """Every event of a registered model that MLflow can tell of."""
    from mlflow.entities.webhook import VALID_ENTITY_ACTIONS

    return sorted(
        f"{entity.value}.{action.value}"
        for entity, actions in VALID_ENTITY_ACTIONS.items()
        for action in actions
        if entity.value.startswith(("registered_model", "model_version"))
    )


def check_events(events: Sequence[str]) -> None:
    """Refuse what is no event.

    Raises:
        ConfigError: names it, and all that there are.
    """
    known = known_events()
    for event in events:
        if event not in known:
            raise ConfigError(f"--events has {event!r}; MLflow knows: {', '.join(known)}")


def set_webhook(
    tracking: Tracking,
    url: str,
    *,
    name: str | None = None,
    events: Sequence[str] = DEPLOYERS,
    secret: str | None = None,
) -> RegistryWebhook:
    """Have the server tell ``url``; a webhook of that name or URL is changed, not made twice.

    Args:
        url: that is posted to.
        name: None makes one of the URL's host.
        events: which events, see ``known_events``.
        secret: that deliveries are signed with; None leaves them unsigned, or the old one in place.

    Raises:
        ConfigError: no http(s) URL, or an unknown event.
        TrackingError: the registry is no server, or the server refuses.
    """
    check_events(events)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"URL is {redact(url)!r}; write the http(s):// address of the receiver")
    _check_server(tracking)
    found = [hook for hook in _webhooks(tracking) if name in (hook.name, None) and hook.url == url]
    found = found or [hook for hook in _webhooks(tracking) if name == hook.name]
    name = name or (found[0].name if found else _name_of(url))
    facts: dict[str, Any] = {"name": name, "url": url, "events": list(events)}
    if secret is not None:
        facts["secret"] = secret
    try:
        if found:
            made = tracking.client.update_webhook(found[0].webhook_id, **facts, status="ACTIVE")
        else:
            about = "Set up by mergeops hooks mlflow."
            made = tracking.client.create_webhook(**facts, description=about)
    except TrackingError as error:
        advice = [todo for sign, todo in SERVER_RULES if "URL" in str(error) and sign in str(error)]
        if advice:
            raise TrackingError(f"{error}; {advice[0]}") from error
        raise
    return _plain(made, is_new=not found)


def webhooks(tracking: Tracking) -> list[RegistryWebhook]:
    """Every webhook of the registry, in its workspace."""
    _check_server(tracking)
    return [_plain(hook) for hook in _webhooks(tracking)]


def remove_webhook(tracking: Tracking, which: str) -> RegistryWebhook | None:
    """Delete a webhook, by name, id or URL.

    Returns:
        The webhook that was there; None where there is none such.
    """
    _check_server(tracking)
    hook = _named(_webhooks(tracking), which)
    if hook is None:
        return None
    tracking.client.delete_webhook(hook.webhook_id)
    return _plain(hook)


def try_webhook(tracking: Tracking, which: str, event: str | None = None) -> WebhookAnswer:
    """Have the server send a webhook an example of an event.

    Args:
        event: None is the webhook's first.

    Raises:
        TrackingError: there is none such.
        ConfigError: unknown event.
    """
    from mlflow.entities.webhook import WebhookEvent

    check_events([event] if event else [])
    hook = _find(tracking, which)
    example = WebhookEvent(*event.split(".")) if event else None
    result = tracking.client.test_webhook(hook.webhook_id, example)
    said = result.error_message or f"answered {result.response_status}"
    if not result.error_message and not result.success and result.response_body:
        said += f": {result.response_body[:200]}"
    return WebhookAnswer(_plain(hook), bool(result.success), " ".join(said.split()))


def _find(tracking: Tracking, which: str) -> Webhook:
    _check_server(tracking)
    every = _webhooks(tracking)
    if (hook := _named(every, which)) is not None:
        return hook
    names = ", ".join(sorted(hook.name for hook in every)) or "none"
    raise TrackingError(
        f"there is no webhook {redact(which)!r} at {tracking.shown_place}; its webhooks: {names}"
    )


def _named(every: list[Webhook], which: str) -> Webhook | None:
    return next((h for h in every if which in (h.name, h.webhook_id, h.url)), None)


def _webhooks(tracking: Tracking) -> list[Webhook]:
    try:
        return [hook for page in pages(tracking.client.list_webhooks) for hook in page]
    except AwayError as error:
        if "fails inside" not in str(error):
            raise
        raise AwayError(
            f"{error}; so it does where MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY is not what it was "
            "when a webhook got its secret: set it for the server, see docs/servers.md"
        ) from error


def _check_server(tracking: Tracking) -> None:
    uri = tracking.registry_uri or tracking.uri
    if not uri.startswith("http"):
        raise TrackingError(
            f"{redact(uri)} is opened directly, and only an MLflow server sends webhooks; start "
            "one over it with `mlflow server --backend-store-uri`, and set tracking.uri or "
            "MLFLOW_TRACKING_URI to its address"
        )


def _plain(hook: Webhook, *, is_new: bool = False) -> RegistryWebhook:
    return RegistryWebhook(
        name=hook.name,
        id=hook.webhook_id,
        url=str(redact(hook.url)),
        events=tuple(sorted(str(event) for event in hook.events)),
        status=str(getattr(hook.status, "value", hook.status)),
        is_new=is_new,
    )


def _name_of(url: str) -> str:
    """A name that MLflow takes: letters, digits, ``.``, ``_`` and ``-``, at most 62."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", urlsplit(url).hostname or "")[:40].strip(".-")
    return f"mergeops-{host}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
