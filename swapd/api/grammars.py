"""How much a client's GBNF grammar may ask of a worker that reads it with little care: nested groups and repetitions
have cost llama-server its stack, its memory or minutes of a core.

Owns the limits, which are those of the embedded worker. Whether the grammar is right is left to the worker. Pure.
"""

from __future__ import annotations

import re

from swapd.errors import BadRequestError

MAX_NESTING = 64
"""Parentheses within parentheses."""
MAX_REPEATED = 4000
"""Parts with a sign of repetition."""
MAX_REPETITIONS = 2000
MAX_STACKED = 8
"""Signs of repetition behind one part."""

_SIGN = r"[*+?]|\{\s*(?:\d+\s*(?:,\s*(?:\d+\s*)?)?)?\}"
_PIECE = re.compile(
    rf"""(?P<opaque>"(?:\\.?|[^"\\])*"?|\[(?:\\.?|[^\]\\])*\]?|\#[^\n]*)|(?P<paren>[()])|(?P<signs>(?:(?:{_SIGN})\s*)+)""",
    re.DOTALL,
)
"""Each piece is taken to its end, if need be to the grammar's, so that none is looked at twice."""
_ONE_SIGN = re.compile(_SIGN)
_NUMBER = re.compile(r"\d+")


def refuse_heavy(grammar: str | None) -> None:
    """Raises `BadRequestError` for one beyond the limits."""
    depth = repeated = 0
    for piece in _PIECE.finditer(grammar or ""):
        if piece["paren"]:
            depth += 1 if piece["paren"] == "(" else -1
            if depth > MAX_NESTING:
                raise _refused(f"parentheses are nested deeper than {MAX_NESTING}")
        elif piece["signs"]:
            repeated += 1
            if repeated > MAX_REPEATED:
                raise _refused(f"more than {MAX_REPEATED} parts are repeated")
            if len(_ONE_SIGN.findall(piece["signs"])) > MAX_STACKED:
                raise _refused(f"more than {MAX_STACKED} signs of repetition stand behind one part")
            # Longer than any limit has digits, and so no number that takes long to read.
            if any(len(number) > 6 or int(number) > MAX_REPETITIONS for number in _NUMBER.findall(piece["signs"])):
                raise _refused(f"a part is repeated more than {MAX_REPETITIONS} times")


def _refused(why: str) -> BadRequestError:
    return BadRequestError(f"grammar: {why}", param="grammar")
