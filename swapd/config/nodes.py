"""The tree of a YAML document with the line of every key, and what a scalar in it means.

Owns the scalar rules: YAML 1.2's core schema, and a refusal wherever YAML 1.1 readers see something else.
Must never know a key of the configuration.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from swapd.config.problems import shown

MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Scalar:
    """Text as written. `plain` means without quotes or block marks, so that it may stand for another type."""

    line: int
    text: str
    plain: bool

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class Sequence:
    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value. `line` is the key's."""

    line: int
    node: Node


@dataclass(frozen=True, slots=True)
class Mapping:
    line: int
    entries: dict[str, Entry]


Node = Scalar | Sequence | Mapping
Value = None | bool | int | float | str

_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_OLD_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_INTEGER = re.compile(r"[-+]?[0-9]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_BASED = re.compile(r"[-+]?0([xX][0-9a-fA-F_]+|[oO][0-7_]+|[bB][01_]+)", re.ASCII)
_GROUPED = re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?", re.ASCII)
_SEXAGESIMAL = re.compile(r"[-+]?[0-9]{1,9}(:[0-5]?[0-9]){1,3}(\.[0-9]*)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def value_of(scalar: Scalar) -> Value:
    """What the scalar means by YAML 1.2's core schema.

    Raises `ValueError` for a number that readers disagree about (`017`, `0x1F`), one that is not finite and
    one beyond 64 bits. Numbers of YAML 1.1 alone (`1:30`, `1_000`) and its booleans (`yes`) are strings here;
    `old_yaml_hint` knows them.
    """
    text = scalar.text
    if not scalar.plain:
        return text
    if scalar.is_null:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{shown(text)} is too large a number")
        return number
    if _BASED.fullmatch(text):
        raise ValueError(f"{shown(text)} is read differently by different tools; write the number in decimal")
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a finite number")
    return text


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits.startswith("0"):
        plain = digits.lstrip("0") or "0"
        raise ValueError(
            f"{shown(text)} begins with 0, which some tools read as octal; write {shown(plain)[1:-1]}, "
            "or put text in quotes"
        )
    if len(digits) > 19 or abs(int(text)) > MAX_INTEGER:
        raise ValueError(f"{shown(text)} is too large a number")
    return int(text)


def old_yaml_hint(scalar: Scalar) -> str:
    """How to write a plain scalar that YAML 1.1 takes for a boolean or a number; empty for all others."""
    if not scalar.plain:
        return ""
    boolean = _OLD_BOOLEANS.get(scalar.text.lower())
    if boolean is not None:
        return f"write {boolean}"
    seconds = sexagesimal_seconds(scalar.text)
    if seconds is not None:
        return f"some tools read it as {seconds:g}; write the number that is meant"
    if _GROUPED.fullmatch(scalar.text):
        return "write the number without _"
    return ""


def sexagesimal_seconds(text: str) -> float | None:
    """The value of `1:30` in base sixty, or None for text of another form."""
    if not _SEXAGESIMAL.fullmatch(text):
        return None
    total = 0.0
    for part in text.lstrip("+-").split(":"):
        total = total * 60 + float(part)
    return total


def shown_node(node: Node) -> str:
    """A node for a message: a scalar in quotes, a collection by its kind."""
    match node:
        case Scalar(text=""):
            return "nothing" if node.plain else "empty text"
        case Scalar(text=text, plain=True):
            return shown(text)
        case Scalar(text=text):
            return f"the text {shown(text)}"
        case Sequence():
            return "a list"
        case Mapping():
            return "a block of keys"
