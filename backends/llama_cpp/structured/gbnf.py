"""GBNF, llama.cpp's notation of grammars, read within bounds.

Owns the notation and its limits. Pure. Source: llama.cpp's grammars/README.md and its parser, llama-grammar.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

MAX_GRAMMAR_CHARS = 64 * 1024
MAX_NESTING = 64
"""Parentheses within parentheses."""
MAX_STACKED = 8
"""Signs of repetition behind one part."""
MAX_REPEATED = 4000
"""Parts with a sign of repetition. llguidance's time goes with the square: half a second for so many."""
MAX_REPETITIONS = 2000
"""llama.cpp's limit; there a larger maximum silently means none."""
ROOT = "root"

TokenOf = Callable[[str], int | None]
"""The token of a special text such as `<|end|>`, None if it is not a single one."""


class GrammarError(ValueError):
    """The grammar cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of ranges of code points, or none of them."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class TokenNode:
    """One token of the vocabulary, or any but that."""

    token: int
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Reference:
    name: str


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    alternatives: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`most` None is without end."""

    part: Node
    least: int
    most: int | None


Node = Chars | TokenNode | Reference | Sequence | Choice | Repeat

ANY = Chars((), negated=True)
_NAME = re.compile(r"[A-Za-z0-9-]+")
_INTEGER = re.compile(r"[0-9]{1,9}")
_BLANKS = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_TOKEN = re.compile(r"<(?:\[(?P<id>[0-9]{1,9})\]|[^>]*)>")
_HEX = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_LAST_CODE_POINT = 0x10FFFF


def read_rules(text: str, token_of: TokenOf) -> dict[str, Node]:
    """The rules by name, each of which refers to such. Raises `GrammarError`."""
    if len(text) > MAX_GRAMMAR_CHARS:
        raise GrammarError(f"it has {len(text)} characters; {MAX_GRAMMAR_CHARS} are allowed")
    rules = _Parser(text, token_of).rules()
    if ROOT not in rules:
        raise GrammarError(f"there is no rule named {ROOT}")
    for name, node in rules.items():
        missing = next((one for one in references(node) if one not in rules), None)
        if missing is not None:
            raise GrammarError(f"the rule {name} refers to {missing}, which is not defined")
    return rules


@dataclass(slots=True)
class _Parser:
    """Reads a grammar from a place that moves on."""

    text: str
    token_of: TokenOf
    place: int = 0
    depth: int = 0
    repeated: int = 0
    found: dict[str, Node] = field(default_factory=dict)

    def rules(self) -> dict[str, Node]:
        """All rules by name; of two with one name the second counts, as in llama.cpp."""
        self.skip(_SPACE)
        while self.place < len(self.text):
            name = self.expect(_NAME, "the name of a rule")
            self.skip(_BLANKS)
            if not self.take("::="):
                raise self.error("::= is missing")
            self.skip(_SPACE)
            self.found[name] = self.choice(nested=False)
            if self.place < len(self.text) and self.text[self.place] not in "\r\n":
                raise self.error("the rule does not end here")
            self.skip(_SPACE)
        return self.found

    def choice(self, *, nested: bool) -> Node:
        alternatives = [self.sequence(nested=nested)]
        while self.take("|"):
            self.skip(_SPACE)
            alternatives.append(self.sequence(nested=nested))
        return alternatives[0] if len(alternatives) == 1 else Choice(tuple(alternatives))

    def sequence(self, *, nested: bool) -> Node:
        space = _SPACE if nested else _BLANKS
        parts: list[Node] = []
        while (part := self.part()) is not None:
            self.skip(space)
            for _ in range(MAX_STACKED):
                bounds = self.repetition(space)
                if bounds is None:
                    break
                part = Repeat(part, *bounds)
                self.repeated += 1
                if self.repeated > MAX_REPEATED:
                    raise self.error(f"more than {MAX_REPEATED} parts are repeated")
                self.skip(space)
            parts.append(part)
        if self.place < len(self.text) and self.text[self.place] in "*+?{":
            raise self.error("there is nothing to repeat, or it is repeated again and again")
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def part(self) -> Node | None:
        if self.take('"'):
            return self.literal()
        if self.take("["):
            return self.char_class()
        if self.take("("):
            return self.group()
        if self.take("."):
            return ANY
        if self.text.startswith(("<", "!"), self.place):
            negated = self.take("!")
            return TokenNode(self.token(), negated)
        name = _NAME.match(self.text, self.place)
        if name is None:
            return None
        self.place = name.end()
        return Reference(name.group())

    def literal(self) -> Node:
        chars: list[Node] = []
        while not self.take('"'):
            code = self.char()
            chars.append(Chars(((code, code),)))
        return chars[0] if len(chars) == 1 else Sequence(tuple(chars))

    def char_class(self) -> Node:
        negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        while not self.take("]"):
            first = last = self.char()
            if self.text.startswith("-", self.place) and not self.text.startswith("-]", self.place):
                self.place += 1
                last = self.char()
            if first > last:
                raise self.error("a range of characters is the wrong way round")
            ranges.append((first, last))
        if not ranges:
            raise self.error("a class of characters is empty")
        return Chars(tuple(ranges), negated)

    def group(self) -> Node:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise self.error(f"parentheses are nested deeper than {MAX_NESTING}")
        self.skip(_SPACE)
        node = self.choice(nested=True)
        if not self.take(")"):
            raise self.error(") is missing")
        self.depth -= 1
        return node

    def repetition(self, space: re.Pattern[str]) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return bounds
        if not self.take("{"):
            return None
        self.skip(space)
        least = self.count()
        self.skip(space)
        most: int | None = least
        if self.take(","):
            self.skip(space)
            most = None if self.text.startswith("}", self.place) else self.count()
            self.skip(space)
        if not self.take("}"):
            raise self.error("} is missing")
        if most is not None and most < least:
            raise self.error(f"{{{least},{most}}} asks for fewer than at least")
        return least, most

    def count(self) -> int:
        count = int(self.expect(_INTEGER, "a number of repetitions"))
        if count > MAX_REPETITIONS:
            raise self.error(f"{count} repetitions are more than {MAX_REPETITIONS}")
        return count

    def token(self) -> int:
        found = _TOKEN.match(self.text, self.place)
        if found is None:
            raise self.error("a token is written <[number]> or <text>")
        self.place = found.end()
        token = int(found["id"]) if found["id"] else self.token_of(found.group())
        if token is None:
            raise self.error(f"{found.group()[:64]!r} is not one token of this model")
        return token

    def char(self) -> int:
        """One character of a literal or class, as a code point."""
        if self.place >= len(self.text):
            raise self.error("the grammar ends inside a literal or a class")
        character = self.text[self.place]
        self.place += 1
        if character != "\\":
            return ord(character)
        kind = self.text[self.place : self.place + 1]
        self.place += 1
        if kind in _ESCAPES:
            return ord(_ESCAPES[kind])
        digits = self.text[self.place : self.place + _HEX.get(kind, 0)]
        if kind not in _HEX or len(digits) < _HEX[kind] or not re.fullmatch(r"[0-9A-Fa-f]+", digits):
            raise self.error(f"\\{kind} is no escape that is known here")
        self.place += len(digits)
        code = int(digits, 16)
        if code > _LAST_CODE_POINT or 0xD800 <= code <= 0xDFFF:
            raise self.error(f"\\{kind}{digits} is no character")
        return code

    def take(self, literal: str) -> bool:
        if not self.text.startswith(literal, self.place):
            return False
        self.place += len(literal)
        return True

    def skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.place)
        assert found is not None
        self.place = found.end()

    def expect(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self.text, self.place)
        if found is None:
            raise self.error(f"{what} is missing")
        self.place = found.end()
        return found.group()

    def error(self, what: str) -> GrammarError:
        line = self.text.count("\n", 0, self.place) + 1
        column = self.place - self.text.rfind("\n", 0, self.place)
        return GrammarError(f"line {line}, column {column}: {what}")


def parts_of(node: Node) -> tuple[Node, ...]:
    """What a node is made of."""
    match node:
        case Sequence(parts) | Choice(parts):
            return parts
        case Repeat(part):
            return (part,)
        case _:
            return ()


def references(node: Node) -> Iterator[str]:
    """The rules that a node names."""
    if isinstance(node, Reference):
        yield node.name
    for part in parts_of(node):
        yield from references(part)
