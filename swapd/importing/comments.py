"""The comments of a YAML text by line, for a reader that drops them.

Owns the guess at what a comment is; only used to carry them over, never to read a value.
"""

from __future__ import annotations

import re

_BLOCK_SCALAR = re.compile(r"^(?P<indent>\s*)(?:-\s+)?[^#\n]*[:\-]\s*[|>][+-]?\d?[+-]?\s*(?:#.*)?$")
_WHOLE_LINE = re.compile(r"^\s*#\s?(?P<text>.*)$")
_TRAILING = re.compile(r"\s#\s(?P<text>.*)$")


def comments_of(text: str) -> dict[int, str]:
    """Each comment by its line, counted from 1, without its mark. Those inside block scalars are text, and left out."""
    found: dict[int, str] = {}
    scalar_indent: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if scalar_indent is not None:
            if not line.strip() or len(line) - len(line.lstrip()) > scalar_indent:
                continue
            scalar_indent = None
        comment = _comment(line)
        if comment:
            found[number] = comment
        opened = _BLOCK_SCALAR.match(line)
        if opened:
            scalar_indent = len(opened["indent"])
    return found


def _comment(line: str) -> str:
    whole = _WHOLE_LINE.match(line)
    if whole:
        return whole["text"].rstrip()
    trailing = _TRAILING.search(line)
    # A mark inside of quotes is text.
    if trailing and line[: trailing.start()].count('"') % 2 == 0 and line[: trailing.start()].count("'") % 2 == 0:
        return trailing["text"].rstrip()
    return ""
