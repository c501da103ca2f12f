"""Which requests may wait, and how long that will take. Pure reads of the ledger."""

from __future__ import annotations

from swapd.core.departures import serves
from swapd.core.effects import Refusal, RefusalKind
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.records import LOADING_STATES, Model, Worker
from swapd.core.sleepers import sleeper_of
from swapd.core.turns import start_s, usual_service_s

MAX_RETRY_AFTER_S = 60.0
"""What clients' libraries still keep to."""

LEFT_FOR_OTHERS = 8
"""One client may have so many requests waiting for each place that is left: it cannot fill a queue for all others."""


def over_client_limit(ledger: Ledger, model: Model, client: str) -> Refusal | None:
    """Why a client may not have one more request than it has, over all models; None if it may."""
    limit = model.spec.max_per_client
    if limit is None:
        return None
    accounts = [found for one in ledger.models.values() if (found := one.shares.active.get(client)) is not None]
    if sum(account.running + account.waiting for account in accounts) < limit:
        return None
    message = f"this client has {limit} requests running or waiting (queue.max_per_client); let one of them end first"
    return Refusal(RefusalKind.CLIENT_LIMIT, message, _clamped(usual_service_s(model) / limit))


def over_queue_bounds(ledger: Ledger, model: Model, now_s: float) -> Refusal | None:
    """Why the newest request of a queue that is not empty may not wait in it; None if it may."""
    spec, shares = model.spec, model.shares
    others = len(model.waiting) - 1
    account = next(reversed(model.waiting.values())).account
    assert account is not None
    if others >= spec.max_waiting:
        message = f"model {model.id!r} has {spec.max_waiting} requests waiting (queue.max_waiting); try later"
    elif others and shares.waiting_tokens > spec.max_waiting_tokens:
        message = (
            f"model {model.id!r} has requests of about {spec.max_waiting_tokens} tokens waiting "
            "(queue.max_waiting_tokens); try later, or with a shorter prompt"
        )
    elif account.waiting - 1 >= LEFT_FOR_OTHERS * (spec.max_waiting - others):
        message = (
            f"{account.waiting - 1} of the {others} requests that wait for model {model.id!r} are this client's; "
            f"the places that are left of {spec.max_waiting} (queue.max_waiting) are for others; try later"
        )
    else:
        return None
    return Refusal(RefusalKind.QUEUE_FULL, message, retry_after_s(ledger, model, now_s))


def expected_wait_s(ledger: Ledger, model: Model, position: int, now_s: float) -> float | None:
    """Seconds until the request at a position, the next to be granted being at 1, is granted.

    None as long as that would be a guess: no request was served yet, or the model is not up and neither are the seconds
    of its load or its waking known nor has that begun. A place becomes free every mean service time over the places
    that there are.
    """
    if model.service_s is None:
        return None
    ready = _places(ledger, model, WorkerState.READY)
    if ready:
        return position * model.service_s / ready
    loading = [worker for worker in ledger.workers_of(model.id) if worker.state in LOADING_STATES]
    takes_s = model.load_s if sleeper_of(ledger, model.id) is None else model.usual_wake_s
    if not loading or takes_s is None:
        return None
    rest_s = min(_load_rest_s(worker, takes_s, now_s) for worker in loading)
    rounds = (position - 1) // _places(ledger, model, *LOADING_STATES)
    return rest_s + rounds * model.service_s


def newcomers_wait_s(ledger: Ledger, model: Model, now_s: float) -> float | None:
    """Seconds that a request would wait that came now and was the last in line; None where that is a guess."""
    ready = (worker for worker in ledger.workers_of(model.id) if worker.state is WorkerState.READY)
    if any(len(worker.running) < worker.spec.slots for worker in ready):
        return 0.0
    return expected_wait_s(ledger, model, len(model.waiting) + 1, now_s)


def retry_after_s(ledger: Ledger, model: Model, now_s: float) -> float:
    """When a request that finds the queue full may come again: once what is before it is served, within bounds."""
    waiting = len(model.waiting)
    wait_s = expected_wait_s(ledger, model, waiting, now_s)
    if wait_s is None:
        load_s = 0.0 if serves(ledger, model) else start_s(ledger, model)
        wait_s = load_s + waiting * usual_service_s(model) / model.spec.slots
    return _clamped(wait_s)


def _places(ledger: Ledger, model: Model, *states: WorkerState) -> int:
    return sum(worker.spec.slots for worker in ledger.workers_of(model.id) if worker.state in states)


def _load_rest_s(worker: Worker, load_s: float, now_s: float) -> float:
    return max(0.0, load_s - (now_s - worker.launched_at_s))


def _clamped(wait_s: float) -> float:
    return min(MAX_RETRY_AFTER_S, max(1.0, wait_s))
