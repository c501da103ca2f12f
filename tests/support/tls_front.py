"""A TLS front before a server on this machine: it shows what came through it, and can be cut."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trustme


@dataclass
class Certified:
    """A server that is named localhost, and who vouches for it."""

    server: ssl.SSLContext
    ca_file: Path


def certified(directory: Path) -> Certified:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    ca_file = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return Certified(server, ca_file)


@dataclass
class Front:
    port: int
    seen: bytearray = field(default_factory=bytearray)
    """All that clients have sent, of all connections."""
    is_cut: bool = False
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """End all connections, and take no further ones until it is mended."""
        self.is_cut = True
        for writer in self._open:
            writer.transport.abort()


@asynccontextmanager
async def tls_front(identity: Certified, to_port: int) -> AsyncIterator[Front]:
    """Pass every connection on to a port of this machine, in the clear."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if front.is_cut:
            writer.transport.abort()
            return
        upstream, onward = await asyncio.open_connection("127.0.0.1", to_port)
        front._open |= {writer, onward}
        with suppress(ConnectionError, ssl.SSLError):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pump(reader, onward, front.seen))
                tasks.create_task(pump(upstream, writer, None))
        front._open -= {writer, onward}

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: bytearray | None) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65_536):
                if seen is not None:
                    seen += data
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=identity.server)
    front = Front(server.sockets[0].getsockname()[1])
    try:
        yield front
    finally:
        server.close()
        front.cut()
