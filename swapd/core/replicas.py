"""Further workers of a model that has one: when they are wanted, and who may leave for them.

A replica makes a hot model faster and never another one slower: it goes into free room, or into that of workers
nobody has needed for a turn and nobody is expected to need within a minute. Whoever needs a first worker goes before
it, and takes its room back at once (`swapd.core.turns`). Nothing waits for a replica by a timer of its own: a model
whose workers are full has events enough.
"""

from __future__ import annotations

from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.records import Model, Worker

EXPECTED_WITHIN_S = 60.0
"""A model that is likely to be asked for within so long keeps its place before another model's replica."""


def wants_replica(ledger: Ledger, model: Model, now_s: float) -> bool:
    """Whether requests wait because all of the model's workers are full, and it may have one more."""
    if model.spec.replicas == 1 or ledger.closing or not model.waiting or model.spec.costs is None or model.verdict:
        return False
    if model.retry_at_s is not None and now_s < model.retry_at_s:
        return False
    return _is_full(ledger, model)


def next_may_load(ledger: Ledger, model_id: str) -> bool:
    """Whether the next request for this model may cause a load."""
    model = ledger.models.get(model_id)
    return not any(ledger.workers_of(model_id)) or (model is not None and _is_full(ledger, model))


def _is_full(ledger: Ledger, model: Model) -> bool:
    """One is loaded after the other, so that each is known to be needed beside those before it."""
    staying = ledger.staying(model.id)
    return 0 < len(staying) < model.spec.replicas and all(
        worker.state is WorkerState.READY and len(worker.running) >= worker.spec.slots for worker in staying
    )


def may_leave(ledger: Ledger, worker: Worker, replica_of: Model, now_s: float) -> bool:
    """Whether a worker of another model may be sent away for a replica of this one."""
    if worker.state is not WorkerState.READY or worker.running or worker.model_id == replica_of.id:
        return False
    assert worker.ready_at_s is not None
    if ledger.is_pinned(worker) or now_s < max(worker.ready_at_s, worker.idle_since_s) + worker.spec.turn_s:
        return False
    holder = ledger.models.get(worker.model_id)
    is_wanted = holder is not None and holder.demand.per_s(now_s) * EXPECTED_WITHIN_S >= 1
    return not is_wanted or ledger.is_surplus(worker)
