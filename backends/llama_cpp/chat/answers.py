"""A chat answer's shapes: the deltas of a stream and the message of a whole answer, from a choice's text.

Owns the numbering and the ids of tool calls. Pure: ids come from an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from backends.llama_cpp.chat.events import Arguments, CallStart, Content, Event, Reasoning
from backends.llama_cpp.chat.reader import Reading
from backends.llama_cpp.engine.types import Finish

NewCallId = Callable[[], str]
"""Makes an id that no other call has, of nine letters and digits: Mistral's templates take no other."""
TOOL_CALLS = "tool_calls"
"""OpenAI's word for an answer that ended in order to have its calls made."""


class FunctionDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[CallDelta, ...] | UnsetType = UNSET


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    content: str | None
    role: Literal["assistant"] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: Sequence[ToolCall] | UnsetType = UNSET


class ChoiceReader:
    """One choice's text on its way to a client."""

    def __init__(self, reading: Reading, new_call_id: NewCallId) -> None:
        self._reader = reading.reader()
        self._new_call_id = new_call_id
        self._calls = 0
        self._tokens = 0
        self.reasoning_tokens = 0
        """Up to the last one that showed reasoning."""

    def read(self, text: str, tokens: int, *, last: bool) -> list[Event]:
        """What more of the text turns out to be, which is so many tokens. Every call gets an id."""
        events = self._reader.feed(text)
        if last:
            events += self._reader.finish()
        self._tokens += tokens
        if any(isinstance(event, Reasoning) for event in events):
            self.reasoning_tokens = self._tokens
        return [self._identified(event) for event in events]

    def deltas(self, text: str, tokens: int, *, last: bool) -> list[Delta]:
        """The same as what a stream says."""
        return [self._delta(event) for event in self.read(text, tokens, last=last)]

    def finish_reason(self, finish: Finish) -> str:
        """Why the choice ended."""
        return TOOL_CALLS if self._calls and finish is Finish.STOP else finish.value

    def _identified(self, event: Event) -> Event:
        if not isinstance(event, CallStart):
            return event
        self._calls += 1
        return event if event.id else CallStart(event.name, self._new_call_id())

    def _delta(self, event: Event) -> Delta:
        match event:
            case Content(text):
                return Delta(content=text)
            case Reasoning(text):
                return Delta(reasoning_content=text)
            case CallStart(name, call_id):
                assert call_id is not None
                call = CallDelta(self._calls - 1, FunctionDelta(name, ""), call_id, "function")
            case Arguments(text):
                call = CallDelta(self._calls - 1, FunctionDelta(arguments=text))
        return Delta(tool_calls=(call,))


def whole_message(events: Sequence[Event]) -> ChatMessage:
    """The message that events add up to. Content is null only beside calls."""
    content = "".join(event.text for event in events if isinstance(event, Content))
    reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
    calls: list[tuple[CallStart, list[str]]] = []
    for event in events:
        if isinstance(event, CallStart):
            calls.append((event, []))
        elif isinstance(event, Arguments):
            calls[-1][1].append(event.text)
    return ChatMessage(
        content if content or not calls else None,
        "assistant",
        reasoning or UNSET,
        [_tool_call(start, "".join(texts)) for start, texts in calls] or UNSET,
    )


def _tool_call(start: CallStart, arguments: str) -> ToolCall:
    assert start.id is not None
    return ToolCall(start.id, CalledFunction(start.name, arguments))
