"""The client's side of an answer that is written piece by piece.

Owns backpressure with a deadline, the headers of event streams and the comments that keep a waiting one alive.
Must never write a part of an event, or anything after an error event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from swapd.api.translation import EVENT_STREAM

WRITE_DEADLINE_S = 60.0
COMMENT_EVERY_S = 15.0
EASY_BYTES = 16 * 1024
"""With no more than this unsent, the transport takes a write at once: asyncio's low-water mark, below which it
never asks to wait."""

_STREAM_HEADERS = {
    "Cache-Control": "no-cache",
    # nginx would otherwise hold events back until its buffer is full.
    "X-Accel-Buffering": "no",
}
STILL_HERE = b": still here\n\n"


def client_gone() -> asyncio.CancelledError:
    """To raise when a write finds the client gone, so that it ends like aiohttp's own cancellation of the handler."""
    return asyncio.CancelledError("the client is gone")


def drop_client(request: web.Request) -> None:
    """Cut the connection at once, so that a client cannot take what it has for a whole answer."""
    if request.transport is not None:
        request.transport.abort()


class ClientStream:
    """One streamed answer. Nothing is sent, not even a status, before the first call that writes."""

    def __init__(
        self, request: web.Request, *, write_deadline_s: float = WRITE_DEADLINE_S, stream_type: str = EVENT_STREAM
    ) -> None:
        """`stream_type` is the media type of answers that are opened without headers of their own."""
        self._request = request
        self._headers = {"Content-Type": stream_type, **_STREAM_HEADERS}
        self._write_deadline_s = write_deadline_s
        self._response: web.StreamResponse | None = None
        self.answered = False
        """A part of the answer itself was sent, more than comments."""
        self._in_chunks = False
        """The headers are out and say that the body comes in chunks."""
        self.finished = False

    @property
    def committed(self) -> bool:
        """The status is decided and on its way."""
        return self._response is not None

    @property
    def response(self) -> web.StreamResponse:
        assert self._response is not None
        return self._response

    async def open(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Commit status and headers, a stream's without others, unless that has happened."""
        if self._response is None:
            self._response = web.StreamResponse(status=status, headers=self._headers if headers is None else headers)
            await self._bounded(self._response.prepare(self._request))

    async def send(self, data: bytes) -> None:
        """Write a part of the answer; of an event stream, whole events only."""
        await self.open()
        self.answered = True
        await self._write(data)
        self._in_chunks = self.response.headers.get("Transfer-Encoding") == "chunked"

    def send_now(self, data: bytes) -> bool:
        """Write a further part of the answer if that cannot wait; else False, with nothing written: use `send`.

        The chunk goes to the transport as aiohttp would write it, without the coroutines on the way.
        """
        transport = self._request.transport
        if not self._in_chunks or transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() + len(data) > EASY_BYTES:
            return False
        transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    async def aside(self, data: bytes) -> None:
        """Write whole events that are no part of the answer, such as a comment, which event stream readers ignore."""
        await self.open()
        await self._write(data)

    async def fail(self, error: bytes) -> web.StreamResponse:
        """End a stream with an error event, and without what ends a whole one."""
        await self.send(error)
        return await self.finish()

    async def finish(self) -> web.StreamResponse:
        self.finished = True
        await self._bounded(self.response.write_eof())
        return self.response

    async def _write(self, data: bytes) -> None:
        transport = self._request.transport
        if transport is None or transport.get_write_buffer_size() + len(data) > EASY_BYTES:
            await self._bounded(self.response.write(data))
            return
        # Cannot wait, so it needs no deadline; a timer per event costs more than the write.
        try:
            await self.response.write(data)
        except ConnectionError:
            raise client_gone() from None

    async def _bounded(self, write: Awaitable[object]) -> None:
        """Await a write. Raises `CancelledError` if the client is gone or takes nothing until the deadline."""
        try:
            async with asyncio.timeout(self._write_deadline_s):
                await write
        except TimeoutError:
            drop_client(self._request)
            raise client_gone() from None
        except ConnectionError:
            raise client_gone() from None


class Comments:
    """Keeps a stream alive while there is nothing to send."""

    def __init__(self, stream: ClientStream, every_s: float, say: Callable[[], bytes]) -> None:
        self._stream = stream
        self._every_s = every_s
        self._say = say
        self._enough = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="comments")

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._every_s):
                    await self._enough.wait()
                return
            except TimeoutError:
                said = self._say()
                if said:
                    await self._stream.aside(said)

    async def stop(self) -> None:
        """Returns once no comment is being written any more."""
        if not self._task.done():
            self._enough.set()
            await asyncio.wait((self._task,))

    async def cancel(self) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))
        if not self._task.cancelled() and (error := self._task.exception()):
            raise error


@asynccontextmanager
async def keeping_alive(
    stream: ClientStream, every_s: float = COMMENT_EVERY_S, say: Callable[[], bytes] = lambda: STILL_HERE
) -> AsyncIterator[Comments]:
    """Send what is to be said whenever `every_s` passes, until stopped or left. The first of it commits the status."""
    comments = Comments(stream, every_s, say)
    try:
        yield comments
    finally:
        await comments.cancel()
