"""A virtual clock: a heap of what is still to happen. Time passes only from one happening to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """Happenings of the same time come in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def at(self, delay_s: float, action: Callable[[], None]) -> int:
        """Have something happen in so many seconds from now. Returns a number of its own."""
        return self.at_time(self.now_s + max(0.0, delay_s), action)

    def at_time(self, at_s: float, action: Callable[[], None]) -> int:
        """The same for a time, which is not past."""
        assert at_s >= self.now_s
        self._sequence += 1
        heapq.heappush(self._heap, (at_s, self._sequence, action))
        return self._sequence

    def advance(self, until_s: float = float("inf")) -> bool:
        """Let the next thing happen. False if there is none that is due by `until_s`."""
        if not self._heap or self._heap[0][0] > until_s:
            return False
        self.now_s, _, action = heapq.heappop(self._heap)
        action()
        return True
