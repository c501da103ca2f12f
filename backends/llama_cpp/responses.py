"""What a client reads: whole answers and stream chunks in OpenAI's shapes, built from the engine's outputs.

Owns the order of a stream's events. Pure: outputs in, bytes out. Must never look at a request's text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec
from msgspec import UNSET, UnsetType

from backends.llama_cpp.chat.answers import ChatMessage, ChoiceReader, Delta, whole_message
from backends.llama_cpp.chat.events import Event
from backends.llama_cpp.engine.types import Ended, Output, Piece, Prefilled, TokenLogprobs
from backends.llama_cpp.errors import engine_failed
from backends.llama_cpp.logprobs import ChatLogprobs, TextLogprobs, chat_logprobs, text_logprobs

DONE = b"data: [DONE]\n\n"


NewReader = Callable[[], ChoiceReader]


class Dialect(Enum):
    """Which endpoint's shapes an answer takes."""

    CHAT = "chat"
    COMPLETION = "completion"


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a whole HTTP request, all prompts and choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | UnsetType = UNSET
    """Where there was any reasoning."""


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ChatMessage
    finish_reason: str | None
    logprobs: ChatLogprobs | None = None
    stop_reason: str | UnsetType = UNSET
    """vLLM's field: the stop string that ended it, if one did."""


class ChatChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    stop_reason: str | UnsetType = UNSET


class TextChoice(msgspec.Struct, frozen=True):
    """A choice of a text completion, whole or one chunk of it."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: TextLogprobs | None = None


Choice = ChatChoice | ChatChunkChoice | TextChoice


class Answer(msgspec.Struct, frozen=True):
    """The envelope of whole answers and of chunks. `usage` is left out, null or given, as OpenAI does."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[Choice]
    usage: Usage | UnsetType | None = UNSET


_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Heading:
    """What every chunk of one answer repeats."""

    dialect: Dialect
    request_id: str
    model_id: str
    created_s: int
    """Unix time in whole seconds."""

    def answer(self, choices: Sequence[Choice], usage: Usage | UnsetType | None, *, chunk: bool) -> bytes:
        """The JSON document around `choices`."""
        if self.dialect is Dialect.CHAT:
            prefix, kind = "chatcmpl", "chat.completion.chunk" if chunk else "chat.completion"
        else:
            prefix, kind = "cmpl", "text_completion"
        answer = Answer(f"{prefix}-{self.request_id}", kind, self.created_s, self.model_id, choices, usage)
        return _encoder.encode(answer)


@dataclass(slots=True)
class Tally:
    """Adds up the engine requests behind one HTTP request."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, ended: Ended) -> None:
        self.prompt_tokens += ended.prompt_tokens
        self.cached_tokens += ended.cached_tokens
        self.completion_tokens += ended.completion_tokens

    def usage(self, readers: Iterable[ChoiceReader]) -> Usage:
        reasoning_tokens = sum(reader.reasoning_tokens for reader in readers)
        return Usage(
            self.prompt_tokens,
            self.completion_tokens,
            self.prompt_tokens + self.completion_tokens,
            PromptDetails(self.cached_tokens),
            CompletionDetails(reasoning_tokens) if reasoning_tokens else UNSET,
        )


@dataclass(slots=True)
class Stream:
    """Turns outputs into server-sent events. `first_index` maps each engine request to its first choice."""

    heading: Heading
    first_index: Mapping[str, int]
    n: int
    include_usage: bool
    new_reader: NewReader | None = None
    """Reads each choice of a chat."""
    failed: bool = False
    """An error was sent: it is the last event of the stream."""
    _open: set[str] = field(init=False)
    _readers: Mapping[int, ChoiceReader] = field(init=False)
    _tally: Tally = field(default_factory=Tally)
    _untold: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    """Logprobs of text that the reader of a chat's choice holds back."""

    def __post_init__(self) -> None:
        self._open = set(self.first_index)
        self._readers = _readers(self.new_reader, len(self.first_index) * self.n)

    @property
    def finished(self) -> bool:
        return self.failed or not self._open

    def feed(self, outputs: Sequence[Output]) -> bytes:
        """The events these outputs make, as one block of bytes; empty when there is nothing to tell yet."""
        events: list[bytes] = []
        for output in outputs:
            assert not self.finished, "an output came after the end of its request"
            match output:
                case Piece():
                    events += self._piece(output)
                case Prefilled() if self.heading.dialect is Dialect.CHAT:
                    first = self.first_index[output.request_id]
                    opening = Delta(role="assistant", content="")
                    events += [self._event(ChatChunkChoice(first + k, opening)) for k in range(self.n)]
                case Ended():
                    events += self._ended(output)
                    if self.failed:
                        break
                case _:
                    pass
        return b"".join(events)

    def _piece(self, piece: Piece) -> list[bytes]:
        index = self.first_index[piece.request_id] + piece.index
        if self.heading.dialect is Dialect.COMPLETION:
            finish = piece.finish.value if piece.finish else None
            logprobs = text_logprobs(piece.logprobs) if piece.logprobs else None
            return [self._event(TextChoice(index, piece.text, finish, logprobs))] if piece.text or finish else []
        reader = self._readers[index]
        deltas = reader.deltas(piece.text, piece.tokens, last=piece.finish is not None)
        choices = [ChatChunkChoice(index, delta) for delta in deltas]
        if piece.finish:
            finish = reader.finish_reason(piece.finish)
            choices.append(ChatChunkChoice(index, Delta(), finish, stop_reason=piece.stopped_by or UNSET))
        if piece.logprobs or index in self._untold:
            self._tell(index, piece, choices)
        return [self._event(choice) for choice in choices]

    def _tell(self, index: int, piece: Piece, choices: list[ChatChunkChoice]) -> None:
        """Put the logprobs of all text read so far into the first of these chunks, or keep them for the next one."""
        untold = [*self._untold.pop(index, ()), *piece.logprobs]
        if choices:
            choices[0] = msgspec.structs.replace(choices[0], logprobs=chat_logprobs(untold))
        else:
            self._untold[index] = untold

    def _ended(self, ended: Ended) -> list[bytes]:
        if ended.error is not None:
            self.failed = True
            return [b"data: " + engine_failed(ended.error).envelope() + b"\n\n"]
        self._open.discard(ended.request_id)
        self._tally.add(ended)
        if self._open:
            return []
        events = []
        if self.include_usage:
            usage = self._tally.usage(self._readers.values())
            events.append(b"data: " + self.heading.answer((), usage, chunk=True) + b"\n\n")
        return [*events, DONE]

    def _event(self, choice: Choice) -> bytes:
        usage = None if self.include_usage else UNSET
        return b"data: " + self.heading.answer((choice,), usage, chunk=True) + b"\n\n"


@dataclass(slots=True)
class Whole:
    """Collects outputs into one answer, choices in the order of their prompts."""

    heading: Heading
    first_index: Mapping[str, int]
    n: int
    new_reader: NewReader | None = None
    """Reads each choice of a chat."""
    logprobs: bool = False
    """Whether they were asked for."""
    _texts: dict[int, list[str]] = field(default_factory=dict)
    _events: dict[int, list[Event]] = field(default_factory=dict)
    _finishes: dict[int, str] = field(default_factory=dict)
    _stops: dict[int, str] = field(default_factory=dict)
    _logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    _open: set[str] = field(init=False)
    _readers: Mapping[int, ChoiceReader] = field(init=False)
    _tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._open = set(self.first_index)
        self._readers = _readers(self.new_reader, len(self.first_index) * self.n)

    @property
    def finished(self) -> bool:
        return not self._open

    def feed(self, outputs: Sequence[Output]) -> None:
        """Take outputs in. Raises `RequestError` when the engine gave the request up."""
        for output in outputs:
            match output:
                case Piece():
                    self._piece(output, self.first_index[output.request_id] + output.index)
                case Ended():
                    if output.error is not None:
                        raise engine_failed(output.error)
                    self._open.discard(output.request_id)
                    self._tally.add(output)
                case _:
                    pass

    def _piece(self, piece: Piece, index: int) -> None:
        reader = self._readers.get(index)
        if reader is None:
            self._texts.setdefault(index, []).append(piece.text)
        else:
            read = reader.read(piece.text, piece.tokens, last=piece.finish is not None)
            self._events.setdefault(index, []).extend(read)
        if piece.logprobs:
            self._logprobs.setdefault(index, []).extend(piece.logprobs)
        if piece.finish:
            self._finishes[index] = reader.finish_reason(piece.finish) if reader else piece.finish.value
        if piece.stopped_by:
            self._stops[index] = piece.stopped_by

    def answer(self) -> bytes:
        """The whole answer as a JSON document."""
        assert self.finished
        indexes = range(len(self.first_index) * self.n)
        usage = self._tally.usage(self._readers.values())
        return self.heading.answer([self._choice(index) for index in indexes], usage, chunk=False)

    def _choice(self, index: int) -> Choice:
        finish = self._finishes.get(index)
        entries = self._logprobs.get(index, ())
        if self.heading.dialect is Dialect.CHAT:
            message = whole_message(self._events.get(index, ()))
            logprobs = chat_logprobs(entries) if self.logprobs else None
            return ChatChoice(index, message, finish, logprobs, self._stops.get(index, UNSET))
        text = "".join(self._texts.get(index, ()))
        return TextChoice(index, text, finish, text_logprobs(entries) if self.logprobs else None)


def _readers(new_reader: NewReader | None, count: int) -> dict[int, ChoiceReader]:
    return {index: new_reader() for index in range(count)} if new_reader else {}
