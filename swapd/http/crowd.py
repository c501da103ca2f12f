"""How many connections there may be at once: of all clients together, and of one address.

Owns the counts. A program on this machine, or on a Unix socket, may be a proxy that many clients are behind: such
connections count among all, and not by their address. Must never decide what becomes of a connection that has no place.
"""

from __future__ import annotations

import ipaddress
import resource
from collections import Counter
from dataclasses import dataclass

from swapd.config.schema import Server
from swapd.errors import TooManyConnectionsError

RETRY_S = 5.0
OWN_FILES = 256
"""Descriptors that are kept for what is no client: workers' pipes, files, the listening sockets."""
FILES_EACH = 2
"""What a connection may take: its own, and the one to a worker that answers it."""
MAX_OPEN_FILES = 65_536
_V6_SITE = 64
"""Bits of an IPv6 address that are given to one site, which may use all addresses below."""


@dataclass(frozen=True, slots=True)
class Limits:
    total: int
    per_address: int


def limits_of(server: Server) -> Limits:
    """The configured limits, or what the open files that this process may have leave room for."""
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    affordable = max(1, (open_files - OWN_FILES) // FILES_EACH)
    return Limits(min(server.max_connections, affordable), server.max_connections_per_address)


def raise_open_files() -> None:
    """Take as many open files as the kernel lets this process have: a shell's usual 1,024 are for programs that use
    `select`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Crowd:
    def __init__(self) -> None:
        self.total = 0
        self._by_address: Counter[str] = Counter()

    def enter(self, address: str | None, limits: Limits) -> None:
        """Take a place for a connection of this group (see `group_of`). Raises `TooManyConnectionsError`."""
        if self.total >= limits.total:
            raise TooManyConnectionsError(
                f"{limits.total} connections are open (server.max_connections, or the open files that swapd may have); "
                "try later",
                retry_after_s=RETRY_S,
            )
        if address is not None:
            if self._by_address[address] >= limits.per_address:
                raise TooManyConnectionsError(
                    f"{limits.per_address} connections of {address} are open (server.max_connections_per_address)",
                    retry_after_s=RETRY_S,
                )
            self._by_address[address] += 1
        self.total += 1

    def leave(self, address: str | None) -> None:
        """Give the place back."""
        self.total -= 1
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]


def group_of(peername: object) -> str | None:
    """Whose connections are counted together, by a socket's peer: an IPv4 address or an IPv6 /64; None for nobody's."""
    if not isinstance(peername, tuple):
        return None
    try:
        address = ipaddress.ip_address(str(peername[0]).partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return None if address.is_loopback else str(ipaddress.ip_network((address, _V6_SITE), strict=False))
        address = address.ipv4_mapped
    return None if address.is_loopback else str(address)
