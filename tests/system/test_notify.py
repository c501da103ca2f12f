"""The notifications, received on a real datagram socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapd.system.notify import MAX_STATUS_CHARACTERS, Notifier, watchdog_interval_s


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        receiver.bind(str(tmp_path / "notify"))
        yield receiver


@pytest.fixture
def notifier(manager: socket.socket) -> Notifier:
    return Notifier(manager.getsockname())


def test_ready_carries_its_status_in_one_datagram(manager: socket.socket, notifier: Notifier) -> None:
    notifier.ready("serving 2 models")
    assert manager.recv(4096) == b"READY=1\nSTATUS=serving 2 models"


def test_a_reload_says_when_it_began_by_the_monotonic_clock(manager: socket.socket, notifier: Notifier) -> None:
    notifier.reloading(12.5)
    assert manager.recv(4096) == b"RELOADING=1\nMONOTONIC_USEC=12500000"


def test_stopping_watchdog_and_timeout_extension_use_the_protocols_words(
    manager: socket.socket, notifier: Notifier
) -> None:
    notifier.stopping("draining")
    notifier.watchdog()
    notifier.extend_timeout(1.5)
    assert [manager.recv(4096) for _ in range(3)] == [
        b"STOPPING=1\nSTATUS=draining",
        b"WATCHDOG=1",
        b"EXTEND_TIMEOUT_USEC=1500000",
    ]


def test_a_line_break_in_a_status_cannot_forge_a_field(manager: socket.socket, notifier: Notifier) -> None:
    notifier.status("loading evil\nMAINPID=1\r\x1b[31m")
    message = manager.recv(4096)
    assert message == b"STATUS=loading evil MAINPID=1  [31m"


def test_a_long_status_is_cut(manager: socket.socket, notifier: Notifier) -> None:
    notifier.status("x" * 10_000)
    assert len(manager.recv(20_000)) == len("STATUS=") + MAX_STATUS_CHARACTERS


def test_an_empty_status_sends_nothing(manager: socket.socket, notifier: Notifier) -> None:
    notifier.status("")
    notifier.watchdog()
    assert manager.recv(4096) == b"WATCHDOG=1"


def test_an_abstract_socket_is_reached_by_its_at_sign() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        receiver.bind(b"")  # Linux chooses a free abstract name.
        name = receiver.getsockname()
        Notifier("@" + name[1:].decode()).ready()
        assert receiver.recv(4096) == b"READY=1"


@pytest.mark.parametrize("address", [None, "", "relative", "vsock:2:1", "/no/such/socket", "/" + "x" * 500, "/a\0b"])
def test_an_absent_or_unusable_socket_is_silent(address: str | None) -> None:
    notifier = Notifier(address)
    notifier.ready("fine")
    notifier.watchdog()


def test_the_variable_is_taken_so_that_no_child_inherits_it(manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "HOME": "/root"}
    Notifier.take_from(environ).ready()
    assert manager.recv(4096) == b"READY=1"
    assert environ == {"HOME": "/root"}


def test_the_watchdog_is_fed_twice_per_timeout() -> None:
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 77) == 15.0
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000"}, 77) == 15.0


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}],
)
def test_no_watchdog_for_this_process_means_no_interval(environ: dict[str, str]) -> None:
    assert watchdog_interval_s(environ, 77) is None
