"""Items of a response's input as messages of a chat: messages, calls and their outputs, reasoning.

Owns the kinds of items that are understood; any other is refused by name. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from swapd.api.conversation import Message, Part, called, image, said, text
from swapd.api.shapes import required
from swapd.errors import BadRequestError

_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_SYSTEM = ("system", "developer")


class Content(msgspec.Struct):
    """One part of what an item says, of any kind."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    input_audio: dict[str, Any] | None = None


class Item(msgspec.Struct):
    """One item, of any kind. A message may leave its type out."""

    type: str | None = None
    role: str | None = None
    id: str | None = None
    content: str | list[Content] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Content] | None = None
    summary: list[Content] | None = None

    @property
    def kind(self) -> str:
        if self.type is not None:
            return self.type
        return "message" if self.role is not None else "item_reference"


def messages(items: Iterable[Item], place: Callable[[int], str]) -> list[Message]:
    """The conversation. `place` names the field of an item. Raises `BadRequestError` naming what is not understood."""
    made = _Conversation()
    for index, item in enumerate(items):
        made.add(item, place(index))
    return made.finish()


class _Conversation:
    """Grows item by item: what the assistant does in a row is one message of its own."""

    def __init__(self) -> None:
        self._made: list[Message] = []
        self._answer: Message | None = None
        """The assistant's message that may still grow."""
        self._images: list[Part] = []
        """Of outputs: they stand in a message of the user after the last one, where templates show them."""

    def add(self, item: Item, where: str) -> None:
        match item.kind:
            case "message":
                self._message(item, where)
            case "reasoning":
                answer = self._grow(("content", "tool_calls"))
                thoughts = (answer.get("reasoning_content"), _thought(item, where))
                if any(thoughts):
                    answer["reasoning_content"] = "\n".join(filter(None, thoughts))
            case "function_call":
                name, call_id = required(item.name, f"{where}.name"), required(item.call_id, f"{where}.call_id")
                calls = self._grow(()).setdefault("tool_calls", [])
                calls.append(called(call_id, name, item.arguments or "{}"))
            case "function_call_output":
                self._end_answer()
                self._output(item, where)
            case kind:
                raise BadRequestError(
                    f"{where}.type: an item of type {kind[:64]!r} is not known here; message, reasoning, "
                    "function_call, function_call_output and item_reference are",
                    param=f"{where}.type",
                )

    def finish(self) -> list[Message]:
        self._end_answer()
        self._show_images()
        return self._made

    def _message(self, item: Item, where: str) -> None:
        parts = _said(item.content, f"{where}.content")
        if item.role == "assistant":
            words = "".join(part.get("text", "") for part in parts)
            answer = self._grow(("content",))
            answer["content"] = words
            return
        self._end_answer()
        if item.role in _SYSTEM:
            # Few templates know a role of the developer's.
            self._show_images()
            self._made.append(said("system", parts))
        elif item.role == "user":
            parts, self._images = self._images + parts, []
            self._made.append(said("user", parts))
        else:
            raise BadRequestError(f"{where}.role: expected user, assistant, system or developer", param=f"{where}.role")

    def _output(self, item: Item, where: str) -> None:
        parts = _said(item.output, f"{where}.output")
        words = "\n".join(part["text"] for part in parts if part["type"] == "text")
        self._images += [part for part in parts if part["type"] != "text"]
        call_id = required(item.call_id, f"{where}.call_id")
        self._made.append({"role": "tool", "tool_call_id": call_id, "content": words})

    def _grow(self, once: Sequence[str]) -> Message:
        """The assistant's message, a new one if it has one of the fields that it cannot have twice."""
        if self._answer is not None and any(name in self._answer for name in once):
            self._end_answer()
        if self._answer is None:
            self._show_images()
            self._answer = {"role": "assistant"}
        return self._answer

    def _end_answer(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and ("content" in answer or "tool_calls" in answer):
            answer.setdefault("content", None)
            self._made.append(answer)

    def _show_images(self) -> None:
        if self._images:
            self._made.append(said("user", self._images))
            self._images = []


def _thought(item: Item, where: str) -> str:
    """What was thought, else its summary; nothing of what is encrypted."""
    content = item.content if isinstance(item.content, list) and item.content else item.summary or []
    return "\n".join(part["text"] for part in _parts(content, f"{where}.content"))


def _said(content: str | list[Content] | None, where: str) -> list[Part]:
    return [text(content)] if isinstance(content, str) else _parts(required(content, where), where)


def _parts(content: Iterable[Content], where: str) -> list[Part]:
    return [_part(one, f"{where}[{index}]") for index, one in enumerate(content)]


def _part(content: Content, where: str) -> Part:
    if content.type in _TEXTS:
        return text(required(content.text, f"{where}.text"))
    if content.type == "refusal":
        return text(required(content.refusal, f"{where}.refusal"))
    if content.type == "input_image":
        return image(required(content.image_url, f"{where}.image_url"))
    if content.type == "input_audio":
        return {"type": "input_audio", "input_audio": required(content.input_audio, f"{where}.input_audio")}
    raise BadRequestError(
        f"{where}.type: {content.type[:64]!r} is not known here; input_text, input_image and input_audio are",
        param=f"{where}.type",
    )
