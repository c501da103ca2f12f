"""How long an idle model stays: its own setting, or what a client has wished since it was loaded.

Owns that wish, from the event on until the model's last worker is gone.
"""

from __future__ import annotations

from math import inf

from swapd.core.effects import Effect
from swapd.core.events import KeepAliveAsked
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.records import Model, Worker


def keep_alive_asked(ledger: Ledger, event: KeepAliveAsked, _now_s: float, _effects: list[Effect]) -> None:
    """Note a wish that comes without a request. There is nothing to keep of a model without workers."""
    model = ledger.models.get(event.model_id)
    if model is not None and any(ledger.workers_of(model.id)):
        model.keep_alive_s = event.keep_alive_s


def forget_keep_alive(ledger: Ledger, model: Model) -> None:
    """After a worker has gone: a wish does not outlive the last one, but for requests that wait for the next."""
    if not model.waiting and not any(ledger.workers_of(model.id)):
        model.keep_alive_s = None


def idle_unload_at_s(ledger: Ledger, worker: Worker) -> float | None:
    """When an idle worker leaves if nothing is asked of it; None if it is not idle, or stays."""
    if worker.state is not WorkerState.READY or worker.running or ledger.is_pinned(worker):
        return None
    limit_s, _ = _limit(ledger, worker)
    return None if limit_s is None or limit_s == inf else worker.idle_since_s + limit_s


def unload_in_s(ledger: Ledger, worker: Worker, now_s: float) -> float | None:
    """Seconds until a worker that serves would leave if nothing more came and what it runs ended now; None if it would
    stay."""
    if ledger.is_pinned(worker):
        return None
    limit_s, _ = _limit(ledger, worker)
    if limit_s is None or limit_s == inf:
        return None
    return limit_s if worker.running else max(0.0, worker.idle_since_s + limit_s - now_s)


def idle_limit(ledger: Ledger, worker: Worker) -> str:
    """The limit of a worker that has one, and who set it, for people."""
    limit_s, source = _limit(ledger, worker)
    assert limit_s is not None
    return f"{limit_s:g} s ({source})"


def _limit(ledger: Ledger, worker: Worker) -> tuple[float | None, str]:
    model = ledger.models.get(worker.model_id)
    wished_s = model.keep_alive_s if model is not None else None
    return (worker.spec.idle_unload_s, "idle_unload") if wished_s is None else (wished_s, "keep_alive of a request")
