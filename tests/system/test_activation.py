"""Socket activation: what the variables say, and real descriptors handed to a real process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from swapd.errors import StartupError
from swapd.system.activation import take_sockets

CHILD = """
import os, sys
from swapd.system.activation import take_sockets
(listener,) = take_sockets(os.environ, os.getpid())
assert not [name for name in os.environ if name.startswith("LISTEN_")]
assert not os.get_inheritable(listener.fileno()) and not listener.getblocking()
listener.setblocking(True)
connection, _ = listener.accept()
connection.sendall(f"{listener.fileno()}".encode())
"""

SHELL = 'exec 3<&"$1"; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http exec "$2" -c "$3"'


def test_a_passed_socket_is_served_by_a_real_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        child = subprocess.Popen(["/bin/bash", "-c", SHELL, "bash", str(fd), sys.executable, CHILD], pass_fds=[fd])
        with child, socket.create_connection(listener.getsockname(), timeout=30) as client:
            assert client.recv(100) == b"3"
        assert child.returncode == 0


def test_sockets_meant_for_another_process_are_left_alone() -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "http"}
    assert take_sockets(environ, 77) == ()
    assert environ == {}


def test_without_the_variables_there_are_no_sockets() -> None:
    assert take_sockets({}, 77) == ()


@pytest.mark.parametrize("count", ["", "many", "-1", "65", "٣"])
def test_a_bad_count_is_a_startup_error(count: str) -> None:
    with pytest.raises(StartupError, match="LISTEN_FDS"):
        take_sockets({"LISTEN_FDS": count, "LISTEN_PID": "77"}, 77)


def test_a_descriptor_that_is_no_socket_is_a_startup_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(StartupError, match=f"descriptor {fd}.* is no socket"):
            take_sockets({"LISTEN_FDS": "1", "LISTEN_PID": "77"}, 77, first_fd=fd)
    finally:
        os.close(fd)


def test_a_socket_that_does_not_listen_is_a_startup_error() -> None:
    with socket.socket() as idle:
        fd = os.dup(idle.fileno())
        with pytest.raises(StartupError, match="does not listen"):
            take_sockets({"LISTEN_FDS": "1", "LISTEN_PID": "77"}, 77, first_fd=fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
