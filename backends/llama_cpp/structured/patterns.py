"""Regular expressions of JSON schemas: how large one is when its repetitions are written out.

Pure. Judges only what llguidance does not bound by itself; what is wrong with an expression, llguidance says.
"""

from __future__ import annotations

import re

_REPETITION = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\\\]])*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:[pPux]\{[^}]*\}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|.)", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?:P?<[A-Za-z_]\w*>|[a-zA-Z-]*:))?")
ENDLESS = 10**9
"""What a size is never said to exceed."""


def written_out(pattern: str) -> int:
    """How many single characters or classes the pattern has when `a{3}` is written `aaa`, groups in groups included."""
    totals = [0]
    last = 0
    place = 0
    while place < len(pattern):
        character = pattern[place]
        if character == "(":
            opening = _GROUP.match(pattern, place)
            assert opening is not None
            place = opening.end()
            totals.append(0)
            last = 0
            continue
        if character == ")" and len(totals) > 1:
            last = totals.pop()
            totals[-1] += last
        elif (repeated := _REPETITION.match(pattern, place)) is not None:
            grown = _times(last, repeated)
            totals[-1] = min(ENDLESS, totals[-1] - last + grown)
            last = grown
            place = repeated.end()
            continue
        elif character not in "|*+?":
            atom = (_CLASS if character == "[" else _ESCAPE).match(pattern, place)
            place = atom.end() - 1 if atom is not None else place
            last = 1
            totals[-1] += 1
        place += 1
    return min(ENDLESS, sum(totals))


def _times(size: int, repeated: re.Match[str]) -> int:
    least, most = repeated.groups()
    return min(ENDLESS, max(size, 1) * max(int(least), int(most or 0), 1))
