"""Requests of our own go where they were sent: a redirect would carry what they hold elsewhere."""

from __future__ import annotations

import urllib.request
from typing import Any


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Credentials and signed bodies go to the address that was configured, and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the answer counts as an error."""
