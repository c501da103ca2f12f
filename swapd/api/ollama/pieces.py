"""What a worker says, read piece by piece: texts, reasoning, whole tool calls, the end, the counts. Pure.

Owns the shapes of OpenAI's answers and of llama-server's /infill, as far as Ollama's dialect has a place for what is in
them. A piece may hold nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk, or a whole answer, adds."""

    text: str = ""
    thinking: str = ""
    calls: tuple[dict[str, Any], ...] = ()
    """In Ollama's form: arguments are objects."""


class Reader(Protocol):
    """One answer. Raises `ValueError` for what is no chunk."""

    finish: str | None
    """OpenAI's reason for the end, once it is told."""
    prompt_tokens: int | None
    answer_tokens: int | None

    def read(self, payload: bytes) -> Piece:
        """A chunk, or a whole answer."""
        ...

    def end(self) -> Piece:
        """What was held back, after the last chunk."""
        ...


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Said(msgspec.Struct):
    """A delta or a message. `reasoning` is vLLM's newer name."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


_answers = msgspec.json.Decoder(_Answer)


@dataclass(slots=True)
class _Begun:
    """A call that is being written."""

    id: str | None
    name: str
    arguments: list[str] = field(default_factory=list)
    given: dict[str, Any] | None = None


class OpenAIReader:
    """Chats and text completions, whole or in chunks. A call is told once the next one begins, or at the end."""

    def __init__(self) -> None:
        self.finish: str | None = None
        self.prompt_tokens: int | None = None
        self.answer_tokens: int | None = None
        self._begun: _Begun | None = None
        self._index: int | None = None

    def read(self, payload: bytes) -> Piece:
        answer = _answers.decode(payload)
        if answer.usage is not None:
            self.prompt_tokens, self.answer_tokens = answer.usage.prompt_tokens, answer.usage.completion_tokens
        if not answer.choices:
            return Piece()
        choice = answer.choices[0]
        said = choice.message or choice.delta or _Said(content=choice.text)
        told = [self._follow(call) for call in said.tool_calls or ()]
        if choice.finish_reason is not None:
            self.finish = choice.finish_reason
        pieces = [piece for piece in told if piece is not None]
        if choice.message is not None:
            pieces.append(self.end())
        return Piece(
            (said.content or "") + "".join(piece.text for piece in pieces),
            said.reasoning_content or said.reasoning or "",
            tuple(call for piece in pieces for call in piece.calls),
        )

    def _follow(self, call: _Call) -> Piece | None:
        """Take a part of a call; returns the one before it if that is whole now."""
        function = call.function or _Function()
        whole = None
        begins = function.name is not None and (call.index is None or call.index != self._index or self._begun is None)
        if begins:
            assert function.name is not None
            whole = self.end()
            self._begun, self._index = _Begun(call.id, function.name), call.index
        if self._begun is not None and isinstance(function.arguments, dict):
            self._begun.given = function.arguments
        elif self._begun is not None and isinstance(function.arguments, str):
            self._begun.arguments.append(function.arguments)
        return whole

    def end(self) -> Piece:
        begun, self._begun = self._begun, None
        return Piece() if begun is None else _called(begun)


def _called(begun: _Begun) -> Piece:
    """A whole call. One whose arguments are no object, as of an answer cut short, is shown as the text that it is."""
    text = "".join(begun.arguments)
    arguments: object = begun.given
    if begun.given is None:
        try:
            arguments = msgspec.json.decode(text or "{}")
        except (msgspec.DecodeError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        return Piece(text=f'{{"name": "{begun.name}", "arguments": {text}')
    call: dict[str, Any] = {"function": {"name": begun.name, "arguments": arguments}}
    return Piece(calls=({"id": begun.id, **call} if begun.id else call,))


class _Filling(msgspec.Struct):
    content: str = ""
    stop: bool = False
    stop_type: str | None = None
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None


_fillings = msgspec.json.Decoder(_Filling)


class InfillReader:
    """llama-server's native answers."""

    def __init__(self) -> None:
        self.finish: str | None = None
        self.prompt_tokens: int | None = None
        self.answer_tokens: int | None = None

    def read(self, payload: bytes) -> Piece:
        filling = _fillings.decode(payload)
        if filling.stop:
            self.finish = "length" if filling.stop_type == "limit" else "stop"
            self.prompt_tokens, self.answer_tokens = filling.tokens_evaluated, filling.tokens_predicted
        return Piece(filling.content)

    def end(self) -> Piece:
        return Piece()
