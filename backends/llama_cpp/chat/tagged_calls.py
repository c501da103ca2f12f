"""Calls whose arguments are elements: Qwen3-Coder, Seed-OSS, MiniMax M2, GLM.

Owns the parser of `OPEN <function=name> <parameter=key>value</parameter> … CLOSE`, which makes one JSON object of the
elements. A value is text where the tool's schema says string, and otherwise JSON if it can be read as such.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from backends.llama_cpp.chat.events import Arguments, CallStart, Content
from backends.llama_cpp.chat.source import MAX_HEADER_CHARS, Parse, Source, markers_in, match, skip, text_before, until
from backends.llama_cpp.chat.tools import Call, Tool, Tools


@dataclass(frozen=True, slots=True)
class TaggedCalls:
    """A family whose calls are elements."""

    open: str
    """What announces calls."""
    close: str
    header: re.Pattern[str]
    """A call's beginning, white space included; group `name`. Ends in a literal or a lookahead."""
    key: re.Pattern[str]
    """An argument's beginning; group `key`."""
    end_value: str
    write_header: str
    """A call's beginning for writing, with `{name}`."""
    write_key: str
    """An argument's beginning for writing, with `{key}`, and `{is_text}` where it says whether the value is text."""
    end_call: str = ""
    """What ends one call, where `close` ends all."""
    newlines: bool = False
    """Values are written on lines of their own."""
    without_open: str = ""
    """A beginning of the header that may come without `open`, which some models forget."""

    @property
    def visible(self) -> tuple[str, ...]:
        """The markers that may be control tokens."""
        return (self.open, self.close, self.end_value, *markers_in(self.key))

    @property
    def openers(self) -> tuple[str, ...]:
        """What a call begins with."""
        return (self.open, self.without_open) if self.without_open else (self.open,)

    def write(self, calls: Sequence[Call]) -> str:
        """Calls as the family writes them."""
        written = []
        for name, arguments in calls:
            values = "".join(
                f"{self.key_text(key, is_text=isinstance(value, str))}{self._written(value)}{self.end_value}\n"
                for key, value in arguments.items()
            )
            end = f"{self.end_call}\n" if self.end_call else ""
            written.append(f"{self.open}{self.write_header.format(name=name)}\n{values}{end}{self.close}")
        return "\n".join(written)

    def key_text(self, key: str, *, is_text: bool) -> str:
        """An argument's beginning as the family writes it."""
        return self.write_key.format(key=key, is_text="true" if is_text else "false")

    def _written(self, value: object) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return f"\n{text}\n" if self.newlines else text

    def parse(self, source: Source, tools: Tools) -> Parse[None]:
        """Content and calls until the text ends."""
        called = False
        while True:
            found = yield from text_before(source, self.openers, Content, trim=called)
            if found is None:
                return
            if found.marker == self.without_open:
                source.text = found.marker + source.text
            made = yield from self._call(source, tools)
            if not made:
                yield Content(found.space + found.marker)
                source.text = source.text.removeprefix(self.without_open if found.marker != self.open else "")
                continue
            called = True
            while self.end_call and (yield from self._call(source, tools)):
                pass
            yield from skip(source, self.close)

    def _call(self, source: Source, tools: Tools) -> Parse[bool]:
        """Take one call; False, with nothing taken, if none follows."""
        header = yield from match(source, self.header)
        if header is None:
            return False
        if header["name"] not in tools:
            source.text = header.group() + source.text
            return False
        tool = tools[header["name"]]
        yield CallStart(tool.name)
        before = "{"
        while (key := (yield from self._key(source))) is not None:
            yield Arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            before = ", "
            if not (yield from self._value(source, tool, key)):
                return True
        yield Arguments("{}" if before == "{" else "}")
        if self.end_call:
            yield from skip(source, self.end_call)
        return True

    def _key(self, source: Source) -> Parse[str | None]:
        """The next argument's name, if another argument follows. Gives up at the first thing that is none."""
        ends = tuple(end for end in (self.end_call, self.close) if end)
        while True:
            found = self.key.match(source.text[:MAX_HEADER_CHARS])
            if found is not None:
                source.take(found.end())
                return found["key"]
            rest = source.text.lstrip()
            known = rest.startswith(ends) or (rest and not rest.startswith("<"))
            if known or source.closed or len(source.text) >= MAX_HEADER_CHARS:
                return None
            yield None

    def _value(self, source: Source, tool: Tool, key: str) -> Parse[bool]:
        """Pass one value on as JSON; False if the text ends inside."""
        if tool.takes_text(key):
            return (yield from self._text(source))
        raw, ended = yield from until(source, self.end_value)
        yield Arguments(_as_json(_unwrapped(raw)))
        return ended

    def _text(self, source: Source) -> Parse[bool]:
        """A string's pieces, as they come. A newline before them belongs to the markup, and then one after them."""
        yield Arguments('"')
        while not source.text and not source.closed:
            yield None
        newline = "\n" if source.text.startswith("\n") else ""
        source.take(len(newline))
        found = False
        while not found:
            start = source.text.find(self.end_value)
            found = start >= 0
            if found:
                text = source.take(start).removesuffix(newline)
                source.take(len(self.end_value))
            elif source.closed:
                text = source.take(len(source.text))
            else:
                text = source.take(max(0, len(source.text) - len(self.end_value)))
            if text:
                yield Arguments(json.dumps(text, ensure_ascii=False)[1:-1])
            if source.closed and not found:
                return False
            if not found:
                yield None
        yield Arguments('"')
        return True


def _unwrapped(raw: str) -> str:
    return raw.removeprefix("\n").removesuffix("\n")


def _as_json(text: str) -> str:
    """JSON stays as it is written; anything else is a string. Python's words for constants are understood."""
    constant = {"True": "true", "False": "false", "None": "null"}.get(text.strip())
    if constant is not None:
        return constant
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
