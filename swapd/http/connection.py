"""One client's connection as aiohttp serves it, but for what it tells somebody who does not speak HTTP.

aiohttp quotes what it could not parse in its answer and in its log, and that may be a key. Owns the answer in its
place.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from swapd.errors import BadRequestError

MAX_HEADERS = 64
MAX_HEADER_BYTES = 8190
"""Of one header, and of the request line."""


class Connection(RequestHandler):
    __slots__ = ()

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


class _Server(web.Server):
    def __init__(self, made: web.Server, options: dict[str, Any]) -> None:
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
        )
        self._options = options

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._options)


class Runner(web.AppRunner):
    """Runs an application on such connections. `options` are those of aiohttp's `RequestHandler`."""

    def __init__(self, app: web.Application, *, shutdown_timeout: float, **options: Any) -> None:
        super().__init__(app, handler_cancellation=True, shutdown_timeout=shutdown_timeout)
        self._options = {
            "access_log": None,
            "max_headers": MAX_HEADERS,
            "max_field_size": MAX_HEADER_BYTES,
            "max_line_size": MAX_HEADER_BYTES,
            **options,
        }

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._options)
