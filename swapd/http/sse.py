"""Server-sent events as bytes: where one ends, and nothing of what it means.

Owns the framing of a worker's stream (WHATWG HTML §9.2: an event ends at a blank line). Pure: must never parse
an event's JSON, never hand out half an event, never hold more than one event's bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 1024 * 1024

_DONE = b"[DONE]"
_DONE_LINES = (b"data: [DONE]", b"data:[DONE]")
_DONE_EVENT = b"data: [DONE]\n\n"
# Within a text the quotes would be escaped.
_STOPPED = re.compile(rb'"stop"\s*:\s*true')
_ERROR_STARTS = (b'data: {"error":', b'data:{"error":')


class EventError(Exception):
    """The stream holds an event that cannot be passed on."""


class EventTooLargeError(EventError):
    """It is larger than the framer's bound."""


class UntranslatableEventError(EventError):
    """It makes no sense to the translation into the client's dialect."""


@dataclass(frozen=True, slots=True)
class Frames:
    """What one read completed."""

    whole: bytes
    """Zero or more whole events, as they came."""
    data_events: int
    """How many of them carry data; comments and `[DONE]` do not."""


_NOTHING = Frames(b"", 0)


class Framer:
    """Cuts a stream of bytes at blank lines. Lines may end in LF or CRLF; a lone CR ends no line here."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._last = b""
        self.done = False
        """The stream's `[DONE]` is among the events handed out."""

    def feed(self, data: bytes) -> Frames:
        """The events that `data` completes; nothing after `[DONE]`. Raises `EventTooLargeError`."""
        if self.done:
            return _NOTHING
        # The end of a blank line may have been waiting for its last byte: look back two.
        searched = max(0, len(self._rest) - 2)
        buffer = self._rest + data if self._rest else data
        end = max(_end_of_last(buffer, b"\n\n", searched), _end_of_last(buffer, b"\n\r\n", searched))
        self._rest = buffer[end:]
        if len(self._rest) > self._max_event_bytes:
            raise EventTooLargeError(f"an event is larger than {self._max_event_bytes} bytes")
        if not end:
            return _NOTHING
        whole = self._up_to_done(buffer[:end])
        self._last = whole
        return Frames(whole, whole.count(b"\ndata:") + whole.startswith(b"data:") - self.done)

    def _up_to_done(self, whole: bytes) -> bytes:
        if b"[DONE]" not in whole:
            return whole
        position = 0
        for line in whole.splitlines(keepends=True):
            position += len(line)
            if line.rstrip() in _DONE_LINES:
                self.done = True
                return whole[:position].rstrip(b"\r\n") + b"\n\n"
        return whole

    @property
    def told_error(self) -> bool:
        """The last event handed out is the worker's own error."""
        return self._last_line.startswith(_ERROR_STARTS)

    def stop(self) -> bytes:
        """The `[DONE]` that llama-server leaves out of streams in its own dialect, whose last event says `stop`.

        Empty if the last event handed out is none of that kind, and after `[DONE]`.
        """
        if self.done or not _STOPPED.search(self._last_line):
            return b""
        self.done = True
        return _DONE_EVENT

    @property
    def _last_line(self) -> bytes:
        return self._last.rstrip().rpartition(b"\n")[2]


def payloads(whole: bytes) -> Iterator[bytes]:
    """The data of each of some whole events, comments and `[DONE]` left out."""
    for event in whole.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        data = b"\n".join(lines)
        if lines and data != _DONE:
            yield data


def is_error(payload: bytes) -> bool:
    """Whether an event's data is an error object."""
    return payload.startswith(b'{"error":')


def _end_of_last(buffer: bytes, terminator: bytes, start: int) -> int:
    at = buffer.rfind(terminator, start)
    return 0 if at < 0 else at + len(terminator)
