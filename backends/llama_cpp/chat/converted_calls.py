"""Calls in notations that are no JSON: Gemma 4, LFM2, Apertus. A call is converted when it is whole.

Owns the reader of their values: objects with bare keys, Python's constants, three ways to quote a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from backends.llama_cpp.chat.events import Arguments, CallStart, Content
from backends.llama_cpp.chat.json_text import MAX_DEPTH, well_formed
from backends.llama_cpp.chat.source import Parse, Source, text_before, until
from backends.llama_cpp.chat.tools import Call, Tools


class NotationError(ValueError):
    """The text is not in the notation."""


@dataclass(frozen=True, slots=True)
class ConvertedCalls:
    """A family with a notation of its own."""

    open: str
    close: str
    read: Callable[[str], Sequence[Call]]
    """From what stands between the two; raises `NotationError`."""
    written: Callable[[Sequence[Call]], str]

    @property
    def visible(self) -> tuple[str, ...]:
        """The markers that may be control tokens."""
        return (self.open.removesuffix("call:"), self.close, _QUOTE)

    @property
    def openers(self) -> tuple[str, ...]:
        """What a call begins with."""
        return (self.open,)

    def write(self, calls: Sequence[Call]) -> str:
        """Calls as the family writes them."""
        return self.written(calls)

    def parse(self, source: Source, tools: Tools) -> Parse[None]:
        """Content and calls until the text ends."""
        called = False
        while True:
            found = yield from text_before(source, (self.open,), Content, trim=called)
            if found is None:
                return
            raw, closed = yield from until(source, self.close)
            try:
                calls = self.read(raw)
            except NotationError:
                calls = ()
            if not calls or any(name not in tools for name, _ in calls):
                yield Content(found.space + found.marker + raw + (self.close if closed else ""))
                continue
            called = True
            for name, arguments in calls:
                yield CallStart(name)
                yield Arguments(well_formed(json.dumps(arguments, ensure_ascii=False)))


_QUOTE = '<|"|>'
_NAME = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*")
_SCALAR = re.compile(r"[-+.\w]+")
_CONSTANTS: Mapping[str, object] = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "null": None,
    "None": None,
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class _Notation:
    """Reads values from a text, from a place that moves on."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0

    def name(self) -> str:
        found = _NAME.match(self._text, self._place)
        if found is None:
            raise NotationError("a name is missing")
        self._place = found.end()
        return found[1]

    def take(self, literal: str) -> bool:
        """Take white space and this, if it comes next."""
        while self._place < len(self._text) and self._text[self._place].isspace():
            self._place += 1
        if not self._text.startswith(literal, self._place):
            return False
        self._place += len(literal)
        return True

    def expect(self, literal: str) -> None:
        if not self.take(literal):
            raise NotationError(f"{literal!r} is missing")

    def end(self) -> None:
        self.take("")
        if self._place < len(self._text):
            raise NotationError("there is more")

    def pairs(self, equals: str, close: str, depth: int = 0) -> dict[str, object]:
        """Keys and values up to `close`."""
        made: dict[str, object] = {}
        while not self.take(close):
            key = self._quoted()
            key = self.name() if key is None else key
            self.expect(equals)
            made[key] = self.value(depth + 1)
            if not self.take(","):
                self.expect(close)
                break
        return made

    def value(self, depth: int = 0) -> object:
        if depth > MAX_DEPTH:
            raise NotationError("it is nested too deeply")
        if self.take("{"):
            return self.pairs(":", "}", depth)
        if self.take("["):
            made: list[object] = []
            while not self.take("]"):
                made.append(self.value(depth + 1))
                if not self.take(","):
                    self.expect("]")
                    break
            return made
        text = self._quoted()
        return self._scalar() if text is None else text

    def _quoted(self) -> str | None:
        if self.take(_QUOTE):
            text, found, _ = self._text[self._place :].partition(_QUOTE)
            if not found:
                raise NotationError("a text does not end")
            self._place += len(text) + len(_QUOTE)
            return text
        for quote in ('"', "'"):
            if self.take(quote):
                return self._escaped(quote)
        return None

    def _escaped(self, quote: str) -> str:
        made: list[str] = []
        while self._place < len(self._text):
            character = self._text[self._place]
            self._place += 1
            if character == quote:
                return "".join(made)
            if character == "\\" and self._place < len(self._text):
                character = self._escape()
            made.append(character)
        raise NotationError("a text does not end")

    def _escape(self) -> str:
        character = self._text[self._place]
        self._place += 1
        if character == "u":
            digits = self._text[self._place : self._place + 4]
            if re.fullmatch(r"[0-9a-fA-F]{4}", digits):
                self._place += 4
                return chr(int(digits, 16))
        return _ESCAPES.get(character, character)

    def _scalar(self) -> object:
        found = _SCALAR.match(self._text, self._place)
        if found is None:
            raise NotationError("a value is missing")
        self._place = found.end()
        if found[0] in _CONSTANTS:
            return _CONSTANTS[found[0]]
        try:
            number = json.loads(found[0])
        except ValueError:
            raise NotationError(f"{found[0][:64]!r} is no value") from None
        return number


def read_gemma(text: str) -> list[Call]:
    """`name{key:<|"|>text<|"|>,other:1}`"""
    notation = _Notation(text)
    name = notation.name()
    notation.expect("{")
    arguments = notation.pairs(":", "}")
    notation.end()
    return [(name, arguments)]


def write_gemma(calls: Sequence[Call]) -> str:
    """The same, markers included."""
    return "".join(f"<|tool_call>call:{name}{_as_gemma(arguments)}<tool_call|>" for name, arguments in calls)


def _as_gemma(value: object) -> str:
    if isinstance(value, str):
        return f"{_QUOTE}{value}{_QUOTE}"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_as_gemma(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_as_gemma, value)) + "]"
    return json.dumps(value)


def read_python(text: str) -> list[Call]:
    """`[name(key="text", other=1), …]`"""
    notation = _Notation(text)
    notation.expect("[")
    calls: list[Call] = []
    while not notation.take("]"):
        name = notation.name()
        notation.expect("(")
        calls.append((name, notation.pairs("=", ")")))
        if not notation.take(","):
            notation.expect("]")
            break
    notation.end()
    return calls


def write_python(calls: Sequence[Call]) -> str:
    """The same, with LFM2's markers."""
    written = (
        f"{name}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in arguments.items())})"
        for name, arguments in calls
    )
    return f"<|tool_call_start|>[{', '.join(written)}]<|tool_call_end|>"


def read_apertus(text: str) -> list[Call]:
    """`[{"name": {"key": "text"}}, …]`"""
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError):
        raise NotationError("it is no JSON") from None
    calls: list[Call] = []
    for one in decoded if isinstance(decoded, list) else [None]:
        if not isinstance(one, dict) or not all(isinstance(arguments, dict) for arguments in one.values()):
            raise NotationError("a call is an object in an object")
        calls += one.items()
    return calls


def write_apertus(calls: Sequence[Call]) -> str:
    """The same, markers included."""
    written = json.dumps([{name: arguments} for name, arguments in calls], ensure_ascii=False)
    return f"<|tools_prefix|>{written}<|tools_suffix|>"
