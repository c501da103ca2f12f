"""Answers of `/v1/messages`: a message of content blocks, whole or as a stream of events in Anthropic's order.

Owns that order: `message_start`, `ping`, then of each block in turn `content_block_start`, `content_block_delta`s and
`content_block_stop`, at last `message_delta` and `message_stop`. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from swapd.api.answers import AnswerReader, Closed, Grew, Kind, Opened, Part, Step
from swapd.api.anthropic import errors
from swapd.api.translation import EVENT_STREAM

_SIGNATURE = "c3dhcGQ="
"""Thinking blocks have one and clients send it back; nobody looks into it here."""
_STOP_REASONS: Mapping[str, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_DELTAS: Mapping[Kind, tuple[str, str]] = {
    Kind.TEXT: ("text_delta", "text"),
    Kind.THOUGHT: ("thinking_delta", "thinking"),
    Kind.CALL: ("input_json_delta", "partial_json"),
}


class _Told:
    """How errors are told, on both routes."""

    stream_type: ClassVar[str] = EVENT_STREAM

    def failure(self, status: int, envelope: Mapping[str, Any]) -> bytes:
        return _event(errors.translated(status, envelope))

    def refusal(self, status: int, envelope: Mapping[str, Any]) -> bytes:
        return msgspec.json.encode(errors.translated(status, envelope))


class MessageAnswer(_Told):
    """One message on its way back."""

    def __init__(self) -> None:
        self._reader = AnswerReader()
        self._started = False

    def event(self, payload: bytes) -> bytes:
        steps = self._reader.chunk(payload)
        return self._start() + b"".join(self._told(step) for step in steps)

    def end(self) -> bytes:
        """A block that was left open, why the message ended, and its end."""
        steps = self._reader.close()
        delta = {"type": "message_delta", "delta": self._stop(), "usage": self._usage()}
        told = [self._told(step) for step in steps]
        return b"".join([self._start(), *told, _event(delta), _event({"type": "message_stop"})])

    def whole(self, body: bytes) -> bytes:
        self._reader.whole(body)
        cut = self._reader.finish_reason == "length"
        content = [_block(part, cut=cut) for part in self._reader.parts]
        return msgspec.json.encode(self._message(content, self._stop(), self._usage()))

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        message = self._message([], {"stop_reason": None, "stop_sequence": None}, self._usage())
        return _event({"type": "message_start", "message": message}) + _event({"type": "ping"})

    def _told(self, step: Step) -> bytes:
        index = step.part.index
        match step:
            case Opened(part):
                return _event({"type": "content_block_start", "index": index, "content_block": _empty(part)})
            case Grew(part, text):
                kind, name = _DELTAS[part.kind]
                return _delta(index, {"type": kind, name: text})
            case Closed(part):
                signed = b""
                if part.kind is Kind.THOUGHT:
                    signed = _delta(index, {"type": "signature_delta", "signature": _SIGNATURE})
                return signed + _event({"type": "content_block_stop", "index": index})

    def _message(self, content: list[dict[str, Any]], stop: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._reader.id.removeprefix('chatcmpl-')}",
            "type": "message",
            "role": "assistant",
            "model": self._reader.model,
            "content": content,
            **stop,
            "usage": usage,
        }

    def _stop(self) -> dict[str, Any]:
        reader = self._reader
        reason = _STOP_REASONS.get(reader.finish_reason or "", "end_turn")
        if reason == "end_turn" and reader.calls:
            # What OpenAI says of an answer whose call was forced.
            reason = "tool_use"
        if reason == "end_turn" and reader.stop_string is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": reader.stop_string}
        return {"stop_reason": reason, "stop_sequence": None}

    def _usage(self) -> dict[str, Any]:
        """Anthropic counts what came from a cache apart from the rest."""
        usage = self._reader.usage
        made: dict[str, Any] = {
            "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
        }
        if usage.reasoning_tokens:
            made["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
        return made


class CountAnswer(_Told):
    """The answer of `/v1/messages/count_tokens`, which is never streamed."""

    def event(self, payload: bytes) -> bytes:  # noqa: ARG002 -- the contract's
        raise ValueError("a count is not streamed")

    def end(self) -> bytes:
        return b""

    def whole(self, body: bytes) -> bytes:
        return msgspec.json.encode(msgspec.json.decode(body, type=_Count))


class _Count(msgspec.Struct):
    input_tokens: int


def _empty(part: Part) -> dict[str, Any]:
    """A block as it begins."""
    match part.kind:
        case Kind.TEXT:
            return {"type": "text", "text": ""}
        case Kind.THOUGHT:
            return {"type": "thinking", "thinking": "", "signature": ""}
        case Kind.CALL:
            return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}}


def _block(part: Part, *, cut: bool) -> dict[str, Any]:
    """A whole block. Raises `ValueError` for arguments that are no object, unless the answer was cut off."""
    block = _empty(part)
    match part.kind:
        case Kind.TEXT:
            block["text"] = part.text
        case Kind.THOUGHT:
            block |= {"thinking": part.text, "signature": _SIGNATURE}
        case Kind.CALL:
            block["input"] = _arguments(part, cut=cut)
    return block


def _arguments(part: Part, *, cut: bool) -> dict[str, Any]:
    try:
        return msgspec.json.decode(part.text or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        if cut:
            return {}
        raise ValueError(f"the arguments of a call of {part.name[:64]!r} are no JSON object") from None


def _delta(index: int, delta: Mapping[str, Any]) -> bytes:
    return _event({"type": "content_block_delta", "index": index, "delta": delta})


def _event(document: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (document["type"].encode(), msgspec.json.encode(document))
