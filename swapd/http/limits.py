"""What a client may send: content type, body size, time, a request id.

Owns the bounds that hold before a request means anything. Must never parse a body.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from aiohttp import hdrs, web

from swapd.errors import BadRequestError, BodyTimeoutError, BodyTooLargeError, ForeignPageError, QueueFullError

BODY_DEADLINE_S = 60.0
BODIES_RETRY_S = 5.0
"""When to come again while the bodies in flight take all they may: a request's usual time is not known here."""

_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
"""What the Fetch standard calls CORS-safelisted."""

_HARMLESS_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class BodyBudget:
    """Bounds the bodies of all requests in flight together, so that many large ones cannot fill the RAM."""

    def __init__(self) -> None:
        self.held_bytes = 0

    @contextmanager
    def hold(self, limit_bytes: int) -> Iterator[BodyShare]:
        """One request's share of a bound on all together; given back at the end."""
        share = BodyShare(self, limit_bytes)
        try:
            yield share
        finally:
            self.held_bytes -= share.held_bytes


class BodyShare:
    """What one request holds of the budget."""

    def __init__(self, budget: BodyBudget, limit_bytes: int) -> None:
        self._budget = budget
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    def hold(self, size_bytes: int) -> None:
        """Hold this much, unless more is held already. Raises `QueueFullError` if all together would be too much."""
        missing_bytes = max(0, size_bytes - self.held_bytes)
        if self._budget.held_bytes + missing_bytes > self._limit_bytes:
            raise QueueFullError(
                f"the bodies of requests in flight take {self._budget.held_bytes} of {self._limit_bytes} bytes "
                "(server.max_bodies); try later",
                retry_after_s=BODIES_RETRY_S,
            )
        self._budget.held_bytes += missing_bytes
        self.held_bytes += missing_bytes


def require_json(request: web.Request) -> None:
    """Refuse bodies of any other type: those a web page can send across origins without being asked."""
    if hdrs.CONTENT_TYPE not in request.headers or not _is_json(request.content_type):
        raise BadRequestError("the Content-Type must be application/json")


def require_json_of_pages(request: web.Request) -> None:
    """The same of what may come from a web page alone, which browsers mark. Ollama's users send JSON by curl, which
    calls it a form."""
    if hdrs.ORIGIN in request.headers or "Sec-Fetch-Site" in request.headers:
        require_json(request)


def refuse_foreign_page(request: web.Request) -> None:
    """Refuse what a browser sends for a page that is not of this origin (it says which one), but for plain reading."""
    if "websocket" not in request.headers.get(hdrs.UPGRADE, "").lower() and request.method in (
        hdrs.METH_GET,
        hdrs.METH_HEAD,
    ):
        return
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and origin.partition("://")[2].lower() != request.headers.get(hdrs.HOST, "").lower():
        raise ForeignPageError("a web page of another origin may not do this")


def refuse_form(request: web.Request) -> None:
    """For a POST that needs no body: refuse the types a web page can send across origins without being asked."""
    if hdrs.CONTENT_TYPE in request.headers and request.content_type in _FORM_TYPES:
        raise BadRequestError("the Content-Type must be application/json, or absent")


def _is_json(content_type: str) -> bool:
    return content_type == "application/json" or content_type.endswith("+json")


async def read_body(
    request: web.Request, share: BodyShare, *, max_bytes: int, deadline_s: float = BODY_DEADLINE_S
) -> bytes:
    """The body, never more than `max_bytes` of it.

    What a declared length shows to be too much, for itself or beside the bodies that are held, is refused before the
    client is told to go on, any other before the excess is buffered. Raises `BodyTooLargeError`, `BodyTimeoutError`,
    `QueueFullError`, `BadRequestError`.
    """
    if request.content_length is not None and request.content_length > max_bytes:
        raise _too_large(max_bytes)
    share.hold(request.content_length or 0)
    await _continue_if_expected(request)
    parts = []
    try:
        async with asyncio.timeout(deadline_s):
            size_bytes = 0
            async for part in request.content.iter_any():
                size_bytes += len(part)
                if size_bytes > max_bytes:
                    raise _too_large(max_bytes)
                share.hold(size_bytes)
                parts.append(part)
    except TimeoutError:
        raise BodyTimeoutError(f"the body did not arrive within {deadline_s:g} s") from None
    except web.RequestPayloadError:
        raise BadRequestError("the body's transfer coding is malformed") from None
    return b"".join(parts)


async def stream_body(
    request: web.Request, *, max_bytes: int, gap_s: float = BODY_DEADLINE_S
) -> AsyncGenerator[bytes, None]:
    """The body as it comes, never more than `max_bytes` in all.

    Whoever takes it slowly holds the client up. Raises `BodyTooLargeError`, and `BodyTimeoutError` for a client that
    sends nothing for `gap_s`.
    """
    size_bytes = 0
    try:
        while True:
            async with asyncio.timeout(gap_s):
                part = await request.content.readany()
            if not part:
                return
            size_bytes += len(part)
            if size_bytes > max_bytes:
                raise _too_large(max_bytes)
            yield part
    except TimeoutError:
        raise BodyTimeoutError(f"nothing of the body has arrived for {gap_s:g} s") from None
    except web.RequestPayloadError:
        raise BadRequestError("the body's transfer coding is malformed") from None


async def expect_body(request: web.Request, *, max_bytes: int) -> None:
    """Refuse a body that says it is too large, else tell a client that waits for it to go on."""
    if request.content_length is not None and request.content_length > max_bytes:
        raise _too_large(max_bytes)
    await _continue_if_expected(request)


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {max_bytes} bytes (server.max_body)")


async def hold_continue(_request: web.Request) -> None:
    """aiohttp's hook for `Expect`: answer nothing yet, `read_body` does it once the length is known."""


async def _continue_if_expected(request: web.Request) -> None:
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


def choose_request_id(offered: str | None, active: set[str]) -> str:
    """The client's own id if it is short and harmless, made distinct from those of requests that still run."""
    if offered is None or not _HARMLESS_ID.fullmatch(offered):
        return f"req-{secrets.token_hex(12)}"
    return offered if offered not in active else f"{offered}.{secrets.token_hex(4)}"
