"""Websockets between a client and a worker, passed through message by message.

Owns how long one may be silent: it holds a place at its worker, and keeps that from leaving. Must never hold more than
one message of each side.
"""

from __future__ import annotations

import asyncio

import aiohttp
import structlog
from aiohttp import hdrs, web

from swapd.errors import WorkerLostError
from swapd.http.exchange import Bounds, ending_when_lost
from swapd.http.passing import headers_to_worker, session_with, worker_url
from swapd.http.record import RECORD, Record
from swapd.pool.door import Door
from swapd.pool.lease import Lease, Ticket

log = structlog.get_logger(__name__)

IDLE_S = 60.0
"""After so long without a message of either side a websocket is closed, so that its worker may leave."""
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

_NEVER_SENT = (1005, 1006, 1015)
"""Codes that only tell of a connection's end (RFC 6455, section 7.4.1)."""

_Side = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


def is_upgrade(request: web.Request) -> bool:
    """Whether the client asks for a websocket."""
    return request.method == hdrs.METH_GET and request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


class Sockets:
    def __init__(self, door: Door, bounds: Bounds) -> None:
        self._door = door
        self._bounds = bounds
        self._idle_s = IDLE_S

    async def pass_on(self, request: web.Request, record: Record, ticket: Ticket, path: str) -> web.StreamResponse:
        """Wait for a place, connect to the worker, and only then take the client's upgrade. Raises `SwapdError`."""
        record.client = ticket.client
        async with self._door.lease(ticket) as lease:
            record.waited_s, record.granted = lease.waited_s, True
            pair = _Pair(request, self._bounds.close_s)
            try:
                with ending_when_lost(lease, self._bounds.why_lost_s) as bound:
                    async with bound, session_with(lease, self._bounds.connect_s) as session:
                        await pair.connect(session, lease, path)
                        await self._both_ways(pair, lease)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if not pair.upgraded:
                    raise WorkerLostError(f"the worker of {lease.model_id} takes no websocket: {error}") from error
                record.broken = WorkerLostError.status
                log.warning("websocket broke", why=str(error) or type(error).__name__)
            return pair.here

    async def _both_ways(self, pair: _Pair, lease: Lease) -> None:
        """Until one side closes, or both are silent for too long."""
        idle = asyncio.timeout(self._idle_s)
        try:
            async with idle:
                ways = [
                    asyncio.create_task(self._one_way(pair.here, pair.there, lease, idle)),
                    asyncio.create_task(self._one_way(pair.there, pair.here, lease, idle)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
                    await pair.close()
        except TimeoutError:
            if not idle.expired():
                raise

    async def _one_way(self, source: _Side, target: _Side, lease: Lease, idle: asyncio.Timeout) -> None:
        async for message in source:
            if not idle.expired():
                idle.reschedule(asyncio.get_running_loop().time() + self._idle_s)
            self._door.answer_moved(lease, began=False)
            if message.type is aiohttp.WSMsgType.TEXT:
                await target.send_str(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                await target.send_bytes(message.data)


class _Pair:
    """The two ends."""

    there: aiohttp.ClientWebSocketResponse
    here: web.WebSocketResponse

    def __init__(self, request: web.Request, close_s: float) -> None:
        self._request = request
        self._close_s = close_s
        self.upgraded = False
        """The client's connection is a websocket now: nothing else can be sent on it."""

    async def connect(self, session: aiohttp.ClientSession, lease: Lease, path: str) -> None:
        offered = self._request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",")
        headers = headers_to_worker(self._request.headers)
        headers.popall(hdrs.ORIGIN, None)
        headers["X-Request-Id"] = lease.request_id
        headers.update(self._request[RECORD].traces_for(lease.address))
        self.there = await session.ws_connect(
            worker_url(lease.address, path),
            headers=headers,
            protocols=tuple(name.strip() for name in offered if name.strip()),
            max_msg_size=MAX_MESSAGE_BYTES,
            timeout=aiohttp.ClientWSTimeout(ws_close=self._close_s),
        )
        chosen = (self.there.protocol,) if self.there.protocol else ()
        self.here = web.WebSocketResponse(
            protocols=chosen, max_msg_size=MAX_MESSAGE_BYTES, timeout=self._close_s, compress=False
        )
        self.upgraded = True
        await self.here.prepare(self._request)

    async def close(self) -> None:
        """Close both with the code of the one that closed first; 1001 (going away) where none did."""
        code = self.here.close_code or self.there.close_code or aiohttp.WSCloseCode.GOING_AWAY
        sendable = aiohttp.WSCloseCode.GOING_AWAY if code in _NEVER_SENT else code
        await self.there.close(code=sendable)
        await self.here.close(code=sendable)
