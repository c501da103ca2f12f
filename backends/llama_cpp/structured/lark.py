"""Grammars in llguidance's dialect of Lark, put together from literals, JSON schemas and free text.

Owns how a control token is told from text: it has no text of its own in an answer, so it is named by its number.
Source: llguidance's docs/syntax.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto

from backends.llama_cpp.sampling import Tokenizer

EMPTY = '""'
ANY_TEXT = "/(?s:.*)/"


class Kind(Enum):
    """What a rule is to llguidance."""

    RULE = auto()
    TERMINAL = auto()
    """One expression for the lexer, which takes its longest match."""
    LAZY = auto()
    """The same with its shortest match."""


def control_tokens(markers: Iterable[str], tokenizer: Tokenizer) -> dict[str, int]:
    """The markers that are control tokens of this model: single, and only where special texts are looked for."""
    found: dict[str, int] = {}
    for marker in markers:
        special = tokenizer.tokenize(marker, add_special=False, parse_special=True)
        if len(special) == 1 and special != tokenizer.tokenize(marker, add_special=False, parse_special=False):
            found[marker] = special[0]
    return found


class Lark:
    """A grammar that is being written. The methods return expressions, `grammar` the whole."""

    def __init__(self, control: Mapping[str, int]) -> None:
        self._control = control
        self._marker = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or r"(?!)")
        self._names: dict[tuple[Kind, str], str] = {}
        self._lines: list[str] = []
        self._fresh = 0

    def text(self, literal: str) -> str:
        """Exactly this text, with the control tokens in it."""
        terms: list[str] = []
        place = 0
        for found in self._marker.finditer(literal):
            terms += [_quoted(literal[place : found.start()]), f"<[{self._control[found.group()]}]>"]
            place = found.end()
        terms.append(_quoted(literal[place:]))
        return " ".join(term for term in terms if term != EMPTY) or EMPTY

    def json(self, schema: str) -> str:
        """A JSON value that follows an enforceable schema."""
        return self.rule(f"%json {schema}")

    def rule(self, body: str, *, kind: Kind = Kind.RULE) -> str:
        """A rule with this body; the same body makes one rule."""
        name = self._names.get((kind, body))
        if name is None:
            name = self._names[kind, body] = f"{'T' if kind is Kind.TERMINAL else 's'}{len(self._names)}"
            self.add(f"{name}{'[lazy]' if kind is Kind.LAZY else ''}: {body}")
        return name

    def until(self, end: str) -> str:
        """Any text up to the first `end`, and that."""
        found = self._marker.search(end)
        if found is None:
            return self.rule(f"{ANY_TEXT} {_quoted(end)}", kind=Kind.LAZY)
        # A control token cannot be in the text, so that the first one ends it.
        before = _quoted(end[: found.start()])
        text = self.rule(ANY_TEXT if before == EMPTY else f"{ANY_TEXT} {before}", kind=Kind.TERMINAL)
        return f"{text} {self.text(end[found.start() :])}"

    def fresh(self) -> str:
        """A name for a rule that is yet to be added."""
        self._fresh += 1
        return f"n{self._fresh}"

    def has(self, name: str) -> bool:
        """Whether a rule of this name was added."""
        return any(line.startswith(f"{name}:") for line in self._lines)

    def add(self, rules: str) -> None:
        """Rules that were written elsewhere."""
        self._lines.append(rules)

    def grammar(self, start: str) -> str:
        """The whole, which begins with `start`."""
        return "\n".join([f"start: {start}", *self._lines])


def one_of(several: Iterable[str]) -> str:
    """Any one of the expressions."""
    options = list(several)
    return options[0] if len(options) == 1 and options[0].isidentifier() else f"({' | '.join(options)})"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def listed(several: Sequence[str], optional: Sequence[bool], separator: str, lark: Lark) -> str:
    """The expressions in this order with the separator between them, of which some may be left out."""
    # From the end: what may follow when something has been written, and when nothing has.
    rest = begin = EMPTY
    for one, may_miss in zip(reversed(several), reversed(optional), strict=True):
        begin_here = f"{one} {rest}"
        begin = lark.rule(f"{begin_here} | {begin}" if may_miss else begin_here)
        rest_here = f"{separator} {one} {rest}"
        rest = lark.rule(f"{rest_here} | {rest}" if may_miss else rest_here)
    return begin
