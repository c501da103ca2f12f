"""What lies between a client of another dialect and workers that speak OpenAI's.

A dialect's module turns a request into OpenAI's fields (`Translated`) and says how the answer goes back
(`Translation`). Owns the contract of the two. Pure: must never do I/O or keep a request beyond its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from swapd.api.openai import Endpoint

EVENT_STREAM = "text/event-stream"


class Translation(Protocol):
    """One answer on its way back. Made anew for each attempt, so it may hold what it has seen of the answer.

    The bytes it gives are whole events, or whole lines, of the client's dialect; empty where there is nothing to say.
    """

    stream_type: ClassVar[str]
    """The media type of streamed answers. Only an event stream is told anything while it waits."""

    def event(self, payload: bytes) -> bytes:
        """One chunk of a streamed answer: the JSON of OpenAI's `data:` line, which is no error.

        Raises `ValueError` if it is no chunk.
        """
        ...

    def end(self) -> bytes:
        """What follows the last chunk, in place of `[DONE]`. Not called for an answer that broke."""
        ...

    def failure(self, status: int, envelope: Mapping[str, Any]) -> bytes:
        """What a stream ends with that broke after it began: `envelope` is OpenAI's error object."""
        ...

    def whole(self, body: bytes) -> bytes:
        """An answer that is not streamed, of status 200. Raises `ValueError` if it is none."""
        ...

    def refusal(self, status: int, envelope: Mapping[str, Any]) -> bytes:
        """The body of an error that a worker answered with; the status stays."""
        ...


@dataclass(frozen=True, slots=True)
class Translated:
    """A request of another dialect, as OpenAI's: `fields` are checked as if a client had sent them to `endpoint`."""

    endpoint: Endpoint
    fields: dict[str, Any]
    answer: Callable[[], Translation]
