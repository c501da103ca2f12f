"""Which models an event can make a difference to: one, none, or any.

Owns the rule by which a step looks at less than everything. Pure reads of the ledger as it was before the event.

The rule, in words. Tokens that were counted, progress that was reported and a sample of memory that shows nothing new
make nothing possible. A request that comes to a queue, one that is cancelled within it, one that ends on a worker
which goes on working, and one whose answer begins concern their own model alone: they free no memory, and nobody wants
a worker who did not, or no longer wants one who did. Whatever else happens may concern every model, and so does
anything once the timer is due.

What such an event may still do to others is bring nearer the time at which its model's worker may be asked to leave:
less waits for it. While time passes, those times come nearer by themselves. And a worker that drains for a model may
stay once that one has found other room. So a step that looks at less has everything looked at within `LOOK_AGAIN_S` for
as long as some model waits for a worker or some worker drains.
"""

from __future__ import annotations

from collections.abc import Hashable

from swapd.core import events as ev
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.records import Model
from swapd.core.requests import Request

LOOK_AGAIN_S = 0.5
"""After a step that looked at less than everything: when everything is looked at, while memory changes hands."""

Scope = tuple[Model, ...] | None
"""The models that have to be looked at; None is everything."""


class Seen:
    """The ledger as it was before an event was recorded, as far as the event's scope goes by it."""

    def __init__(self, ledger: Ledger, event: ev.Event, now_s: float) -> None:
        self._ledger = ledger
        self._event = event
        self._now_s = now_s
        self._scope = _scope_of(ledger, event, now_s)
        self._memory = _memory(ledger, now_s) if isinstance(event, ev.MemorySampled) else None

    def scope(self) -> Scope:
        """What has to be looked at, now that the event is recorded."""
        if self._memory is not None and self._memory != _memory(self._ledger, self._now_s):
            return None
        return self._scope


def _memory(ledger: Ledger, now_s: float) -> Hashable:
    """What plans go by of what devices show."""
    devices = ((device.others_bytes, device.is_fresh(now_s)) for device in ledger.devices.values())
    return (*ledger.settling, *devices)


def _scope_of(ledger: Ledger, event: ev.Event, now_s: float) -> Scope:
    if ledger.closing or (ledger.timer_at_s is not None and now_s >= ledger.timer_at_s):
        return None
    match event:
        case ev.TokensServed() | ev.WorkerProgressed(began=None) | ev.MemorySampled():
            return ()
        case ev.WorkerProgressed():
            # Less silence is allowed once an answer has begun.
            return _only(ledger.models.get(ledger.workers[event.worker_id].model_id))
        case ev.RequestArrived():
            model = ledger.models.get(event.model_id)
            return _only(model) if model is not None and model.waiting else None
        case ev.RequestFinished() | ev.RequestCancelled():
            running = ledger.running.get(event.request_id)
            if running is not None:
                return _of_running(ledger, running)
            waiting = ledger.waiting.get(event.request_id)
            return None if waiting is None else _of_waiting(ledger, waiting)
    return None


def _only(model: Model | None) -> Scope:
    """Of several workers, one more or less request can make another one of them the one to be missed least."""
    if model is None or model.spec.replicas > 1 or model.pin_lifted:
        return None
    return (model,)


def _of_running(ledger: Ledger, request: Request) -> Scope:
    assert request.worker_id is not None
    worker, model = ledger.workers[request.worker_id], ledger.models.get(request.model_id)
    if worker.state is not WorkerState.READY or model is None:
        return None
    return _only(model) if len(worker.running) > 1 or model.waiting else None


def _of_waiting(ledger: Ledger, request: Request) -> Scope:
    """Since when a model has wanted a worker goes by its oldest request."""
    model = ledger.models[request.model_id]
    return None if next(iter(model.waiting.values())) is request else _only(model)
