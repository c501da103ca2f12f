"""Writes values as the strict YAML that `swapd.config` reads. Pure text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from swapd.config.nodes import Scalar, old_yaml_hint, value_of

Value = None | bool | int | float | str | Sequence["Value"] | Mapping[str, "Value"]

_PLAIN = re.compile(r"[A-Za-z0-9/_.~][A-Za-z0-9 _./:@+=~-]*")


def spelled(text: str) -> str:
    """Text as it can stand anywhere, in quotes unless it is plainly text."""
    return text if _is_plain(text) else json.dumps(text, ensure_ascii=not text.isprintable())


def _is_plain(text: str) -> bool:
    if not _PLAIN.fullmatch(text) or text.endswith((" ", ":")) or ": " in text or "  " in text:
        return False
    scalar = Scalar(1, text, plain=True)
    try:
        return isinstance(value_of(scalar), str) and not old_yaml_hint(scalar)
    except ValueError:
        return False


def flow(value: Value) -> str:
    """A value on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return spelled(value)
        case Mapping():
            return "{" + ", ".join(f"{spelled(name)}: {flow(each)}" for name, each in value.items()) + "}"
        case _:
            return "[" + ", ".join(flow(each) for each in value) + "]"


def comment(text: str, indent: int = 0) -> list[str]:
    """Comment lines, whatever is in the text."""
    return [
        " " * indent + f"# {line}".rstrip()
        for line in "".join(c if c.isprintable() or c == "\n" else "?" for c in text).split("\n")
    ]


def block(keys: Mapping[str, Value], indent: int) -> list[str]:
    """One line for each key."""
    return [f"{' ' * indent}{spelled(name)}: {flow(value)}" for name, value in keys.items()]
