"""What could be freed at most, and so which models it is no use to try to help now. Pure reads of the ledger.

With a thousand models waiting for room nearly all of them want more than there is. Trying to place each of them costs
far more than seeing that. The bound is generous: whatever is passed over here could not have been helped, and nothing
but an event, or a time that `look_again_s` tells, can change that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.pages import needed_bytes
from swapd.core.placement import least_gpu_bytes
from swapd.core.records import LOADING_STATES, Model
from swapd.core.spec import RAM, Placement
from swapd.core.turns import bound_s, earliest_leave_s


class Reach:
    """Workers that may be asked to leave now, as seen in one plan: for any waiter, and for one at its bound."""

    def __init__(self, ledger: Ledger, now_s: float) -> None:
        self._now_s = now_s
        self.limits = ledger.open_limits
        self._mapped = ledger.mapped()
        self._gpus = [name for name in ledger.devices if name != RAM]
        self._now: Counter[str] = Counter()
        self._at_bound: Counter[str] = Counter()
        times = []
        for worker in ledger.workers.values():
            if ledger.is_pinned(worker):
                continue
            sizes = worker.placement.device_bytes
            at_s = earliest_leave_s(ledger, worker, now_s)
            if at_s is not None and at_s <= now_s:
                self._now.update(sizes)
            if worker.state is WorkerState.READY or worker.state in LOADING_STATES:
                self._at_bound.update(sizes)
            if at_s is not None and at_s > now_s:
                times.append(at_s)
        self._opens_at_s = min(times, default=None)

    def holds(self, model: Model, best: Placement, soon: Mapping[str, int]) -> bool:
        """Whether there may be room for this model, beside what is on its way back, once others have left."""
        freed = self._at_bound if self._now_s >= bound_s(model) else self._now
        if best.devices:
            assert model.spec.costs is not None
            there = sum(max(0, soon[name] + freed[name]) for name in self._gpus)
            return least_gpu_bytes(model.spec, best) <= there
        return needed_bytes(model.spec, best, self._mapped)[RAM] <= soon[RAM] + freed[RAM]

    def look_again_s(self, model: Model) -> float | None:
        """When time alone may have made room for a model that this does not hold."""
        at_s = bound_s(model)
        if at_s <= self._now_s:
            return None
        return at_s if self._opens_at_s is None else min(at_s, self._opens_at_s)
