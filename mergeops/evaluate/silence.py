"""Keep the harness quiet and, where it needs no network, off the network."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import urllib.parse
from collections.abc import Iterator

CHATTY = ("lm_eval", "transformers", "datasets", "evaluate", "huggingface_hub", "httpx", "absl")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the harness's logs and bars for the block; what it prints goes to stderr.

    stdout carries our results, and the harness's own bars would tear ours apart.
    """
    import datasets
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    with contextlib.ExitStack() as restore:
        for name in CHATTY:
            logger = logging.getLogger(name)
            restore.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if transformers_logging.is_progress_bar_enabled() or not are_progress_bars_disabled():
            restore.callback(transformers_logging.enable_progress_bar)
            transformers_logging.disable_progress_bar()
        if datasets.is_progress_bar_enabled():
            restore.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        restore.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Hub and dataset code stays off the network for the block.

    The environment is read once, when the libraries are imported; so their constants are what has
    to change, and the user's variables stay as they are.
    """
    import datasets.config
    import evaluate.config  # type: ignore[import-untyped]
    import huggingface_hub.constants

    hub = huggingface_hub.constants
    with contextlib.ExitStack() as restore:
        for module, name in (
            (hub, "HF_HUB_OFFLINE"),
            (datasets.config, "HF_HUB_OFFLINE"),
            (datasets.config, "HF_DATASETS_OFFLINE"),
            (evaluate.config, "HF_EVALUATE_OFFLINE"),
        ):
            restore.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, True)
        yield


def hub_is_reachable(timeout_s: float = 3.0) -> bool:
    """Whether a download may work: one connection try, where the hub's own retries take 20 s."""
    import datasets.config
    import huggingface_hub.constants

    if huggingface_hub.constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # only the proxy knows
    url = urllib.parse.urlparse(huggingface_hub.constants.ENDPOINT)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        with socket.create_connection((url.hostname or "", port), timeout=timeout_s):
            return True
    except OSError:
        return False
