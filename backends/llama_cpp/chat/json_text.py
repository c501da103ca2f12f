"""JSON as it is being written: where a value ends, whether it still can be one, and a call's name inside it.

Pure. Strictness is that of RFC 8259's structure; inside strings and scalars whatever the model wrote is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

MAX_DEPTH = 128
"""Deeper than any arguments are; what goes further is broken."""


class Span(Enum):
    """How far a value has come."""

    OPEN = auto()
    DONE = auto()
    BROKEN = auto()


class _Want(Enum):
    VALUE = auto()
    KEY = auto()
    KEY_OR_END = auto()
    VALUE_OR_END = auto()
    COLON = auto()
    COMMA_OR_END = auto()
    STRING = auto()
    SCALAR = auto()


_PLAIN = re.compile(r'[^"\\]*')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_CONSTANT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false|null")
_SPACE = " \t\r\n"


class JsonSpan:
    """Follows one JSON value through the pieces of its text."""

    def __init__(self) -> None:
        self.state = Span.OPEN
        self._want = _Want.VALUE
        self._stack: list[str] = []
        self._is_key = False
        self._escaped = False
        self._scalar = ""

    def advance(self, text: str, start: int = 0) -> int:
        """Follow the value through `text`; returns where it ends, where it breaks, or the end of the text."""
        position = start
        while position < len(text) and self.state is Span.OPEN:
            if self._want is _Want.STRING:
                position = self._string(text, position)
            elif self._want is _Want.SCALAR:
                position = self._in_scalar(text, position)
            elif text[position] in _SPACE or self._structural(text[position]):
                position += 1
        return position

    def finish(self) -> None:
        """The text has ended: a number may be whole now."""
        if self._want is _Want.SCALAR:
            self._end_scalar()

    def _string(self, text: str, position: int) -> int:
        if self._escaped:
            self._escaped = False
            return position + 1
        plain = _PLAIN.match(text, position)
        assert plain is not None
        position = plain.end()
        if position < len(text):
            if text[position] == "\\":
                self._escaped = True
            elif self._is_key:
                self._want = _Want.COLON
            else:
                self._end_value()
            position += 1
        return position

    def _in_scalar(self, text: str, position: int) -> int:
        scalar = _SCALAR.match(text, position)
        assert scalar is not None
        self._scalar += scalar.group()
        if scalar.end() < len(text):
            self._end_scalar()
        return scalar.end()

    def _end_scalar(self) -> None:
        whole, self._scalar = _CONSTANT.fullmatch(self._scalar), ""
        if whole:
            self._end_value()
        else:
            self.state = Span.BROKEN

    def _structural(self, character: str) -> bool:
        """Take one character outside strings and scalars. False leaves it to be looked at again, or broke."""
        want = self._want
        if want in (_Want.VALUE, _Want.VALUE_OR_END):
            if character == "]" and want is _Want.VALUE_OR_END:
                return self._close("[")
            return self._begin_value(character)
        if want in (_Want.KEY, _Want.KEY_OR_END):
            if character == '"':
                self._want, self._is_key = _Want.STRING, True
                return True
            if character == "}" and want is _Want.KEY_OR_END:
                return self._close("{")
        elif want is _Want.COLON and character == ":":
            self._want = _Want.VALUE
            return True
        elif want is _Want.COMMA_OR_END:
            if character == ",":
                self._want = _Want.KEY if self._stack[-1] == "{" else _Want.VALUE
                return True
            if character in "]}":
                return self._close("[" if character == "]" else "{")
        self.state = Span.BROKEN
        return False

    def _begin_value(self, character: str) -> bool:
        if character in "{[":
            if len(self._stack) == MAX_DEPTH:
                self.state = Span.BROKEN
                return False
            self._stack.append(character)
            self._want = _Want.KEY_OR_END if character == "{" else _Want.VALUE_OR_END
            return True
        if character == '"':
            self._want, self._is_key = _Want.STRING, False
            return True
        if character in "-0123456789tfn":
            self._want = _Want.SCALAR
            return False
        self.state = Span.BROKEN
        return False

    def _close(self, opening: str) -> bool:
        if self._stack[-1] != opening:
            self.state = Span.BROKEN
            return False
        self._stack.pop()
        self._end_value()
        return True

    def _end_value(self) -> None:
        if self._stack:
            self._want = _Want.COMMA_OR_END
        else:
            self.state = Span.DONE


def value_end(text: str, start: int) -> tuple[int, Span]:
    """Where the value that begins at `start` ends, as far as `text` shows."""
    span = JsonSpan()
    end = span.advance(text, start)
    return end, span.state


@dataclass(frozen=True, slots=True)
class Head:
    """A call's object up to its arguments."""

    name: str
    end: int
    """Where the arguments begin; where the object ends if they are known already."""
    arguments: str | None = None
    """The arguments, where they stood before the name or are missing."""


_KEY = re.compile(r'[{,]\s*"((?:[^"\\]|\\.)*)"\s*:\s*(?=\S)')
_BEFORE_KEY = re.compile(r'([{,]\s*("((?:[^"\\]|\\.)*("\s*(:\s*)?)?)?)?)?')
_END = re.compile(r"\s*\}")


def call_head(
    text: str, start: int, name_keys: Sequence[str], argument_keys: Sequence[str], *, closed: bool
) -> Head | Span:
    """Read an object that may be a call. OPEN wants more text, BROKEN is no call.

    The name of a call is a string, its arguments an object, or a string that holds one.
    """
    name: str | None = None
    arguments: str | None = None
    position = start
    undecided = Span.BROKEN if closed else Span.OPEN
    while True:
        key = _KEY.match(text, position)
        if key is None:
            return _after_last(text, position, name, arguments, undecided)
        if key.group(1) in argument_keys and name is not None and arguments is None:
            return Head(name, key.end()) if text[key.end()] in '{"' else Span.BROKEN
        end, state = value_end(text, key.end())
        if state is not Span.DONE:
            return undecided if state is Span.OPEN else state
        value = text[key.end() : end]
        if key.group(1) in name_keys and name is None:
            if not value.startswith('"'):
                return Span.BROKEN
            name = decode_string(value)
        elif key.group(1) in argument_keys:
            arguments = decode_string(value) if value.startswith('"') else value
        position = _skip_space(text, end)


def _after_last(text: str, position: int, name: str | None, arguments: str | None, undecided: Span) -> Head | Span:
    end = _END.match(text, position)
    if end is not None:
        known = "{}" if arguments is None else arguments
        return Head(name, end.end(), known) if name is not None and known.startswith("{") else Span.BROKEN
    partial = _BEFORE_KEY.match(text, position)
    return undecided if partial is not None and partial.end() == len(text) else Span.BROKEN


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def decode_string(literal: str) -> str:
    """The text of a JSON string; one that is not valid stays as it is, without its quotes."""
    try:
        decoded = json.loads(literal, strict=False)
    except ValueError:
        return literal[1:-1]
    assert isinstance(decoded, str)
    return well_formed(decoded)


def well_formed(text: str) -> str:
    """The same text with halves of surrogate pairs joined, and those without a partner replaced: UTF-8 has none."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
