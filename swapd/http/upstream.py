"""One HTTP/1.1 exchange with a worker, on a connection of its own: over its Unix socket, a port, or TLS.

Owns the bytes of the exchange: what is asked, what has arrived and was not read yet (within a bound), and whether the
answer is whole. Must never interpret a body. It does what a general client does without a pool, redirects, cookies or
coded bodies, and so for a fraction of the CPU time per read; the parsing itself is llhttp's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import cast

import httptools

from swapd.pool.lease import Address, TcpAddress, UnixAddress, UrlAddress
from swapd.pool.tls import client_context

MAX_HEAD_BYTES = 256 * 1024
"""Of an answer's status line and headers together with what came in the same reads."""
FIRST_FINAL_STATUS = 200
READ_BYTES = 64 * 1024
"""At most what one read takes from a worker. With MAX_UNREAD_BYTES it bounds what a client that hardly reads costs."""
MAX_UNREAD_BYTES = 64 * 1024
"""Above this the worker is held back until its answer is read on; one more read may be on its way."""

_read_into = memoryview(bytearray(READ_BYTES))
"""One for all connections: what is read is parsed before anything else happens, and the parser keeps copies."""


class UpstreamError(Exception):
    """The worker's side broke: no connection, no HTTP, or an answer that ended before it was whole."""


class UpstreamSilentError(UpstreamError):
    """Nothing came for longer than the worker may be silent."""


@asynccontextmanager
async def post(
    address: Address,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    connect_s: float,
    silence_s: float | None = None,
) -> AsyncIterator[Upstream]:
    """Send one request and wait for the head of its answer. Leaving cuts the connection, whatever is on its way.

    The address's own headers go beside `headers` and in place of equal ones. `silence_s` is how long nothing may come
    while somebody waits for it; None is for ever.

    Raises `UpstreamError`.
    """
    try:
        async with asyncio.timeout(connect_s):
            transport, upstream = await _connect(address)
    except TimeoutError:
        raise UpstreamError(f"it took no connection within {connect_s:g} s") from None
    except OSError as error:
        raise UpstreamError(f"it takes no connection: {error}") from error
    try:
        upstream.allow_silence(silence_s)
        transport.writelines((_head(address, path, headers, len(body)), body))
        await upstream.until_head()
        yield upstream
    finally:
        transport.abort()


async def _connect(address: Address) -> tuple[asyncio.Transport, Upstream]:
    """Raises `OSError`; an untrusted certificate is one too."""
    loop = asyncio.get_running_loop()
    match address:
        case UnixAddress(path):
            return await loop.create_unix_connection(Upstream, str(path))
        case TcpAddress(host, port):
            return await loop.create_connection(Upstream, host, port)
        case UrlAddress(host, port, tls):
            context = None if tls is None else await client_context(tls)
            return await loop.create_connection(Upstream, host, port, ssl=context)


def _head(address: Address, path: str, headers: Mapping[str, str], body_bytes: int) -> bytes:
    host = "worker"
    if isinstance(address, TcpAddress):
        host = address.authority
    elif isinstance(address, UrlAddress):
        host = address.authority
        path = address.base_path + path
        own = {name.lower() for name in address.headers}
        headers = {**{name: value for name, value in headers.items() if name.lower() not in own}, **address.headers}
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    lines += [f"Content-Length: {body_bytes}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


class Upstream(asyncio.BufferedProtocol):
    """An answer as it arrives. One reader at a time; the `on_` methods are the parser's."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        """By lower-case name."""
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._head_bytes = 0
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._held_back = False
        self._began = False
        self._whole = False
        self._broken: UpstreamError | None = None
        self._news: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._silence_s: float | None = None
        self._heard_s = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    # -- for the reader ----------------------------------------------------------------------------------------

    @property
    def content_type(self) -> str:
        """The media type alone, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def has_length(self) -> bool:
        """Whether the answer itself says where it ends."""
        return "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def ended(self) -> bool:
        """All of a whole answer was read."""
        return self._whole and not self._unread

    async def until_head(self) -> None:
        """Wait for status and headers. Raises `UpstreamError`."""
        while not self.status:
            await self._wait()

    async def read(self) -> bytes:
        """What has arrived of the body since the last time, at least a byte; empty at the end of a whole answer.

        Raises `UpstreamError`, once everything that came before was read.
        """
        while not self._unread:
            if self._whole:
                return b""
            await self._wait()
        data = self._taken()
        if self._held_back and self._transport is not None:
            self._held_back = False
            self._transport.resume_reading()
        return data

    async def pass_on(self, take: Callable[[bytes], bool]) -> None:
        """Hand what arrives to `take` right as it does, until that returns False or nothing more can come.

        An event that wakes no task costs half the CPU time. `take` must not raise; what there is to raise, the next
        `read` does.
        """
        if self._unread or self._whole:
            return
        self._take = take
        try:
            await self._wait()
        finally:
            self._take = None

    async def read_up_to(self, size_bytes: int) -> bytes:
        """The beginning of the rest of the body: all of it, or at least this much."""
        parts = bytearray()
        while len(parts) < size_bytes and (data := await self.read()):
            parts += data
        return bytes(parts)

    def _taken(self) -> bytes:
        data = self._unread[0] if len(self._unread) == 1 else b"".join(self._unread)
        self._unread.clear()
        self._unread_bytes = 0
        return data

    async def _wait(self) -> None:
        if self._broken is not None:
            raise self._broken
        assert self._news is None, "an answer has one reader"
        loop = asyncio.get_running_loop()
        self._news = loop.create_future()
        # What the reader does meanwhile is not the worker's silence.
        self._heard_s = loop.time()
        self._set_alarm()
        try:
            await self._news
        finally:
            self._news = None
            self._set_alarm()

    def allow_silence(self, silence_s: float | None) -> None:
        """How long nothing may come while somebody waits for it, counted from the newest bytes; None is for ever."""
        self._silence_s = silence_s
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = None
        if self._news is not None and self._silence_s is not None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_at(self._heard_s + self._silence_s, self._look_for_silence)

    def _look_for_silence(self) -> None:
        """Bytes come far more often than a timer should be set, so this one is when it may have become too long."""
        silence_s = self._silence_s
        if silence_s is not None and asyncio.get_running_loop().time() >= self._heard_s + silence_s:
            if self._broken is None and not self._whole:
                self._broken = UpstreamSilentError(f"it sent nothing for {silence_s:g} s")
            self._tell()
        else:
            self._set_alarm()

    # -- for the transport -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - one size for all
        return _read_into

    def buffer_updated(self, nbytes: int) -> None:
        if self._alarm is not None:
            self._heard_s = asyncio.get_running_loop().time()
        try:
            self._parser.feed_data(_read_into[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(f"it does not speak HTTP: {error}")
        if not self.status:
            self._head_bytes += nbytes
            if self._head_bytes > MAX_HEAD_BYTES:
                self._break(f"its headers are larger than {MAX_HEAD_BYTES} bytes")
        if self._take is not None and self._unread and self._take(self._taken()) and not self._ended_somehow:
            return
        if self._unread_bytes > MAX_UNREAD_BYTES and not self._held_back and self._transport is not None:
            self._held_back = True
            self._transport.pause_reading()
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if exc is None and self.status and not self.has_length:
            self._whole = True  # such an answer ends with its connection
        self._break(str(exc) if exc is not None else "it closed the connection in the middle of an answer")
        self._tell()

    def _break(self, why: str) -> None:
        """The first reason counts, and none does once the answer is whole."""
        if self._broken is None and not self._whole:
            self._broken = UpstreamError(why)

    @property
    def _ended_somehow(self) -> bool:
        return self._whole or self._broken is not None

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # -- for the parser ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._began:
            raise ValueError("a second answer to one request")
        self._began = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < FIRST_FINAL_STATUS:
            raise ValueError("an interim answer that nobody asked for")
        self.status = status

    def on_body(self, body: bytes) -> None:
        self._unread.append(body)
        self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        self._whole = True
