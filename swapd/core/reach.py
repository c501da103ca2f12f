"""What could be freed at most, and so which models it is no use to try to help now. Pure reads of the ledger.

With a thousand models waiting for room nearly all of them want more than there is. Trying to place each of them costs
far more than seeing that. The bound is generous: whatever is passed over here could not have been helped, and nothing
but an event, or the time that `opens_s` tells, can change that.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.pages import needed_bytes
from swapd.core.placement import least_gpu_bytes
from swapd.core.records import LEAVING_STATES, Model
from swapd.core.spec import RAM, Placement
from swapd.core.turns import Hold, busy_leave_at_s, hold, want


class Reach:
    """Workers that may be asked to leave, as seen in one plan."""

    def __init__(self, ledger: Ledger, now_s: float) -> None:
        self._ledger = ledger
        self._now_s = now_s
        self.limits = ledger.open_limits
        self._mapped = ledger.mapped()
        self._names = list(ledger.devices)
        #: What those have together that may be asked now, perhaps, and those that may be by a model at its bound.
        self._at_once = dict.fromkeys(self._names, 0)
        self._at_bound = dict.fromkeys(self._names, 0)
        self._busy: list[tuple[Hold, Mapping[str, int]]] = []
        for worker in ledger.workers.values():
            if ledger.is_pinned(worker) or worker.state in LEAVING_STATES:
                continue
            sizes = worker.placement.device_bytes
            _add(self._at_bound, sizes)
            if ledger.is_surplus(worker) or (worker.state is WorkerState.READY and not worker.running):
                _add(self._at_once, sizes)
            elif worker.state is WorkerState.READY:
                self._busy.append((hold(ledger, worker), sizes))

    def opens_s(self, model: Model, best: Placement | None, soon: Mapping[str, int]) -> float:
        """From when on there may be room for this model, beside what is on its way back, once others have left.

        Not after now means now, infinity that an event has to come first. `best` is what it could have at most.
        """
        now_s = self._now_s
        if best is not None and model.claim is not None:
            return now_s
        if best is None or not self._holds(model, best, soon, self._at_bound):
            return inf
        wanted = want(self._ledger, model, now_s)
        if wanted.bound_s <= now_s:
            return now_s
        times = [(busy_leave_at_s(held, wanted, now_s), sizes) for held, sizes in self._busy]
        freed = dict(self._at_once)
        for at_s, sizes in times:
            if at_s <= now_s:
                _add(freed, sizes)
        if self._holds(model, best, soon, freed):
            return now_s
        return min((at_s for at_s, _ in times if at_s > now_s), default=wanted.bound_s)

    def _holds(self, model: Model, best: Placement, soon: Mapping[str, int], freed: Mapping[str, int]) -> bool:
        if model.spec.fixed is not None or not best.devices:
            needed = needed_bytes(model.spec, best, self._mapped)
            return all(size_bytes <= soon[name] + freed[name] for name, size_bytes in needed.items() if size_bytes)
        there = sum(max(0, soon[name] + freed[name]) for name in self._names if name != RAM)
        return least_gpu_bytes(model.spec, best) <= there


def _add(total: dict[str, int], sizes: Mapping[str, int]) -> None:
    for name, size_bytes in sizes.items():
        total[name] += size_bytes
