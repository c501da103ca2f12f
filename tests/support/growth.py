"""Whether doing a thing again and again costs more each time.

CPU time of the thread, for windows of repetitions of something that has gone on for long and of the same that has just
begun, in turns: what other processes do to a window makes it slower, so of each kind the fastest counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import thread_time_ns

WINDOW = 40
ROUNDS = 8
TRIALS = 3

Once = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """Microseconds of one repetition at the beginning and after many."""

    fresh_us: float
    later_us: float

    def is_flat(self, slack_us: float) -> bool:
        """Whether the later one costs no more than twice the fresh one and a little."""
        return self.later_us < 2 * self.fresh_us + slack_us


def cost_of(begin: Callable[[], Once], repetitions: int, slack_us: float) -> Cost:
    """What a repetition costs; `begin` starts the thing anew. A cost that is not flat is measured again."""
    later = begin()
    for _ in range(repetitions):
        later()
    for _ in range(TRIALS):
        cost = _in_turns(begin, later)
        if cost.is_flat(slack_us):
            break
    return cost


def _in_turns(begin: Callable[[], Once], later: Once) -> Cost:
    fresh_us, later_us = [], []
    for _ in range(ROUNDS):
        fresh = begin()
        _window_us(fresh)
        fresh_us.append(_window_us(fresh))
        later_us.append(_window_us(later))
    return Cost(min(fresh_us), min(later_us))


def _window_us(once: Once) -> float:
    began_ns = thread_time_ns()
    for _ in range(WINDOW):
        once()
    return (thread_time_ns() - began_ns) / WINDOW / 1000
