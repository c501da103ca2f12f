"""OpenAI's messages, as the requests of other dialects become them.

Owns what their translations share: which template gets what, and which of a client's fields reach a worker. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swapd.errors import BadRequestError

Message = dict[str, Any]
Part = dict[str, Any]

_EFFORTS: Mapping[str, str] = {"minimal": "low", "xhigh": "high", "max": "high"}
"""Levels of reasoning that models' templates do not know, as the nearest that they do."""

_CHATS_OWN = frozenset((
    "messages", "max_completion_tokens", "n", "n_cmpl", "best_of", "echo", "suffix", "prompt", "stream_options",
    "response_format", "logprobs", "top_logprobs", "n_probs", "functions", "function_call", "modalities", "audio",
))  # fmt: skip
"""What a translation decides itself, or what would give an answer that it could not carry."""


def text(content: str) -> Part:
    return {"type": "text", "text": content}


def image(url: str) -> Part:
    return {"type": "image_url", "image_url": {"url": url}}


def said(role: str, parts: Sequence[Part]) -> Message:
    """A message of these parts; one string where all are text, which every server and template takes."""
    if all(part["type"] == "text" for part in parts):
        return {"role": role, "content": "\n".join(part["text"] for part in parts)}
    return {"role": role, "content": list(parts)}


def called(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call of a tool in the history."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def offered(name: str, description: str | None, schema: Mapping[str, Any] | None, strict: bool | None) -> Message:
    """A tool that may be called."""
    function: dict[str, Any] = {"name": name}
    if description is not None:
        function["description"] = description
    if schema is not None:
        function["parameters"] = schema
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


def joined(messages: Iterable[Message]) -> list[Message]:
    """The messages with the system's first ones as one: many templates take no second."""
    made: list[Message] = []
    for message in messages:
        if len(made) == 1 and message["role"] == made[0]["role"] == "system" and _texts(made[0], message):
            made[0] = {"role": "system", "content": f"{made[0]['content']}\n\n{message['content']}"}
        else:
            made.append(message)
    return made


def _texts(*messages: Message) -> bool:
    return all(isinstance(message["content"], str) for message in messages)


def effort(asked: str) -> str:
    """How much to reason, in words that templates know."""
    return _EFFORTS.get(asked, asked)


def further(fields: Mapping[str, Any], own: Iterable[str], where: str) -> dict[str, Any]:
    """The client's fields that are not its dialect's own, such as a worker's samplers: a worker gets them as they are.

    Raises `BadRequestError` for those of chats that would not mean the same at `where`.
    """
    others = {name: value for name, value in fields.items() if name not in own and value is not None}
    for name in sorted(_CHATS_OWN & others.keys()):
        raise BadRequestError(f"{name}: is not a field of {where}; leave it out", param=name)
    return others
