"""One client's connection as aiohttp serves it, but for what it tells somebody who does not speak HTTP, speaks it too
slowly, or is one too many.

aiohttp quotes what it could not parse in its answer and in its log, and that may be a key; it waits for the rest of a
request's headers as long as for the next request; and it accepts whoever comes. Owns the answers in their place.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from swapd.errors import BadRequestError, HeadersTimeoutError, SwapdError, TooManyConnectionsError
from swapd.http.crowd import Crowd, Limits, group_of

log = structlog.get_logger(__name__)

HEADERS_S = 15.0
"""From a request's first byte to the end of its headers."""
LINGER_S = 1.0
"""How long a connection that was told why it is closed may take to read that, since what it sends meanwhile is not
read: closing at once would take the answer with it."""
MAX_LINGERING = 64
TELL_EVERY_S = 10.0
"""How often the log has a line about connections that are refused."""
MAX_HEADERS = 64
MAX_HEADER_BYTES = 8190
"""Of one header, and of the request line."""


@dataclass(slots=True)
class Bounds:
    """What all connections of a server are held to, and where they stand."""

    limits: Callable[[], Limits]
    headers_s: float = HEADERS_S
    crowd: Crowd = field(default_factory=Crowd)
    lingering: int = 0
    told_at_s: float = -math.inf


class Connection(RequestHandler):
    __slots__ = ("_bounds", "_group", "_headers_due", "_is_counted", "_lingers")

    def __init__(self, manager: web.Server, bounds: Bounds, **options: Any) -> None:
        super().__init__(manager, **options)
        self._bounds = bounds
        self._group: str | None = None
        self._is_counted = False
        self._headers_due: asyncio.TimerHandle | None = None
        self._lingers: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._group = group_of(transport.get_extra_info("peername"))
        try:
            self._bounds.crowd.enter(self._group, self._bounds.limits())
        except TooManyConnectionsError as error:
            self._note_refused(error)
            self._dismiss(transport, error)
            return
        self._is_counted = True
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._is_counted:
            self._bounds.crowd.leave(self._group)
            self._is_counted = False
        if self._lingers is not None:
            self._lingers.cancel()
            self._lingers = None
            self._bounds.lingering -= 1
        self._expect_headers(due=False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingers is not None:
            return
        super().data_received(data)
        # Between two requests: what has come belongs to headers that are not whole yet. Line ends may follow a body.
        idle = self._waiter is not None and not self._waiter.done()
        if not idle or self._headers_due is None:
            self._expect_headers(due=idle and bool(data.strip(b"\r\n")))

    def _expect_headers(self, *, due: bool) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None
        if due:
            self._headers_due = self._loop.call_later(self._bounds.headers_s, self._headers_overdue)

    def _headers_overdue(self) -> None:
        self._headers_due = None
        if self.transport is not None and self._waiter is not None and not self._waiter.done():
            error = HeadersTimeoutError(f"the headers did not arrive within {self._bounds.headers_s:g} s")
            transport, self.transport = self.transport, None
            assert isinstance(transport, asyncio.Transport)
            self._dismiss(transport, error)

    def _dismiss(self, transport: asyncio.Transport, error: SwapdError) -> None:
        """Say why, and close once the client has read it or will not."""
        self.force_close()
        if self._bounds.lingering >= MAX_LINGERING:
            transport.abort()
            return
        transport.write(_last_words(error))
        if transport.can_write_eof():
            transport.write_eof()
        self._bounds.lingering += 1
        self._lingers = self._loop.call_later(LINGER_S, transport.abort)

    def _note_refused(self, error: TooManyConnectionsError) -> None:
        now_s = self._loop.time()
        if now_s - self._bounds.told_at_s >= TELL_EVERY_S:
            self._bounds.told_at_s = now_s
            log.warning("connections are refused", why=error.message)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        error = BadRequestError(
            f"the request is no valid HTTP/1.1, or has more than {MAX_HEADERS} headers or one of more than "
            f"{MAX_HEADER_BYTES} bytes"
        )
        response = web.json_response(error.envelope(), status=error.status)
        response.force_close()
        return response


def _last_words(error: SwapdError) -> bytes:
    """An answer to somebody whose request was never read."""
    body = json.dumps(error.envelope()).encode()
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if error.retry_after_s is not None:
        lines.append(f"Retry-After: {math.ceil(error.retry_after_s)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Server(web.Server):
    def __init__(self, made: web.Server, bounds: Bounds, options: dict[str, Any]) -> None:
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
        )
        self._bounds = bounds
        self._options = options

    def __call__(self) -> RequestHandler:
        return Connection(self, self._bounds, loop=self._loop, **self._options)


class Runner(web.AppRunner):
    """Runs an application on such connections. `options` are those of aiohttp's `RequestHandler`."""

    def __init__(self, app: web.Application, bounds: Bounds, *, shutdown_timeout: float, **options: Any) -> None:
        super().__init__(app, handler_cancellation=True, shutdown_timeout=shutdown_timeout)
        self._bounds = bounds
        self._options = {
            "access_log": None,
            "max_headers": MAX_HEADERS,
            "max_field_size": MAX_HEADER_BYTES,
            "max_line_size": MAX_HEADER_BYTES,
            **options,
        }

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._bounds, self._options)
