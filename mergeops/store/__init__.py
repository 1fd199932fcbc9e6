"""The MLflow server as a guest sees it: one connection, its errors, limits, locks and bytes.

Stands on: checkpoint, errors, kernels, recipe, redact.
"""

from mergeops.store.accounts import account, account_of, check_may_promote
from mergeops.store.address import chosen_uri
from mergeops.store.artifacts import is_http, is_s3
from mergeops.store.client import (
    STORAGE_PACKAGES,
    is_denied,
    is_missing,
    is_unreadable,
    missing_package,
    new_client,
    or_none,
    pages,
    quiet,
)
from mergeops.store.connection import (
    Tracking,
    connect,
    connect_to_read,
    connect_to_server,
    current_user,
    reach,
)
from mergeops.store.flavours import AdapterBase, flavour_of
from mergeops.store.glances import Subjects, glance, look_at_store
from mergeops.store.keys import (
    flatten,
    folded,
    hidden,
    hidden_facts,
    key,
    model_name,
    own_tags,
    quoted,
    run_filters,
    run_name,
    spellings,
    tag_value,
    with_tags,
)
from mergeops.store.leases import lease
from mergeops.store.lock import only_one
from mergeops.store.made_once import (
    elect,
    ensure_registered_model,
    finish_external_model,
    link_version,
    log_inputs,
    log_params,
)
from mergeops.store.no_redirects import NoRedirects
from mergeops.store.packaging import upload
from mergeops.store.probe import access, try_artifacts
from mergeops.store.seen_names import keep_seen, seen
from mergeops.store.webhooks import (
    DEPLOYERS,
    RegistryWebhook,
    WebhookAnswer,
    check_events,
    remove_webhook,
    set_webhook,
    try_webhook,
    webhooks,
)

__all__ = [
    "DEPLOYERS",
    "STORAGE_PACKAGES",
    "AdapterBase",
    "NoRedirects",
    "RegistryWebhook",
    "Subjects",
    "Tracking",
    "WebhookAnswer",
    "access",
    "account",
    "account_of",
    "check_events",
    "check_may_promote",
    "chosen_uri",
    "connect",
    "connect_to_read",
    "connect_to_server",
    "current_user",
    "elect",
    "ensure_registered_model",
    "finish_external_model",
    "flatten",
    "flavour_of",
    "folded",
    "glance",
    "hidden",
    "hidden_facts",
    "is_denied",
    "is_http",
    "is_missing",
    "is_s3",
    "is_unreadable",
    "keep_seen",
    "key",
    "lease",
    "link_version",
    "log_inputs",
    "log_params",
    "look_at_store",
    "missing_package",
    "model_name",
    "new_client",
    "only_one",
    "or_none",
    "own_tags",
    "pages",
    "quiet",
    "quoted",
    "reach",
    "remove_webhook",
    "run_filters",
    "run_name",
    "seen",
    "set_webhook",
    "spellings",
    "tag_value",
    "try_artifacts",
    "try_webhook",
    "upload",
    "webhooks",
    "with_tags",
]
