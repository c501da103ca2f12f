"""Ports of this machine for programs that cannot listen on a Unix socket.

Owns which ports the daemon's workers have. They are below the range from which the kernel gives ports to outgoing
connections: those could take one between the choice and the moment at which the program listens. Nothing can keep
another program from doing so; that load fails, and the next one gets another port.
"""

from __future__ import annotations

import errno
import os
import socket

FIRST_PORT = 18_000
PORTS = 4_000


class Ports:
    """Goes round, so that a port that was just given back rests before its next use."""

    def __init__(self) -> None:
        # Daemons side by side begin in different places.
        self._next = os.getpid() % PORTS
        self._taken: set[int] = set()

    def take(self) -> int:
        """A port that nobody listens on. Raises `OSError` if there is none."""
        for _ in range(PORTS):
            port = FIRST_PORT + self._next
            self._next = (self._next + 1) % PORTS
            if port not in self._taken and _is_free(port):
                self._taken.add(port)
                return port
        raise OSError(errno.EADDRINUSE, f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free")

    def give_back(self, port: int) -> None:
        self._taken.discard(port)


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("", port))
        except OSError:
            return False
    return True
