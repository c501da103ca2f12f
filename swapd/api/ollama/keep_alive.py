"""`keep_alive`: how long a model stays after a request, in the two forms that Ollama's clients write it. Pure."""

from __future__ import annotations

import re
from math import inf

from swapd.errors import BadRequestError

FOREVER_S = inf
LONGEST_S = 100 * 365 * 24 * 3600.0
"""Beyond it is for ever: Go's durations end at 292 years."""

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]{0,12}(?:\.[0-9]{0,12})?)(ns|us|µs|μs|ms|s|m|h)")
MAX_CHARS = 64


def keep_alive_s(value: float | str | None) -> float | None:
    """Seconds; infinity for ever (any negative value), None where it is not said. Raises `BadRequestError`.

    A number is seconds, a text a duration of Go's (time.ParseDuration): `5m`, `1h30m`, `-1s`; "0" needs no unit.
    """
    if value is None:
        return None
    seconds = _of_text(value.strip()) if isinstance(value, str) else float(value)
    return FOREVER_S if seconds < 0 or seconds > LONGEST_S else seconds


def _of_text(text: str) -> float:
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text.removeprefix("-") if sign < 0 else text.removeprefix("+")
    if rest == "0":
        return 0.0
    if not rest or len(text) > MAX_CHARS:
        raise _unreadable(text)
    position, seconds = 0, 0.0
    while position < len(rest):
        part = _PART.match(rest, position)
        if part is None or part[1] in ("", "."):
            raise _unreadable(text)
        seconds += float(part[1]) * _UNITS_S[part[2]]
        position = part.end()
    return sign * seconds


def _unreadable(text: str) -> BadRequestError:
    return BadRequestError(
        f"keep_alive: {text[:32]!r} is no duration; write a number of seconds, or a text with units such as 1h30m",
        param="keep_alive",
    )
