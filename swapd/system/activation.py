"""Takes over listening sockets that the service manager opened: systemd's LISTEN_FDS protocol.

Owns the descriptors from 3 on when they were passed to this process, and nothing otherwise. Must never open
a socket of its own. Source: systemd's sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

from swapd.errors import StartupError

FIRST_FD = 3
MAX_SOCKETS = 64


def take_sockets(environ: MutableMapping[str, str], pid: int, first_fd: int = FIRST_FD) -> tuple[socket.socket, ...]:
    """The sockets passed to this process, non-blocking and close-on-exec; the caller closes them.

    Removes the variables, so that no child takes the descriptors for its own. Raises `StartupError` when what
    was passed cannot be served from.
    """
    count = _passed_count(environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", ""), pid)
    environ.pop("LISTEN_FDNAMES", None)
    with contextlib.ExitStack() as on_error:
        sockets = tuple(on_error.enter_context(_listening_socket(fd)) for fd in range(first_fd, first_fd + count))
        on_error.pop_all()
        return sockets


def _passed_count(listen_fds: str, listen_pid: str, pid: int) -> int:
    if listen_pid != str(pid):
        return 0
    if not listen_fds.isascii() or not listen_fds.isdigit() or int(listen_fds) > MAX_SOCKETS:
        raise StartupError(f"LISTEN_FDS is {listen_fds!r}; it must be a number of sockets, at most {MAX_SOCKETS}")
    return int(listen_fds)


def _listening_socket(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        passed = socket.socket(fileno=fd)
    except OSError as error:
        raise StartupError(f"descriptor {fd}, passed by the service manager, is no socket: {error.strerror}") from error
    if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        passed.close()
        raise StartupError(f"descriptor {fd}, passed by the service manager, does not listen: use ListenStream=")
    passed.setblocking(False)
    return passed
