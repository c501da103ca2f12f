"""Where waiting requests stand, as their clients are told.

Owns how fresh that is: the order of a queue is worked out for all of its requests at once, at most once a second,
because every waiting stream asks. Must never change the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from swapd.core.admission import expected_wait_s
from swapd.core.fairness import in_order
from swapd.core.ledger import Ledger
from swapd.core.records import LOADING_STATES, Model
from swapd.core.room import why_waiting
from swapd.pool.lease import Place

FRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class _View:
    """One model's queue at one time."""

    at_s: float
    positions: Mapping[str, int]
    state: str


class Places:
    def __init__(self, ledger: Ledger, load_progress: Callable[[int], float | None]) -> None:
        """`load_progress` gives how much of a worker's load is done, from 0 to 1, by the worker's id."""
        self._ledger = ledger
        self._load_progress = load_progress
        self._views: dict[str, _View] = {}

    def of(self, request_id: str, now_s: float) -> Place | None:
        """The place of a request that waits; None for any other."""
        request = self._ledger.waiting.get(request_id)
        if request is None:
            return None
        model = self._ledger.models[request.model_id]
        view = self._views.get(model.id)
        if view is None or now_s - view.at_s >= FRESH_S or request_id not in view.positions:
            self._views = {key: one for key, one in self._views.items() if now_s - one.at_s < FRESH_S}
            view = self._views[model.id] = self._look(model, now_s)
        position = view.positions[request_id]
        return Place(position, view.state, expected_wait_s(self._ledger, model, position, now_s))

    def _look(self, model: Model, now_s: float) -> _View:
        positions = {request.id: number for number, request in enumerate(in_order(model), start=1)}
        return _View(now_s, positions, self._state(model, now_s))

    def _state(self, model: Model, now_s: float) -> str:
        loading = [worker.id for worker in self._ledger.workers_of(model.id) if worker.state in LOADING_STATES]
        if not loading:
            return why_waiting(self._ledger, model, now_s) or "queued"
        progress = max((self._load_progress(worker_id) or 0.0 for worker_id in loading), default=0.0)
        return f"loading, {progress:.0%}".replace("%", " %") if progress else "loading"
