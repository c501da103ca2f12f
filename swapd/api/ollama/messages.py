"""Conversations in Ollama's form, as OpenAI's. Pure.

There images are beside the text, arguments are objects, and calls have no ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from swapd.errors import BadRequestError


class CalledFunction(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1)]
    arguments: dict[str, Any] | str | None = None


class Call(msgspec.Struct):
    function: CalledFunction
    id: str | None = None


class Message(msgspec.Struct):
    """`thinking` is reasoning of an earlier answer; `tool_name` and `tool_call_id` say which call a result is of."""

    role: Annotated[str, Meta(min_length=1)]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


_IMAGE_TYPES = {"/9j/": "jpeg", "iVBOR": "png", "R0lGOD": "gif", "UklGR": "webp", "Qk": "bmp"}
"""How the base64 of each kind of file begins."""


def image_url(data: str) -> str:
    """An image in base64 as a data: URL. Raises `BadRequestError` for an address; other nonsense is the worker's to
    refuse."""
    if data.startswith("data:"):
        return data
    if ":" in data or "." in data:
        raise BadRequestError("images: expected images in base64; swapd fetches none", param="images")
    kind = next((kind for start, kind in _IMAGE_TYPES.items() if data.startswith(start)), "png")
    return f"data:image/{kind};base64,{data}"


def content(text: str, images: Sequence[str] | None) -> str | list[dict[str, Any]]:
    """A message's content: the images before the text, as Ollama puts them."""
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": image_url(one)}} for one in images]
    return [*parts, {"type": "text", "text": text}] if text else parts


def openai_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """OpenAI's messages. Calls without an id get one, and a result that names none belongs to the earliest call of its
    tool that has no result yet."""
    made: list[dict[str, Any]] = []
    unanswered: list[tuple[str, str]] = []
    calls = 0
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": content(message.content or "", message.images)}
        if message.thinking:
            one["reasoning_content"] = message.thinking
        if message.tool_calls:
            one["tool_calls"] = []
            for call in message.tool_calls:
                call_id = call.id or _call_id(calls)
                calls += 1
                unanswered.append((call_id, call.function.name))
                one["tool_calls"].append(_openai_call(call, call_id))
        if message.role == "tool":
            answered = _answered(message, unanswered)
            if answered is not None:
                one["tool_call_id"] = answered
            if message.tool_name:
                one["name"] = message.tool_name
        made.append(one)
    return made


def _call_id(number: int) -> str:
    """Nine letters and digits: Mistral's templates take no other."""
    return f"call{number % 100_000:05d}"


def _openai_call(call: Call, call_id: str) -> dict[str, Any]:
    arguments = call.function.arguments
    text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()
    return {"id": call_id, "type": "function", "function": {"name": call.function.name, "arguments": text}}


def _answered(message: Message, unanswered: list[tuple[str, str]]) -> str | None:
    """Which call a result is of; it has its result then."""
    for entry in unanswered:
        call_id, name = entry
        if message.tool_call_id == call_id or (not message.tool_call_id and message.tool_name in (None, "", name)):
            unanswered.remove(entry)
            return call_id
    return message.tool_call_id
