"""Calls written as JSON objects: Hermes, Qwen, Llama 3, older Mistral, Nemotron, Granite, Command R and our own form.

Owns the parser of `MARKER {"name": …, "arguments": …} …`, alone or in an array.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from backends.llama_cpp.chat.events import Arguments, CallStart, Content
from backends.llama_cpp.chat.json_text import Head, JsonSpan, Span, call_head, decode_string
from backends.llama_cpp.chat.source import Parse, Source, skip, skip_space, text_before
from backends.llama_cpp.chat.tools import Call, Tools


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """A family whose calls are objects."""

    markers: tuple[str, ...] = ()
    """What announces calls."""
    close: str = ""
    """What ends them, if anything does."""
    name_key: str = "name"
    arguments_key: str = "arguments"
    array: bool = False
    """The family writes its calls as one array."""
    bare: bool = False
    """An answer that begins with an object may be a call without any marker."""
    silent: tuple[str, ...] = ()
    """Markup around content, which nobody is to read."""

    @property
    def visible(self) -> tuple[str, ...]:
        """The markers that may be control tokens."""
        return (*self.markers, self.close) if self.close else self.markers

    @property
    def openers(self) -> tuple[str, ...]:
        """What a call begins with."""
        return self.markers

    def write(self, calls: Sequence[Call]) -> str:
        """Calls as the family writes them."""
        objects = [
            json.dumps({self.name_key: name, self.arguments_key: arguments}, ensure_ascii=False)
            for name, arguments in calls
        ]
        marker = self.markers[0] if self.markers and not self.bare else ""
        if self.array:
            return f"{marker}[{', '.join(objects)}]{self.close}"
        return "\n".join(f"{marker}\n{one}\n{self.close}" if marker else one for one in objects)

    def parse(self, source: Source, tools: Tools) -> Parse[None]:
        """Content and calls until the text ends."""
        called = False
        if self.bare and (yield from skip_space(source)) and source.text[0] in "{[":
            called = yield from self._calls(source, tools)
        while self.markers:
            found = yield from text_before(source, self.markers + self.silent, Content, trim=called)
            if found is None:
                return
            if found.marker in self.silent:
                continue
            made = yield from self._calls(source, tools)
            called |= made
            if not made:
                yield Content(found.space + found.marker)
        yield from text_before(source, (), Content, trim=called)

    def _calls(self, source: Source, tools: Tools) -> Parse[bool]:
        """Take the calls that follow; False, with nothing taken, if none does."""
        made = False
        before = "["
        while True:
            head, start = yield from self._head(source, tools, before)
            if head is None:
                break
            made = True
            yield CallStart(head.name)
            source.take(start + head.end)
            if head.arguments is not None:
                yield Arguments(head.arguments)
            else:
                yield from self._arguments(source)
            before = ",;"
        if made:
            yield from skip(source, "]")
            if self.close:
                yield from skip(source, self.close)
        return made

    def _head(self, source: Source, tools: Tools, before: str) -> Parse[tuple[Head | None, int]]:
        """Look at what follows. The head of a known tool's call and where its object begins."""
        while True:
            rest = source.text.lstrip()
            if rest and rest[0] in before:
                rest = rest[1:].lstrip()
            start = len(source.text) - len(rest)
            if rest and not rest.startswith("{"):
                return None, start
            head = call_head(
                rest,
                0,
                ("name", self.name_key),
                ("arguments", "parameters", self.arguments_key),
                closed=source.closed,
            )
            if isinstance(head, Head):
                return (head if head.name in tools else None), start
            if head is Span.BROKEN:
                return None, start
            # Reading from the start again at each piece would make long arguments before a name cost their square.
            enough = len(source.text) + 1 + len(source.text) // 8
            while len(source.text) < enough and not source.closed:
                yield None

    def _arguments(self, source: Source) -> Parse[None]:
        """Pass the arguments through, and take what is left of their object."""
        if source.text.startswith('"'):
            yield from self._quoted(source)
        else:
            span = JsonSpan()
            while True:
                length = span.advance(source.text)
                if length:
                    yield Arguments(source.take(length))
                if span.state is not Span.OPEN:
                    break
                if source.closed:
                    return
                yield None
            if span.state is Span.BROKEN:
                yield from self._broken(source)
                return
        yield from self._tail(source)

    def _quoted(self, source: Source) -> Parse[None]:
        """Arguments inside a JSON string."""
        span, end = JsonSpan(), 0
        while True:
            end = span.advance(source.text, end)
            if span.state is Span.DONE:
                yield Arguments(decode_string(source.take(end)))
                return
            if source.closed:
                yield Arguments(source.take(len(source.text)))
                return
            yield None

    def _broken(self, source: Source) -> Parse[None]:
        """What was to be JSON is none: the caller gets it as it was written, up to where the family's calls end."""
        while self.close:
            found = yield from text_before(source, (self.close,), Arguments)
            if found is None:
                return
            source.text = self.close + source.text
            return
        yield from text_before(source, (), Arguments)

    def _tail(self, source: Source) -> Parse[None]:
        """Take further keys and the brace that ends the call's object, if they are there."""
        while not (rest := source.text.lstrip()) and not source.closed:
            yield None
        start = len(source.text) - len(rest)
        if rest.startswith("}"):
            source.take(start + 1)
        if not rest.startswith(","):
            return
        span, end = JsonSpan(), start + 1
        span.advance("{")
        while True:
            end = span.advance(source.text, end)
            if span.state is Span.DONE:
                source.take(end)
            if span.state is not Span.OPEN or source.closed:
                return
            yield None
