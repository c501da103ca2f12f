"""In which order the targets of a virtual model are tried, and for how long each may be waited for.

Owns the strategies. What is known of the targets is a moment old and a guess in part: whoever tries them bounds the
wait by a deadline, and asks again for the rest after each one that failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Strategy = Literal["first_loaded", "fallback", "spillover"]
"""first_loaded: who is loaded, else who is being loaded, else the first. fallback: the first that can. spillover: the
first with a free place, else the one with the shortest wait."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One target as it is now."""

    name: str
    ready: bool = False
    """A worker of it takes requests."""
    loading: bool = False
    free: bool = False
    """A request that came now would be granted at once."""
    refused: bool = False
    """A request that came now would be refused: a bad file, too little memory, a load that failed just now."""
    wait_s: float | None = None
    """What a request that came now would wait; None where that is a guess."""
    guess_s: float = 0.0
    """The same, guessed where it must be."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One target to try."""

    name: str
    within_s: float | None
    """Seconds for which it may be waited for before the next is tried; None: as long as its queue lets wait."""


def attempts(strategy: Strategy, max_wait_s: float | None, standings: Sequence[Standing]) -> tuple[Attempt, ...]:
    """All targets, in the order in which they are to be tried. `standings` are in the order of the configuration.

    A target whose wait is known to be longer than `max_wait_s` comes after the others, the shortest wait first, and
    without a bound: nobody is left who would serve sooner. So does the last that is worth a try.
    """
    order = sorted(standings, key=lambda one: (_is_late(one, max_wait_s), *_rank(strategy, one, max_wait_s)))
    worth = [index for index, one in enumerate(order) if not one.refused]
    last = worth[-1] if worth else -1
    return tuple(
        Attempt(one.name, max_wait_s if index < last and not _is_late(one, max_wait_s) else None)
        for index, one in enumerate(order)
    )


def _is_late(one: Standing, max_wait_s: float | None) -> bool:
    return max_wait_s is not None and one.wait_s is not None and one.wait_s > max_wait_s


def _rank(strategy: Strategy, one: Standing, max_wait_s: float | None) -> tuple[float, ...]:
    """Less is sooner; equals keep the order of the configuration."""
    if _is_late(one, max_wait_s):
        return (one.guess_s,)
    if strategy == "fallback":
        # One that would be refused is asked all the same: that costs no time, and its file may have been mended.
        return ()
    if strategy == "first_loaded":
        return (one.refused, 0 if one.ready else 1 if one.loading else 2)
    assert strategy == "spillover"
    return (one.refused, not one.free, 0.0 if one.free else one.guess_s)
