"""Answers of `/v1/responses`: a response of items, whole or as a stream of events in OpenAI's order.

Owns that order, the numbers of the events and what is stored of a response once it is whole. Pure: storing is a
function that it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgspec

from swapd.api.answers import AnswerReader, Closed, Grew, Kind, Opened, Part, Step
from swapd.api.responses.store import Stored
from swapd.api.translation import EVENT_STREAM

_PREFIXES: Mapping[Kind, str] = {Kind.TEXT: "msg", Kind.THOUGHT: "rs", Kind.CALL: "fc"}
_INCOMPLETE: Mapping[str, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ECHOED = (
    "instructions", "max_output_tokens", "metadata", "previous_response_id", "temperature", "top_p", "user",
    "safety_identifier", "prompt_cache_key", "max_tool_calls",
)  # fmt: skip


def response_of(response_id: str, created_at: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A response as it begins, with the request's fields that it repeats. `created_at` is a Unix time in seconds."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": fields["model"],
        "output": [],
        "parallel_tool_calls": fields.get("parallel_tool_calls") is not False,
        "reasoning": fields.get("reasoning") or {"effort": None, "summary": None},
        "store": fields.get("store") is not False,
        "text": fields.get("text") or {"format": {"type": "text"}},
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": fields.get("tools") or [],
        "truncation": "disabled",
        "usage": None,
        **{name: fields.get(name) for name in _ECHOED},
    }


class ResponseAnswer:
    """One response on its way back."""

    stream_type: ClassVar[str] = EVENT_STREAM

    def __init__(self, opening: Mapping[str, Any], before: bytes, keep: Callable[[Stored], bool] | None) -> None:
        """`before` are the items that it answers, as a JSON array. `keep` stores it, unless it is not to be."""
        self._opening = dict(opening)
        self._before = before
        self._keep = keep
        self._reader = AnswerReader()
        self._number = 0
        self._begun = False
        self._done: list[dict[str, Any]] = []

    def event(self, payload: bytes) -> bytes:
        steps = self._reader.chunk(payload)
        return self._begin() + b"".join(self._told(step) for step in steps)

    def end(self) -> bytes:
        """What is still open, and the whole response."""
        told = [self._begin(), *(self._told(step) for step in self._reader.close())]
        response = self._finished()
        return b"".join(told) + self._event(f"response.{response['status']}", response=response)

    def failure(self, status: int, envelope: Mapping[str, Any]) -> bytes:
        begun = self._begin()
        response = self._opening | {"status": "failed", "error": _error(status, envelope), "output": self._done}
        return begun + self._event("response.failed", response=response | {"store": False})

    def whole(self, body: bytes) -> bytes:
        self._reader.whole(body)
        self._done = [self._item(part, self._status_of(part), part.text) for part in self._reader.parts]
        return msgspec.json.encode(self._finished())

    def refusal(self, _status: int, envelope: Mapping[str, Any]) -> bytes:
        return msgspec.json.encode(envelope)

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        self._opening["model"] = self._reader.model or self._opening["model"]
        return self._event("response.created", response=self._opening) + self._event(
            "response.in_progress", response=self._opening
        )

    def _told(self, step: Step) -> bytes:
        match step:
            case Opened(part):
                return self._opened(part)
            case Grew(part, text):
                return self._event(_NAMES[part.kind] + ".delta", **self._place(part), delta=text, **_logprobs(part))
            case Closed(part):
                return self._closed(part)

    def _opened(self, part: Part) -> bytes:
        item = self._item(part, "in_progress", None)
        added = self._event("response.output_item.added", output_index=part.index, item=item)
        if part.kind is Kind.CALL:
            return added
        return added + self._event("response.content_part.added", **self._place(part), part=_content(part, ""))

    def _closed(self, part: Part) -> bytes:
        item = self._item(part, self._status_of(part), part.text)
        self._done.append(item)
        place = self._place(part)
        if part.kind is Kind.CALL:
            told = self._event(_NAMES[part.kind] + ".done", **place, name=part.name, arguments=part.text)
        else:
            told = self._event(_NAMES[part.kind] + ".done", **place, text=part.text, **_logprobs(part))
            told += self._event("response.content_part.done", **place, part=_content(part, part.text))
        return told + self._event("response.output_item.done", output_index=part.index, item=item)

    def _place(self, part: Part) -> dict[str, Any]:
        place = {"item_id": self._item_id(part), "output_index": part.index}
        return place if part.kind is Kind.CALL else {**place, "content_index": 0}

    def _item_id(self, part: Part) -> str:
        """Names the response as well, so that an item can be found by its id alone."""
        return f"{_PREFIXES[part.kind]}_{self._opening['id'].removeprefix('resp_')}_{part.index}"

    def _item(self, part: Part, status: str, text: str | None) -> dict[str, Any]:
        """An item of the output; without `text` it has only begun."""
        item: dict[str, Any] = {"id": self._item_id(part), "status": status}
        match part.kind:
            case Kind.CALL:
                return item | {
                    "type": "function_call",
                    "call_id": part.call_id,
                    "name": part.name,
                    "arguments": text or "",
                }
            case Kind.THOUGHT:
                item |= {"type": "reasoning", "summary": [], "encrypted_content": None}
            case Kind.TEXT:
                item |= {"type": "message", "role": "assistant"}
        return item | {"content": [] if text is None else [_content(part, text)]}

    def _status_of(self, part: Part) -> str:
        """Only the last part can have been cut off."""
        cut = self._reader.finish_reason in _INCOMPLETE and part is self._reader.parts[-1]
        return "incomplete" if cut else "completed"

    def _finished(self) -> dict[str, Any]:
        """The whole response, stored if it is to be and can be."""
        reason = _INCOMPLETE.get(self._reader.finish_reason or "")
        response = self._opening | {
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "model": self._reader.model or self._opening["model"],
            "output": self._done,
            "usage": self._usage(),
        }
        if self._keep is not None and not self._keep(Stored(msgspec.json.encode(response), self._before)):
            response["store"] = False
        return response

    def _usage(self) -> dict[str, Any]:
        usage = self._reader.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        document = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(document))


_NAMES: Mapping[Kind, str] = {
    Kind.TEXT: "response.output_text",
    Kind.THOUGHT: "response.reasoning_text",
    Kind.CALL: "response.function_call_arguments",
}
"""What events about a part's text begin with."""


def _content(part: Part, text: str) -> dict[str, Any]:
    if part.kind is Kind.THOUGHT:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _logprobs(part: Part) -> dict[str, Any]:
    """Events of texts have the field always."""
    return {"logprobs": []} if part.kind is Kind.TEXT else {}


def _error(status: int, envelope: Mapping[str, Any]) -> dict[str, Any]:
    """A response's own error, whose codes are few."""
    told = envelope.get("error")
    message = told.get("message") if isinstance(told, Mapping) else None
    code = "rate_limit_exceeded" if status == 429 else "invalid_prompt" if status < 500 else "server_error"
    return {"code": code, "message": str(message or "the worker gave no reason")}
