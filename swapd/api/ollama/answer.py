"""What Ollama's clients get: lines of a stream, whole documents, vectors, errors.

Owns their shapes and the durations in them, in whole nanoseconds, as the front door has measured them. Pure: the clock
is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, ClassVar, Protocol

import msgspec

from swapd.api.ollama.pieces import InfillReader, OpenAIReader, Piece, Reader
from swapd.api.openai import Endpoint
from swapd.errors import SwapdError, WorkerLostError

LINES = "application/x-ndjson"
MAX_DOCUMENT_CHARS = 64 * 1024 * 1024
"""Of the text of an answer that is collected."""

READERS: Mapping[Endpoint, Callable[[], Reader]] = {
    Endpoint.CHAT_COMPLETIONS: OpenAIReader,
    Endpoint.COMPLETIONS: OpenAIReader,
    Endpoint.INFILL: InfillReader,
}


class Times(Protocol):
    """What the front door knows of a request's time: seconds, and of the clock on the wall."""

    arrived_at: float
    """Unix time, seconds."""
    waited_s: float
    """For its place at a worker, the model's load with it."""
    first_token_s: float | None
    """From its arrival."""

    def age_s(self) -> float: ...


class Shape(Enum):
    """Which endpoint's documents an answer has."""

    CHAT = "chat"
    GENERATE = "generate"
    EMBED = "embed"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True)
class Heading:
    """What every document of one answer repeats."""

    model_name: str
    """As the client wrote it."""
    shape: Shape
    times: Times

    def created_at(self) -> str:
        return timestamp(self.times.arrived_at + self.times.age_s())


def timestamp(unix_s: float) -> str:
    """RFC 3339 with an offset in digits, which every version of Python reads."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="microseconds")


def empty(heading: Heading, reason: str) -> bytes:
    """The answer of a request that only loads a model (`load`) or lets it go (`unload`)."""
    match heading.shape:
        case Shape.EMBED:
            return _json({"model": heading.model_name, "embeddings": []})
        case Shape.EMBEDDINGS:
            return _json({"embedding": []})
        case _:
            return _json(_document(heading, Piece(), done=True) | {"done_reason": reason})


def error_document(error: SwapdError) -> Mapping[str, Any]:
    """Ollama's error object."""
    return {"error": error.message}


def _message_of(envelope: Mapping[str, Any]) -> str:
    error = envelope.get("error")
    message = error.get("message") if isinstance(error, Mapping) else error
    return str(message)


class _Translation:
    """What streams and documents have in common."""

    def __init__(self, heading: Heading, new_reader: Callable[[], Reader]) -> None:
        self._heading = heading
        self._reader = new_reader()

    def whole(self, body: bytes) -> bytes:
        piece = self._reader.read(body)
        return _json(_document(self._heading, piece, done=True) | self._ending())

    def refusal(self, _status: int, envelope: Mapping[str, Any]) -> bytes:
        return _json({"error": _message_of(envelope)})

    def _ending(self) -> dict[str, Any]:
        """The last document's further fields. Before the first token is the prompt's time, after it the answer's."""
        times, reader = self._heading.times, self._reader
        age_s = times.age_s()
        first_s = age_s if times.first_token_s is None else times.first_token_s
        ending: dict[str, Any] = {
            "done_reason": "length" if reader.finish == "length" else "stop",
            "total_duration": _ns(age_s),
            "load_duration": _ns(times.waited_s),
            "prompt_eval_duration": _ns(first_s - times.waited_s),
            "eval_duration": _ns(age_s - first_s),
        }
        if reader.prompt_tokens is not None:
            ending["prompt_eval_count"] = reader.prompt_tokens
        if reader.answer_tokens is not None:
            ending["eval_count"] = reader.answer_tokens
        return ending


class Lines(_Translation):
    """A streamed answer: a line of JSON for each piece, the last one with `done`."""

    stream_type: ClassVar[str] = LINES

    def event(self, payload: bytes) -> bytes:
        return self._line(self._reader.read(payload))

    def end(self) -> bytes:
        last = _document(self._heading, Piece(), done=True) | self._ending()
        return self._line(self._reader.end()) + _json(last) + b"\n"

    def failure(self, _status: int, envelope: Mapping[str, Any]) -> bytes:
        return _json({"error": _message_of(envelope)}) + b"\n"

    def _line(self, piece: Piece) -> bytes:
        return b"" if piece == Piece() else _json(_document(self._heading, piece, done=False)) + b"\n"


class Document(_Translation):
    """An answer that is not streamed, collected from a stream: only so are its times known."""

    stream_type: ClassVar[str] = "application/json"

    def __init__(self, heading: Heading, new_reader: Callable[[], Reader]) -> None:
        super().__init__(heading, new_reader)
        self._pieces: list[Piece] = []
        self._chars = 0

    def event(self, payload: bytes) -> bytes:
        self._add(self._reader.read(payload))
        return b""

    def end(self) -> bytes:
        self._add(self._reader.end())
        whole = Piece(
            "".join(piece.text for piece in self._pieces),
            "".join(piece.thinking for piece in self._pieces),
            tuple(call for piece in self._pieces for call in piece.calls),
        )
        return _json(_document(self._heading, whole, done=True) | self._ending())

    def failure(self, _status: int, envelope: Mapping[str, Any]) -> bytes:
        """Nothing is sent before the end, so that an error still has a status: it is raised."""
        raise WorkerLostError(_message_of(envelope))

    def _add(self, piece: Piece) -> None:
        self._chars += len(piece.text) + len(piece.thinking)
        if self._chars > MAX_DOCUMENT_CHARS:
            raise WorkerLostError(f"the answer has more than {MAX_DOCUMENT_CHARS} characters; stream it")
        if piece != Piece():
            self._pieces.append(piece)


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _VectorUsage(msgspec.Struct):
    prompt_tokens: int = 0


class _VectorAnswer(msgspec.Struct):
    data: list[_Vector]
    usage: _VectorUsage = msgspec.field(default_factory=_VectorUsage)


_vectors = msgspec.json.Decoder(_VectorAnswer)


class Vectors:
    """The answers of /api/embed and /api/embeddings."""

    stream_type: ClassVar[str] = LINES

    def __init__(self, heading: Heading) -> None:
        self._heading = heading

    def event(self, _payload: bytes) -> bytes:
        raise ValueError("vectors are not streamed")

    def end(self) -> bytes:
        raise ValueError("vectors are not streamed")

    def failure(self, _status: int, envelope: Mapping[str, Any]) -> bytes:
        return _json({"error": _message_of(envelope)}) + b"\n"

    def whole(self, body: bytes) -> bytes:
        answer = _vectors.decode(body)
        vectors = [one.embedding for one in sorted(answer.data, key=lambda one: one.index)]
        if self._heading.shape is Shape.EMBEDDINGS:
            return _json({"embedding": vectors[0] if vectors else []})
        times = self._heading.times
        return _json(
            {
                "model": self._heading.model_name,
                "embeddings": vectors,
                "total_duration": _ns(times.age_s()),
                "load_duration": _ns(times.waited_s),
                "prompt_eval_count": answer.usage.prompt_tokens,
            }
        )

    def refusal(self, _status: int, envelope: Mapping[str, Any]) -> bytes:
        return _json({"error": _message_of(envelope)})


def _document(heading: Heading, piece: Piece, *, done: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"model": heading.model_name, "created_at": heading.created_at()}
    said: dict[str, Any] = {}
    if piece.thinking:
        said["thinking"] = piece.thinking
    if piece.calls:
        said["tool_calls"] = list(piece.calls)
    if heading.shape is Shape.CHAT:
        document["message"] = {"role": "assistant", "content": piece.text, **said}
    else:
        document |= {"response": piece.text, **said}
    return {**document, "done": done}


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


_json = msgspec.json.encode
