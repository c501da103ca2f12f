"""A chat's answer, streamed or whole, as the parts it consists of: what other dialects have blocks or items for.

Owns the reading of OpenAI's chunks, of any worker. Pure: must never know the dialect that the parts are told in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec


class Kind(Enum):
    """What a part is."""

    THOUGHT = auto()
    """Reasoning."""
    TEXT = auto()
    CALL = auto()
    """Of a tool; its text is the arguments, in JSON."""


@dataclass(slots=True, eq=False)
class Part:
    """One part of an answer; parts follow each other, and only the last one grows."""

    index: int
    """Its place among the answer's parts, from 0."""
    kind: Kind
    call_id: str = ""
    name: str = ""
    """Of the tool that is called."""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Opened:
    part: Part


@dataclass(frozen=True, slots=True)
class Grew:
    part: Part
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    part: Part


Step = Opened | Grew | Closed


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    """Absent from whole answers, and from streams of some servers that send each call in one piece."""
    id: str | None = None
    function: _Function | None = None


class _Words(msgspec.Struct):
    """A delta of a stream or the message of a whole answer."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """vLLM's newer name of `reasoning_content`."""
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Words | None = None
    message: _Words | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """vLLM's field, ours too: the stop string that ended it, or a token."""


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens of the request, as the worker counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, those that were not computed anew."""
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details else 0

    @property
    def reasoning_tokens(self) -> int:
        """0 also where the worker does not tell."""
        details = self.completion_tokens_details
        return (details.reasoning_tokens or 0) if details else 0


class _Document(msgspec.Struct):
    """A chunk, or a whole answer."""

    id: str = ""
    model: str = ""
    choices: list[_Choice] = []
    usage: Usage | None = None


_decoder = msgspec.json.Decoder(_Document)


class AnswerReader:
    """One answer. Only its first choice is read; the dialects that need this have no more."""

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self.parts: list[Part] = []
        self.finish_reason: str | None = None
        self.stop_string: str | None = None
        """What ended it, where the worker says so."""
        self.usage = Usage()
        self._open: Part | None = None
        self._call_index: int | None = None
        """Of the open call, as the worker counts."""

    @property
    def calls(self) -> bool:
        """Whether a tool is called."""
        return any(part.kind is Kind.CALL for part in self.parts)

    def chunk(self, payload: bytes) -> list[Step]:
        """What one chunk adds. Raises `ValueError` if it is none, or goes back to a part that is closed."""
        return self._read(payload)

    def whole(self, body: bytes) -> None:
        """Take in a whole answer. Raises `ValueError` if it is none."""
        self._read(body)
        self.close()
        if self.finish_reason is None:
            raise ValueError("it is no answer to a chat")

    def close(self) -> list[Step]:
        """The end of the last part."""
        part, self._open, self._call_index = self._open, None, None
        return [] if part is None else [Closed(part)]

    def _read(self, payload: bytes) -> list[Step]:
        document = _decoder.decode(payload)
        self.id = self.id or document.id
        self.model = self.model or document.model
        self.usage = document.usage or self.usage
        steps: list[Step] = []
        for choice in document.choices[:1]:
            words = choice.delta or choice.message
            if words is not None:
                steps += self._grow(Kind.THOUGHT, words.reasoning_content or words.reasoning)
                steps += self._grow(Kind.TEXT, words.content)
                steps += self._calls(words.tool_calls or (), whole=choice.message is not None)
            self.finish_reason = choice.finish_reason or self.finish_reason
            if isinstance(choice.stop_reason, str):
                self.stop_string = choice.stop_reason
        return steps

    def _grow(self, kind: Kind, text: str | None) -> list[Step]:
        if not text:
            return []
        steps: list[Step] = []
        if self._open is None or self._open.kind is not kind:
            steps = self._begin(Part(len(self.parts), kind))
        return [*steps, self._grown(text)]

    def _calls(self, calls: Sequence[_Call], *, whole: bool) -> list[Step]:
        steps: list[Step] = []
        for place, call in enumerate(calls):
            index = place if whole else call.index
            function = call.function or _Function()
            if self._begins(call, index):
                name = function.name or ""
                call_id = call.id or f"call_{self.id}_{len(self.parts)}"
                steps += self._begin(Part(len(self.parts), Kind.CALL, call_id, name))
                self._call_index = index
            if function.arguments:
                steps.append(self._grown(function.arguments))
        return steps

    def _begins(self, call: _Call, index: int | None) -> bool:
        """Whether it is another call than the one that grows."""
        if self._open is None or self._open.kind is not Kind.CALL:
            if not (call.function and call.function.name):
                raise ValueError("it goes on with a tool call that it has left")
            return True
        if index is None:
            # Who counts no calls sends each in one piece, or tells them apart by their ids.
            return bool(call.function and call.function.name) if call.id is None else call.id != self._open.call_id
        if self._call_index is not None and index < self._call_index:
            raise ValueError("it goes on with a tool call that it has left")
        return index != self._call_index

    def _begin(self, part: Part) -> list[Step]:
        steps = [*self.close(), Opened(part)]
        self.parts.append(part)
        self._open = part
        return steps

    def _grown(self, text: str) -> Grew:
        assert self._open is not None
        self._open.pieces.append(text)
        return Grew(self._open, text)
