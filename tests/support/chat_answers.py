"""Answers of a worker to chats, made up: whole documents and the chunks of streams, as OpenAI has them."""

from __future__ import annotations

import json
from typing import Any

from swapd.api.translation import Translation

USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 16},
}


def call(index: int | None, name: str | None = None, arguments: str | None = None, call_id: str | None = None) -> Any:
    """One entry of a delta's `tool_calls`."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    made: dict[str, Any] = {"function": function}
    if index is not None:
        made["index"] = index
    if call_id is not None:
        made |= {"id": call_id, "type": "function"}
    return made


def chunk(finish: str | None = None, *, usage: Any = None, stop_reason: Any = None, **delta: Any) -> bytes:
    """One chunk. `usage` makes it the last one, which has no choice."""
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
    if stop_reason is not None:
        choice["stop_reason"] = stop_reason
    document = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    return json.dumps({**document, "choices": [] if usage else [choice], "usage": usage}).encode()


def whole(finish: str = "stop", *, stop_reason: Any = None, usage: Any = None, **message: Any) -> bytes:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    if stop_reason is not None:
        choice["stop_reason"] = stop_reason
    document = {"id": "chatcmpl-7", "object": "chat.completion", "created": 1, "model": "tiny"}
    return json.dumps({**document, "choices": [choice], "usage": usage or USAGE}).encode()


def events_of(answer: Translation, chunks: list[bytes], *, ends: bool = True) -> list[dict[str, Any]]:
    """What a client reads of a stream, each event's data, its name checked to be the data's type."""
    sent = b"".join(answer.event(one) for one in chunks) + (answer.end() if ends else b"")
    return read_events(sent)


def read_events(sent: bytes) -> list[dict[str, Any]]:
    """The events in some bytes."""
    made = []
    assert not sent or sent.endswith(b"\n\n")
    for event in sent.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        document: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert name == f"event: {document['type']}"
        made.append(document)
    return made
