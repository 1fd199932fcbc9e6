"""The line between a driver and a worker: JSON messages over a socket that both have the key to.

Who connects proves with HMAC that it has the key of the invitation, and so does the driver
(``multiprocessing``'s challenge, in both directions); messages are JSON, so that reading one runs
nothing. What is sent is not encrypted: the line is for a cluster's own network.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import connection
from typing import Any

LONGEST = 1 << 28
"""Bytes of a message."""
PATIENCE_S = 10.0
"""In which whoever connects has to prove that it has the key."""


@dataclass(frozen=True)
class Invitation:
    """What a worker needs to find its driver."""

    number: int
    """The worker's."""
    address: str
    """HOST:PORT, or the path of a socket on this machine."""
    key: str
    """Hexadecimal; secret."""

    def text(self) -> str:
        """As a word."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Invitation:
        """Read what ``text`` wrote."""
        return cls(**json.loads(text))


class Line:
    """One end of an open line; any thread may send.

    Raises:
        OSError, EOFError: of every method, when the other end is gone.
    """

    def __init__(self, end: connection.Connection) -> None:
        self._end = end
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message."""
        data = json.dumps(message).encode()
        with self._sending:
            self._end.send_bytes(data)

    def receive(self) -> dict[str, Any]:
        """Wait for the next message."""
        message = json.loads(self._end.recv_bytes(LONGEST))
        if not isinstance(message, dict):
            raise EOFError("the other end sends no messages")
        return message

    def close(self) -> None:
        """Hang up: whoever waits for a message, at either end, gets EOFError."""
        with suppress(OSError), _socket_of(self._end) as copy:
            copy.shutdown(socket.SHUT_RDWR)


def connect(invitation: Invitation) -> Line:
    """A worker's end.

    Raises:
        OSError, multiprocessing.AuthenticationError: nobody answers, or somebody else.
    """
    address: Any = invitation.address
    if ":" in invitation.address and not invitation.address.startswith("/"):
        host, _, port = invitation.address.rpartition(":")
        address = (host, int(port))
    end = connection.Client(address, authkey=bytes.fromhex(invitation.key))
    assert isinstance(end, connection.Connection)
    _keep_alive(end)
    return Line(end)


def greet(end: connection.Connection, key: bytes) -> Line:
    """A driver's end of a line that somebody opened.

    Raises:
        OSError, EOFError, multiprocessing.AuthenticationError: it has not the key, or takes long.
    """
    hang_up = threading.Timer(PATIENCE_S, end.close)
    hang_up.daemon = True
    hang_up.start()
    try:
        connection.deliver_challenge(end, key)
        connection.answer_challenge(end, key)
    finally:
        hang_up.cancel()
    _keep_alive(end)
    return Line(end)


def _keep_alive(end: connection.Connection) -> None:
    """Notice a machine that lost its power or its network, which hangs up on nobody."""
    with _socket_of(end) as copy:
        if copy.family == socket.AF_UNIX:
            return
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                copy.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _socket_of(end: connection.Connection) -> socket.socket:
    """Another handle of the same socket, to be closed after use."""
    return socket.socket(fileno=os.dup(end.fileno()))


def own_address() -> str:
    """The address by which other machines of the network reach this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: the system says which of its addresses it would send from.
            probe.connect(("10.255.255.255", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostbyname(socket.gethostname())
