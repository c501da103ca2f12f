"""What could be freed at most, and so which models it is no use to try to help now. Pure reads of the ledger.

With a thousand models waiting for room nearly all of them want more than there is. Trying to place each of them costs
far more than seeing that. The bound is generous: whatever is passed over here could not have been helped, and nothing
but an event, or the time that `opens_s` tells, can change that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from math import inf

from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.pages import needed_bytes
from swapd.core.placement import least_gpu_bytes
from swapd.core.records import LOADING_STATES, Model
from swapd.core.spec import RAM, Placement
from swapd.core.turns import bound_s, earliest_leave_s, least_outweighing_s, waiting_weight_s

SLACK_S = 1e-3
"""Sums are rounded."""


class Reach:
    """Workers that may be asked to leave now, as seen in one plan: for whom so much waits, and for one at its bound."""

    def __init__(self, ledger: Ledger, now_s: float) -> None:
        self._now_s = now_s
        self.limits = ledger.open_limits
        self._mapped = ledger.mapped()
        self._gpus = [name for name in ledger.devices if name != RAM]
        self._at_bound: Counter[str] = Counter()
        found: list[tuple[float, Mapping[str, int]]] = []
        opens_at_s = []
        for worker in ledger.workers.values():
            if ledger.is_pinned(worker):
                continue
            sizes = worker.placement.device_bytes
            at_s = earliest_leave_s(ledger, worker, now_s)
            if at_s is not None and at_s <= now_s:
                found.append((least_outweighing_s(ledger, worker), sizes))
            if worker.state is WorkerState.READY or worker.state in LOADING_STATES:
                self._at_bound.update(sizes)
            if at_s is not None and at_s > now_s:
                opens_at_s.append(at_s)
        self._opens_at_s = min(opens_at_s, default=inf)
        found.sort(key=lambda one: one[0])
        #: Seconds of waiting that outweigh so many workers, and what those have together; the first is nobody.
        self._outweighed_s = [weight_s for weight_s, _ in found]
        self._freed: list[Counter[str]] = [Counter()]
        for _, sizes in found:
            self._freed.append(self._freed[-1] + Counter(sizes))

    def opens_s(self, model: Model, best: Placement | None, soon: Mapping[str, int]) -> float:
        """From when on there may be room for this model, beside what is on its way back, once others have left.

        Not after now means now, infinity that an event has to come first. `best` is what it could have at most.
        """
        now_s, at_bound_s = self._now_s, bound_s(model)
        if best is not None and model.claim is not None:
            return now_s
        if best is None or not self._holds(model, best, soon, self._at_bound):
            return inf
        if at_bound_s <= now_s:
            return now_s
        weight_s = waiting_weight_s(model, now_s) + SLACK_S
        first = bisect_right(self._outweighed_s, weight_s)
        for count in range(first, len(self._freed)):
            if self._holds(model, best, soon, self._freed[count]):
                if count == first:
                    return now_s
                rate = len(model.waiting) + len(model.load_asks)
                outweighed_s = now_s + (self._outweighed_s[count - 1] - weight_s) / rate if rate else inf
                return min(at_bound_s, self._opens_at_s, outweighed_s)
        return min(at_bound_s, self._opens_at_s)

    def _holds(self, model: Model, best: Placement, soon: Mapping[str, int], freed: Mapping[str, int]) -> bool:
        if not best.devices:
            return needed_bytes(model.spec, best, self._mapped)[RAM] <= soon[RAM] + freed[RAM]
        there = sum(max(0, soon[name] + freed[name]) for name in self._gpus)
        return least_gpu_bytes(model.spec, best) <= there
