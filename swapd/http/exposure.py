"""Whether the daemon may listen where it is told to: without keys, nobody but this machine reaches it by accident.

Owns the rule. Pure but for asking a socket where it is bound.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence

from swapd.config.address import TcpAddress, parse_address
from swapd.errors import StartupError


def refuse_exposure(
    listen: Sequence[str], sockets: Sequence[socket.socket], *, has_keys: bool, in_file: bool, on_command_line: bool
) -> None:
    """Raise `StartupError` if anybody in the network could use the daemon and that was not said twice.

    It takes keys, or both `server.open_to_network` and `--open-to-network`. Sockets that were passed in replace
    `listen`, and are judged by where they are bound. Unix sockets are this machine's: their permissions say who may.
    """
    if has_keys or (in_file and on_command_line):
        return
    exposed = next(_exposed(listen, sockets), None)
    if exposed is None:
        return
    missing = [
        *(() if in_file else ("server.open_to_network: true",)),
        *(() if on_command_line else ("--open-to-network",)),
    ]
    raise StartupError(
        f"{exposed} can be reached from the network and there are no API keys; set server.keys (see `swapd key new`), "
        f"or say {' and '.join(missing)} as well to serve everybody"
    )


def _exposed(listen: Sequence[str], sockets: Sequence[socket.socket]) -> Iterator[str]:
    if sockets:
        for passed in sockets:
            if passed.family != socket.AF_UNIX and not _is_loopback(str(passed.getsockname()[0])):
                yield f"the socket at {passed.getsockname()[0]}, passed by the service manager,"
        return
    for text in listen:
        address = parse_address(text)
        if isinstance(address, TcpAddress) and not _is_loopback(address.host):
            yield text


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. Of names only `localhost` is known not to lead anywhere else."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
