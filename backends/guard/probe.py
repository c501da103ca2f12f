"""Asks a program whether it is ready: one connection, one GET, only its status looked at.

Owns the exchange and its deadline. Never blocks: the guard must hear of the daemon's end at any time.
"""

from __future__ import annotations

import errno
import selectors
import socket
from typing import Any

from backends.address import TcpAddress, UnixAddress, WorkerAddress

PROBE_S = 5.0
"""A program that takes a connection and says nothing for this long is asked anew."""
MAX_STATUS_BYTES = 4096
_OK = b"200"
_STATUS_PARTS = 2


class Probe:
    """One question. `step` is called when its socket is ready for what `waits_for` says, until it returns an answer."""

    def __init__(self, address: WorkerAddress, path: str | None, now_s: float) -> None:
        """Raises `OSError` if the question cannot even be begun: nobody listens there yet."""
        self._path = path
        self._asked = False
        self._answer = b""
        self.deadline_s = now_s + PROBE_S
        self._host = "localhost" if isinstance(address, UnixAddress) else address.authority
        self.socket = _connecting(address)

    @property
    def waits_for(self) -> int:
        return selectors.EVENT_READ if self._asked else selectors.EVENT_WRITE

    def step(self) -> bool | None:
        """True: it is ready. False: it is not. None: not known yet."""
        try:
            return self._read() if self._asked else self._ask()
        except BlockingIOError:
            return None
        except OSError:
            return False

    def close(self) -> None:
        self.socket.close()

    def _ask(self) -> bool | None:
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error or self._path is None:
            return not error
        self.socket.send(f"GET {self._path} HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n\r\n".encode())
        self._asked = True
        return None

    def _read(self) -> bool | None:
        data = self.socket.recv(MAX_STATUS_BYTES)
        self._answer += data
        if b"\n" not in self._answer:
            return None if data and len(self._answer) < MAX_STATUS_BYTES else False
        return self._is_ok()

    def _is_ok(self) -> bool:
        parts = self._answer.partition(b"\n")[0].split()
        return len(parts) >= _STATUS_PARTS and parts[0].startswith(b"HTTP/") and parts[1] == _OK


def is_taken(address: TcpAddress) -> bool:
    """Whether somebody listens there before the program is started."""
    try:
        with socket.create_connection((address.host, address.port), timeout=PROBE_S):
            return True
    except OSError:
        return False


def _connecting(address: WorkerAddress) -> socket.socket:
    family, target = _target(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        error = sock.connect_ex(target)
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, "connect")
    except BaseException:
        sock.close()
        raise
    return sock


def _target(address: WorkerAddress) -> tuple[socket.AddressFamily, Any]:
    if isinstance(address, UnixAddress):
        return socket.AF_UNIX, str(address.path)
    family, _, _, _, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    return family, target
