"""When a worker may be asked to leave for a model that waits. Pure reads of the ledger.

The rules, in words. A worker that is pinned, elsewhere or still loading is never asked. One of a model that keeps
another goes at once, loading or not, after what it runs. An idle one goes at once, unless its turn lasts and clients
other than those who wait are likely to ask sooner than a reload takes. A busy one is never cut off: it stops receiving
grants once its turn is over, which is the longer the more a swap takes, and the waiting outweighs what its own clients
would lose by it, and at the latest when the waiting model has waited its `max_wait_s`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from swapd.core.eviction import Candidate
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.records import Model, Worker
from swapd.core.sleepers import sleeper_of
from swapd.core.spec import ModelSpec

ASSUMED_BYTES_PER_S = 1_000_000_000
"""How fast an unknown model loads: a plain NVMe disk."""

MIN_RELOAD_S = 0.5

LOAD_WEIGHT = 0.3
"""Of the newest load in the running mean of how long a model's loads take."""

TURNS_PER_SWAP = 4.0
"""A turn lasts so many times as long as the swap that ends it, so that no more than a fifth of the time is lost."""

DRAIN_SERVICES = 2.0
"""How long the requests that a full worker runs take to end, in mean requests: the last of several is a long one."""

ASSUMED_SERVICE_S = 1.0
"""Of a request at a model that has served none, where a guess is better than nothing."""

RARELY_PER_S = 1e-6
"""Nothing costs less to send away than what nobody asks for, and that still by how long it would take to reload."""


def reload_s(model: Model | None, spec: ModelSpec) -> float:
    """Seconds a load of this model takes: as its loads did lately or before a restart, else a guess from its size."""
    learned_s = spec.learned_load_s if model is None or model.usual_load_s is None else model.usual_load_s
    if learned_s is not None:
        return max(MIN_RELOAD_S, learned_s)
    size_bytes = spec.costs.total_bytes if spec.costs is not None else 0
    return max(MIN_RELOAD_S, size_bytes / ASSUMED_BYTES_PER_S)


def return_s(model: Model | None, spec: ModelSpec) -> float:
    """Seconds until a worker that leaves could be back: of one that would sleep, those that it takes to wake."""
    if model is None or spec.asleep_bytes is None or model.usual_wake_s is None or model.sleep_failures:
        return reload_s(model, spec)
    return max(MIN_RELOAD_S, model.usual_wake_s)


def start_s(ledger: Ledger, model: Model) -> float:
    """Seconds until the model has a worker once there is room for it: it wakes if it sleeps, else it is loaded."""
    sleeps = sleeper_of(ledger, model.id) is not None
    return return_s(model, model.spec) if sleeps else reload_s(model, model.spec)


def note_wake(model: Model, wake_s: float) -> None:
    """As `note_load`, of a worker that was woken."""
    known_s = model.usual_wake_s
    model.usual_wake_s = wake_s if known_s is None else known_s + LOAD_WEIGHT * (wake_s - known_s)


def note_load(model: Model, load_s: float) -> None:
    """A load took so long. Single ones vary with what else the disk does."""
    known_s = model.spec.learned_load_s if model.usual_load_s is None else model.usual_load_s
    model.load_s = load_s
    model.usual_load_s = load_s if known_s is None else known_s + LOAD_WEIGHT * (load_s - known_s)


def wanted_since_s(model: Model) -> float | None:
    """Since when this model has wanted a worker, or None if nobody asks for it."""
    since = [next(iter(model.waiting.values())).arrived_at_s] if model.waiting else []
    since += [ask.asked_at_s for ask in model.load_asks[:1]]
    if model.spec.pin and not model.pin_lifted:
        since.append(model.known_since_s)
    return min(since, default=None)


def bound_s(waiter: Model) -> float:
    """By when the waiter's turn comes whoever is busy: `max_wait_s` after it began to wait for this turn.

    A model that was sent away with requests left over has had a turn, and waits for its next one from then.
    Otherwise two overloaded models, all of whose requests are older than the bound, would swap after each
    handful of grants.
    """
    since_s = wanted_since_s(waiter)
    assert since_s is not None
    if waiter.last_eviction is not None:
        since_s = max(since_s, waiter.last_eviction.at_s)
    return since_s + waiter.spec.max_wait_s


def waiting_weight_s(model: Model, now_s: float) -> float:
    """Seconds waited so far, summed over everything that waits for this model."""
    waited_s = len(model.waiting) * now_s - model.shares.waiting_since_us / 1e6
    return waited_s + sum(now_s - ask.asked_at_s for ask in model.load_asks)


def turn_ends_s(worker: Worker) -> float:
    """When the turn that the settings promise ends."""
    assert worker.ready_at_s is not None
    return worker.ready_at_s + worker.spec.turn_s


def usual_service_s(model: Model | None) -> float:
    """Seconds that a request runs at this model, as it did lately, else a guess."""
    return ASSUMED_SERVICE_S if model is None or model.service_s is None else model.service_s


def _drain_s(holder: Model | None) -> float:
    """How long a busy worker is likely to take until it can leave, with ever more of its slots empty."""
    return DRAIN_SERVICES * usual_service_s(holder)


def expected_until_s(holder: Model | None, waiter: Model, spec: ModelSpec, now_s: float) -> float | None:
    """Until when requests by other clients than the waiter's are expected, or None if none are.

    A client that was here is expected to ask again as soon as it used to, or has been away for by now; together they
    are expected back if one of them is likely to be here sooner than a reload takes. If nobody has come for as long as
    that, the swap pays. A client that has done nothing here since it began to wait elsewhere is not coming back. One
    that has does several things at once, or is several behind one address.
    """
    soon_s = return_s(holder, spec)
    if holder is None or next(reversed(holder.last_seen_s.values()), -soon_s) + soon_s <= now_s:
        return None
    last_s, expected = None, 0.0
    left = len(holder.last_seen_s)
    # The one seen last comes last.
    for client, at_s in reversed(holder.last_seen_s.items()):
        if expected + left * soon_s / max(now_s - at_s, 1e-9) < 1:
            return None  # Whoever is left has been away for at least as long as this one.
        left -= 1
        waits = waiter.shares.active.get(client)
        since_s = None if waits is None else waits.waits_since_s()
        if since_s is not None and at_s <= since_s:
            continue
        last_s = at_s if last_s is None else last_s
        away_s = max(holder.demand.returns_s(client), now_s - at_s)
        expected += soon_s / away_s if away_s > 0 else 1.0
        if expected >= 1:
            return last_s + soon_s
    return None


def leave_at_s(ledger: Ledger, worker: Worker, waiter: Model, now_s: float) -> float | None:
    """The earliest time at which this worker may be asked to leave for the waiter; None is never.

    A time that is not after `now_s` means now. With nothing else happening, the answer holds until then.
    """
    if worker.model_id == waiter.id or worker.spec.elsewhere or ledger.is_pinned(worker):
        return None
    if ledger.is_surplus(worker):
        return now_s
    if worker.state is not WorkerState.READY:
        return None
    if worker.running:
        return busy_leave_at_s(hold(ledger, worker), want(ledger, waiter, now_s), now_s)
    expected_s = expected_until_s(ledger.models.get(worker.model_id), waiter, worker.spec, now_s)
    held_until_s = now_s if expected_s is None else min(turn_ends_s(worker), expected_s)
    return min(bound_s(waiter), held_until_s)


@dataclass(frozen=True, slots=True)
class Hold:
    """What keeps a busy worker in its place, whoever waits."""

    ready_at_s: float
    turn_s: float
    drain_s: float
    reload_s: float
    demand: int
    """Requests that would lose by its leaving."""


@dataclass(frozen=True, slots=True)
class Want:
    """What a waiting model brings up against it."""

    bound_s: float
    start_s: float
    weight_s: float
    """Summed over what waits,"""
    count: int
    """so many."""


def hold(ledger: Ledger, worker: Worker) -> Hold:
    """Of a worker that is ready and runs something."""
    assert worker.ready_at_s is not None
    holder = ledger.models.get(worker.model_id)
    demand = len(worker.running) + (len(holder.waiting) if holder is not None else 0)
    return Hold(worker.ready_at_s, worker.spec.turn_s, _drain_s(holder), return_s(holder, worker.spec), demand)


def want(ledger: Ledger, waiter: Model, now_s: float) -> Want:
    """Of a model that waits."""
    count = len(waiter.waiting) + len(waiter.load_asks)
    return Want(bound_s(waiter), start_s(ledger, waiter), waiting_weight_s(waiter, now_s), count)


def busy_leave_at_s(held: Hold, wanted: Want, now_s: float) -> float:
    """The earliest time at which a busy worker may be asked to leave.

    Its turn is longer where the swap is dear. The summed waiting has to exceed the seconds that the holder's clients
    would lose: those of the drain, of the waiter's load and, when their turn comes again, of a load of their own.
    """
    swap_s = held.drain_s + wanted.start_s
    ends_s = held.ready_at_s + max(held.turn_s, TURNS_PER_SWAP * swap_s)
    missing_s = held.demand * (swap_s + held.reload_s) - wanted.weight_s
    if missing_s > 0:
        ends_s = max(ends_s, now_s + missing_s / wanted.count if wanted.count else inf)
    return min(wanted.bound_s, ends_s)


def leaving_cost_s(ledger: Ledger, worker: Worker, now_s: float) -> float:
    """What sending a worker away is expected to cost: seconds of reloads per second, by how often it is asked for.

    A model that keeps another worker need not reload one for the next request.
    """
    holder = ledger.models.get(worker.model_id)
    per_s = 0.0 if holder is None or ledger.is_surplus(worker) else holder.demand.per_s(now_s)
    weight = 1 + len(worker.running) + max(0, worker.spec.priority)
    return return_s(holder, worker.spec) * weight * max(RARELY_PER_S, per_s)


def candidate(ledger: Ledger, worker: Worker, now_s: float, *, late: bool) -> Candidate:
    """A worker as one that may leave; `late` ones only where the others do not suffice."""
    cost_s = leaving_cost_s(ledger, worker, now_s)
    return Candidate(worker.id, worker.placement.device_bytes, late, cost_s, worker.pages, ledger.mappers(worker.pages))
