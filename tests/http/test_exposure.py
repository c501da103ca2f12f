"""Where the daemon may listen, without keys and with them."""

from __future__ import annotations

import itertools
import socket

import pytest

from swapd.errors import StartupError
from swapd.http.exposure import refuse_exposure

HERE = [
    "127.0.0.1:8686",
    "127.8.9.1:1",
    "[::1]:8686",
    "localhost:8686",
    "LOCALHOST:0",
    "unix:/run/x",
    "[::ffff:127.0.0.1]:1",
]
OPEN = [
    "0.0.0.0:8686",
    "[::]:8686",
    "192.168.1.4:8686",
    "gpubox:8686",
    "localhost.example.org:1",
    "[::ffff:10.0.0.1]:1",
]


@pytest.mark.parametrize("listen", HERE)
def test_this_machine_alone_may_always_be_served(listen):
    refuse_exposure([listen], (), has_keys=False, in_file=False, on_command_line=False)


@pytest.mark.parametrize("listen", OPEN)
def test_a_network_takes_keys_or_two_words(listen):
    for has_keys, in_file, on_command_line in itertools.product((False, True), repeat=3):
        said = {"has_keys": has_keys, "in_file": in_file, "on_command_line": on_command_line}
        if has_keys or (in_file and on_command_line):
            refuse_exposure(["127.0.0.1:1", listen], (), **said)
            continue
        with pytest.raises(StartupError) as refused:
            refuse_exposure(["127.0.0.1:1", listen], (), **said)
        message = str(refused.value)
        assert message.startswith(listen)
        assert "\n" not in message
        assert ("server.open_to_network" in message) is not in_file
        assert ("--open-to-network" in message) is not on_command_line


def test_passed_sockets_are_judged_by_where_they_are_bound_and_not_by_what_is_configured(tmp_path):
    said = {"has_keys": False, "in_file": False, "on_command_line": False}
    with (
        socket.socket() as here,
        socket.socket() as everywhere,
        socket.socket(socket.AF_UNIX) as local,
    ):
        here.bind(("127.0.0.1", 0))
        everywhere.bind(("0.0.0.0", 0))
        local.bind(str(tmp_path / "s"))
        refuse_exposure(["0.0.0.0:1"], [here, local], **said)
        with pytest.raises(StartupError, match=r"the socket at 0\.0\.0\.0, passed by the service manager, can be"):
            refuse_exposure(["127.0.0.1:1"], [here, everywhere], **said)
