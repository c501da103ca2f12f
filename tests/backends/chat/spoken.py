"""What models of each family say, and what it means: the table that parsers are held to."""

from __future__ import annotations

from dataclasses import dataclass

from backends.llama_cpp.chat.events import Arguments, CallStart, Content, Event, Reasoning
from backends.llama_cpp.chat.families import FAMILIES, GENERIC, Format
from backends.llama_cpp.chat.reader import Reading
from backends.llama_cpp.chat.reasoning import TAGS
from backends.llama_cpp.chat.tools import Tool

TOOLS = {
    "get_time": Tool("get_time", {"type": "object", "properties": {"city": {"type": "string"}}}),
    "add": Tool("add", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}),
    "write": Tool(
        "write",
        {
            "type": "object",
            "properties": {"path": {"type": "string"}, "text": {"type": "string"}, "tags": {"type": "array"}},
        },
    ),
    "now": Tool("now", {"type": "object", "properties": {}}),
}

THINK, MISTRAL_THINK, COHERE_THINK, *_ = TAGS

Call = tuple[str, str]
"""A name and the text of the arguments."""


@dataclass(frozen=True, slots=True)
class Said:
    """A generated text and the message it is."""

    family: str
    text: str
    content: str = ""
    calls: tuple[Call, ...] = ()
    reasoning: str = ""
    ids: tuple[str | None, ...] = ()
    """The model's own ids, where they are expected."""
    reading: Reading | None = None


@dataclass(slots=True)
class Message:
    """What events add up to."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    ids: tuple[str | None, ...] = ()

    def add(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Content(text):
                    self.content += text
                case Reasoning(text):
                    self.reasoning += text
                case CallStart(name, call_id):
                    self.calls += ((name, ""),)
                    self.ids += (call_id,)
                case Arguments(text):
                    name, before = self.calls[-1]
                    self.calls = (*self.calls[:-1], (name, before + text))


def format_of(family: str) -> Format | None:
    if family == "plain":
        return None
    return next(one for one in (GENERIC, *FAMILIES) if one.name == family).format


def reading_of(said: Said) -> Reading:
    return said.reading or Reading(format_of(said.family), TOOLS, THINK)


def read(reading: Reading, pieces: list[str]) -> Message:
    message, reader = Message(), reading.reader()
    for piece in pieces:
        message.add(reader.feed(piece))
    message.add(reader.finish())
    return message
