"""Whether the machine has slept: Linux has a clock that goes on meanwhile, and one that does not.

Owns the comparison of the two, and nothing that follows from it.
"""

from __future__ import annotations

from collections.abc import Callable

NOTICEABLE_S = 0.5
"""The clocks are read one after the other, and a machine that slept for less has lost nothing."""


class SleepWatch:
    """`boottime_s` and `monotonic_s` read CLOCK_BOOTTIME and CLOCK_MONOTONIC, in seconds."""

    def __init__(self, boottime_s: Callable[[], float], monotonic_s: Callable[[], float]) -> None:
        self._boottime_s = boottime_s
        self._monotonic_s = monotonic_s
        self._slept_s = self._total_s()

    def slept_s(self) -> float:
        """For how long the machine has slept since this was last asked; 0.0 if it has not."""
        total_s = self._total_s()
        since_s, self._slept_s = total_s - self._slept_s, total_s
        return since_s if since_s >= NOTICEABLE_S else 0.0

    def _total_s(self) -> float:
        return self._boottime_s() - self._monotonic_s()
