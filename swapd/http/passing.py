"""A request passed to a worker as it is, and its answer back: both streamed, neither read.

Owns which headers go through. Must never hold a body, send a client's credentials to a worker, or try a request twice
(its body is gone). An answer that breaks cuts the client's connection, so that it never looks whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import structlog
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from swapd.errors import SwapdError, WorkerLostError
from swapd.http.exchange import Bounds, ending_when_lost
from swapd.http.record import Record
from swapd.http.stream import ClientStream, drop_client
from swapd.observe.traces import TRACE_HEADERS
from swapd.pool.door import Door
from swapd.pool.lease import Address, Lease, TcpAddress, Ticket, UnixAddress, UrlAddress
from swapd.pool.tls import client_context

log = structlog.get_logger(__name__)

_HOP_BY_HOP = frozenset((
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
))  # fmt: skip
"""RFC 9110, section 7.6.1: they speak of one connection."""
_NOT_SENT = _HOP_BY_HOP | {
    "host", "expect", "content-length", "x-request-id", "authorization", "cookie", "x-api-key", "api-key",
    "x-goog-api-key", *TRACE_HEADERS,
}  # fmt: skip
_NOT_RETURNED = _HOP_BY_HOP | {"set-cookie", "x-request-id", "server", "date"}
_CROSS_ORIGIN = "access-control-"
"""A worker that lets every web page read its answers would open the daemon to them."""


@dataclass(frozen=True, slots=True)
class Outbound:
    """A request as the worker gets it."""

    method: str
    path: str
    """With its query, coded as it came."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: AsyncIterator[bytes] | bytes | None = None
    body_bytes: int | None = None
    """Of a body that is streamed, where it is known."""


def headers_to_worker(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """A client's headers without those of its connection, credentials, and its trace's, which the record has."""
    named = {name.strip().lower() for name in headers.get(hdrs.CONNECTION, "").split(",")}
    passed = ((name, value) for name, value in headers.items() if name.lower() not in _NOT_SENT | named)
    return CIMultiDict((name, value) for name, value in passed if not name.lower().startswith("sec-websocket-"))


def headers_to_client(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """A worker's headers without those of its connection, cookies, and leave for pages of other origins."""
    named = {name.strip().lower() for name in headers.get(hdrs.CONNECTION, "").split(",")}
    passed = ((name, value) for name, value in headers.items() if name.lower() not in _NOT_RETURNED | named)
    return CIMultiDict((name, value) for name, value in passed if not name.lower().startswith(_CROSS_ORIGIN))


@asynccontextmanager
async def session_with(lease: Lease, connect_s: float) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the lease's worker, for one request."""
    address = lease.address
    async with aiohttp.ClientSession(
        connector=await _connector(address),
        headers=address.headers if isinstance(address, UrlAddress) else None,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT_ENCODING, hdrs.ACCEPT, hdrs.CONTENT_TYPE),
    ) as session:
        yield session


async def _connector(address: Address) -> aiohttp.BaseConnector:
    if isinstance(address, UnixAddress):
        return aiohttp.UnixConnector(path=str(address.path), force_close=True)
    tls = address.tls if isinstance(address, UrlAddress) else None
    return aiohttp.TCPConnector(ssl=True if tls is None else await client_context(tls), force_close=True)


def worker_url(address: Address, path: str) -> URL:
    """Where a worker has a path."""
    if isinstance(address, UrlAddress):
        return URL(f"{address}{path}", encoded=True)
    authority = address.authority if isinstance(address, TcpAddress) else "worker"
    return URL(f"http://{authority}{path}", encoded=True)


class Passing:
    """Passes requests on, each on a connection of its own."""

    def __init__(self, door: Door, bounds: Bounds) -> None:
        self._door = door
        self._bounds = bounds

    async def pass_on(
        self, request: web.Request, record: Record, ticket: Ticket, outbound: Outbound
    ) -> web.StreamResponse:
        """Wait for a place, send the request, stream the answer. Raises `SwapdError` while the status is open."""
        record.client = ticket.client
        client = ClientStream(request, write_deadline_s=self._bounds.write_deadline_s)
        try:
            async with self._door.lease(ticket) as lease:
                record.waited_s, record.granted = lease.waited_s, True
                return await self._exchange(client, record, lease, outbound)
        except SwapdError as error:
            if not client.committed:
                raise
            log.warning("answer broke", why=error.message)
            return _cut(request, record, client, error.status)
        except Exception:
            if not client.committed:
                raise
            log.exception("answer broke")
            return _cut(request, record, client, SwapdError.status)

    async def _exchange(
        self, client: ClientStream, record: Record, lease: Lease, outbound: Outbound
    ) -> web.StreamResponse:
        headers = CIMultiDict(outbound.headers)
        headers["X-Request-Id"] = lease.request_id
        headers.update(record.traces_for(lease.address))
        if outbound.body_bytes is not None:
            headers[hdrs.CONTENT_LENGTH] = str(outbound.body_bytes)
        try:
            with ending_when_lost(lease, self._bounds.why_lost_s) as bound:
                async with (
                    bound,
                    session_with(lease, self._bounds.connect_s) as session,
                    session.request(
                        outbound.method,
                        worker_url(lease.address, outbound.path),
                        headers=headers,
                        data=outbound.body,
                        allow_redirects=False,
                    ) as answer,
                ):
                    return await self._answer(client, record, lease, answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # An error of the client's body, which is read on the way, is told as what it is.
            if isinstance(error.__cause__, SwapdError):
                raise error.__cause__ from None
            why = lease.lost.result() if lease.lost.done() and not lease.lost.cancelled() else str(error)
            raise WorkerLostError(f"the worker of {lease.model_id} was lost: {why or type(error).__name__}") from error

    async def _answer(
        self, client: ClientStream, record: Record, lease: Lease, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        await client.open(answer.status, headers_to_client(answer.headers))
        async for data in answer.content.iter_any():
            self._door.answer_moved(lease, began=record.first_token_s is None)
            if record.first_token_s is None:
                record.first_token_s = record.age_s()
            await client.send(data)
        return await client.finish()


def _cut(request: web.Request, record: Record, client: ClientStream, status: int) -> web.StreamResponse:
    """End an answer that is on its way so that it does not look whole."""
    record.broken = status
    drop_client(request)
    return client.response
