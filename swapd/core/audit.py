"""The ledger's invariants after every step, at a cost that does not grow with what waits.

What a step can have touched at once is asserted at once: all memory, workers, grants and counters, which are few, and
the requests that it moved. Queues are asserted in turns: a breach that a step leaves behind there, and that nothing
else shows, is found once as many steps have followed as it takes to go through all of them (`Audit.round_steps`).
"""

from __future__ import annotations

from swapd.core.ledger import Ledger
from swapd.core.records import Model

PER_STEP = 32
"""Models, clients and waiting requests that are looked at after each step, on average: a queue is one piece."""


class Audit:
    """Watches one ledger. `look` raises AssertionError at a breach."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._left: list[Model] = []
        self._credit = 0

    @property
    def round_steps(self) -> int:
        """After at most so many steps every queue, as they are now, has been looked at."""
        return 3 + sum(map(_records, self._ledger.models.values())) // PER_STEP

    def look(self) -> None:
        """To be called after every step."""
        ledger = self._ledger
        ledger.check_sums()
        for request in ledger.moved:
            ledger.check_request(request)
        self._credit += PER_STEP
        if not self._left:
            self._begin()
        while self._left and (cost := _records(self._left[-1])) <= self._credit:
            self._credit -= cost
            model = self._left.pop()
            if ledger.models.get(model.id) is model:
                ledger.check_queue(model)

    def _begin(self) -> None:
        models = list(self._ledger.models.values())
        queued = sum(len(model.waiting) for model in models)
        assert queued == len(self._ledger.waiting), "queues and waiting requests differ"
        models.reverse()
        self._left = models
        self._credit = min(self._credit, PER_STEP)


def _records(model: Model) -> int:
    return 1 + len(model.waiting) + len(model.shares.active)
