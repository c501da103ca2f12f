"""Where the daemon may listen: `HOST:PORT`, `[IPV6]:PORT` or `unix:/path`.

A pure function from text to a typed address, for the configuration and for the command line alike.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from swapd.config.problems import shown

MAX_SOCKET_PATH_BYTES = 107
"""Linux's sun_path less its closing zero."""

_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """`host` is without brackets. Port 0 lets the system choose."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: Path


def parse_address(text: str) -> TcpAddress | UnixAddress:
    """The address that `text` names. Raises `ValueError` with the spelling that would be right."""
    if text.startswith("unix:"):
        return _unix(text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{shown(text)} lacks a port; write HOST:PORT such as 127.0.0.1:8686, or unix:/path")
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError(f"{shown(text)} has no port from 0 to 65535; write HOST:PORT such as 127.0.0.1:8686")
    return TcpAddress(_host(host, text), int(port))


def _unix(path: str) -> UnixAddress:
    if not path.startswith("/") or not path.isprintable():
        raise ValueError("a socket's path must be absolute; write unix:/run/swapd/swapd.sock")
    if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"a socket's path may have at most {MAX_SOCKET_PATH_BYTES} bytes")
    return UnixAddress(Path(path))


def _host(host: str, text: str) -> str:
    if not host:
        raise ValueError(
            f"{shown(text)} lacks a host; write 127.0.0.1:PORT for this machine alone, 0.0.0.0:PORT for all"
        )
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"{shown(text)} has no IPv6 address in its brackets; write [::1]:8686") from None
    if ":" in host:
        raise ValueError(f'{shown(text)} is ambiguous; write an IPv6 address in brackets and quotes: "[::1]:8686"')
    looks_like_ipv4 = re.fullmatch(r"[0-9.]+", host, re.ASCII)
    if looks_like_ipv4:
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError(f"{shown(text)} has no valid IPv4 address; write it like 127.0.0.1:8686") from None
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{shown(text)} has no valid host name; write HOST:PORT such as 127.0.0.1:8686")
    return host
