"""Nodes of another program's configuration as plain values, however they were meant. Never raises."""

from __future__ import annotations

from typing import Any

from swapd.config.nodes import Entry, Node, Scalar, value_of
from swapd.config.nodes import Mapping as MappingNode


def plain(node: Node) -> Any:
    """Python's own types. A number that readers disagree about is text."""
    match node:
        case Scalar():
            try:
                return value_of(node)
            except ValueError:
                return node.text
        case MappingNode(entries=found):
            return {name: plain(entry.node) for name, entry in found.items()}
        case _:
            return [plain(item) for item in node.items]


def entries(entry: Entry | None) -> dict[str, Entry]:
    """The keys below one; none where there is no block."""
    return entry.node.entries if entry is not None and isinstance(entry.node, MappingNode) else {}


def text(entry: Entry | None) -> str:
    """A scalar's text; empty where there is none."""
    if entry is None or not isinstance(entry.node, Scalar) or entry.node.is_null:
        return ""
    return entry.node.text


def texts(entry: Entry | None) -> dict[str, str]:
    """A block of scalars, each as its text."""
    return {name: each.node.text for name, each in entries(entry).items() if isinstance(each.node, Scalar)}


def number(entry: Entry | None) -> float | None:
    value = plain(entry.node) if entry is not None else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def last_line(node: Node) -> int:
    """The last line on which something of a node begins."""
    match node:
        case Scalar(line=line):
            return line
        case MappingNode(line=line, entries=found):
            return max([line, *(max(entry.line, last_line(entry.node)) for entry in found.values())])
        case _:
            return max([node.line, *(last_line(item) for item in node.items)])
