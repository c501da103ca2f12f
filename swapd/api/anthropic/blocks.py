"""Anthropic's messages as OpenAI's: text, images, tools' calls and results, thinking.

Owns the kinds of content blocks that are understood; any other is refused by name. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from swapd.api.conversation import Message, Part, called, image, said, text
from swapd.api.shapes import required
from swapd.errors import BadRequestError

BILLING = "x-anthropic-billing-header:"
"""Claude Code's first line of a system prompt. It differs in each request, so that no prefix could be reused."""


class Source(msgspec.Struct):
    """Where an image or a document is."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class Block(msgspec.Struct):
    """One block of content, of any kind."""

    type: str
    text: str | None = None
    source: Source | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None
    thinking: str | None = None


class Turn(msgspec.Struct):
    """One of `messages`."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


Turns = Annotated[list[Turn], msgspec.Meta(min_length=1)]


def messages(system: str | Sequence[Block] | None, turns: Iterable[Turn]) -> list[Message]:
    """The conversation. Raises `BadRequestError` naming the block that is not understood."""
    made = _system(system or "", "system")
    for index, turn in enumerate(turns):
        where = f"messages[{index}].content"
        if turn.role == "system":
            made += _system(turn.content, where)
        elif turn.role == "user":
            made += _user(turn.content, where)
        else:
            made.append(_assistant(turn.content, where))
    return made


def _system(content: str | Sequence[Block], where: str) -> list[Message]:
    blocks = [Block("text", text=content)] if isinstance(content, str) else content
    texts = []
    for index, block in enumerate(blocks):
        if block.type != "text":
            raise _not_here(block, f"{where}[{index}]", "a system prompt")
        words = required(block.text, f"{where}[{index}].text")
        if words.startswith(BILLING):
            words = words.partition("\n")[2]
        if words:
            texts.append(words)
    return [{"role": "system", "content": "\n".join(texts)}] if texts else []


def _user(content: str | Sequence[Block], where: str) -> list[Message]:
    """Results come first, as Anthropic demands; their images stand with what the user says, where templates show them.

    Never empty.
    """
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Message] = []
    parts: list[Part] = []
    for index, block in enumerate(content):
        here = f"{where}[{index}]"
        if block.type == "tool_result":
            result, images = _result(block, here)
            results.append(result)
            parts += images
        else:
            parts.append(_part(block, here, "a message of the user"))
    return [*results, said("user", parts)] if parts or not results else results


def _result(block: Block, where: str) -> tuple[Message, list[Part]]:
    call_id = required(block.tool_use_id, f"{where}.tool_use_id")
    blocks = [Block("text", text=block.content)] if isinstance(block.content, str) else block.content or []
    parts = [_part(one, f"{where}.content[{index}]", "a result") for index, one in enumerate(blocks)]
    words = "\n".join(part["text"] for part in parts if part["type"] == "text")
    if block.is_error:
        words = f"Error: {words}" if words else "Error"
    return {"role": "tool", "tool_call_id": call_id, "content": words}, [p for p in parts if p["type"] != "text"]


def _part(block: Block, where: str, place: str) -> Part:
    if block.type == "text":
        return text(required(block.text, f"{where}.text"))
    if block.type == "image":
        return image(_image_url(required(block.source, f"{where}.source"), f"{where}.source"))
    if block.type == "document":
        source = required(block.source, f"{where}.source")
        if source.type != "text":
            raise BadRequestError(
                f"{where}.source.type: {source.type[:64]!r} cannot be read here, only documents of type text",
                param=f"{where}.source.type",
            )
        return text(required(source.data, f"{where}.source.data"))
    raise _not_here(block, where, place)


def _image_url(source: Source, where: str) -> str:
    if source.type == "base64":
        media_type = required(source.media_type, f"{where}.media_type")
        return f"data:{media_type};base64,{required(source.data, f'{where}.data')}"
    if source.type == "url":
        return required(source.url, f"{where}.url")
    raise BadRequestError(f"{where}.type: {source.type[:64]!r} is not known; send base64", param=f"{where}.type")


def _assistant(content: str | Sequence[Block], where: str) -> Message:
    """The blocks of an answer belong together as they come; calls stand after all text."""
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    words, thoughts, calls = [], [], []
    for index, block in enumerate(content):
        here = f"{where}[{index}]"
        if block.type == "text":
            words.append(required(block.text, f"{here}.text"))
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type == "tool_use":
            arguments = msgspec.json.encode(block.input or {}).decode()
            calls.append(called(required(block.id, f"{here}.id"), required(block.name, f"{here}.name"), arguments))
        elif block.type != "redacted_thinking":
            raise _not_here(block, here, "a message of the assistant")
    made: Message = {"role": "assistant", "content": "".join(words)}
    if any(thoughts):
        made["reasoning_content"] = "\n".join(thoughts)
    if calls:
        made["tool_calls"] = calls
        made["content"] = made["content"] or None
    return made


def _not_here(block: Block, where: str, place: str) -> BadRequestError:
    return BadRequestError(
        f"{where}.type: a block of type {block.type[:64]!r} is not known in {place}", param=f"{where}.type"
    )
