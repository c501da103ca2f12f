"""Where a worker takes requests: a Unix socket, a port of this machine, or a server elsewhere.

Plain data, shared by backends and the daemon. Must never resolve a name or open a connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: Path


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A program on this machine, without TLS. `host` is a name or an address without brackets."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        return _authority(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Tls:
    """How a server elsewhere is believed to be the one that was meant."""

    verify: bool = True
    """False takes any certificate: what is sent can be read by whoever stands between."""
    ca_file: Path | None = None
    """Certificates in PEM to trust in place of the system's."""


@dataclass(frozen=True, slots=True)
class UrlAddress:
    """A server elsewhere. What `headers` says goes to this host and port alone, and never into a text."""

    host: str
    """A name or an address, without brackets."""
    port: int
    tls: Tls | None = None
    """None is plain HTTP."""
    base_path: str = ""
    """Goes before the path of every request; empty, or `/` and what follows without one at the end."""
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    """Sent with every request, such as Authorization: may be secret."""
    takes_traces: bool = False
    """Whether it may learn to which traces of clients the requests belong."""

    @property
    def authority(self) -> str:
        """As URLs and the Host header have it, the scheme's own port left out."""
        return _authority(self.host, self.port, own_port=80 if self.tls is None else 443)

    def __str__(self) -> str:
        """The address for people, without any secret."""
        return f"{'http' if self.tls is None else 'https'}://{self.authority}{self.base_path}"


WorkerAddress = UnixAddress | TcpAddress
"""Where a process that the daemon started listens."""
Address = UnixAddress | TcpAddress | UrlAddress


def _authority(host: str, port: int, own_port: int | None = None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port == own_port else f"{name}:{port}"
