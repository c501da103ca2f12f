"""Room for models that want a worker: placement first, then a claim on memory that others leave.

Models are looked at in one order: those that hold a claim, then by aged priority, then by who has wanted it
for longest. A claim is memory that is on its way back and that later models may not take, so a large model is
not overtaken for ever by small ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from swapd.core.departures import leave
from swapd.core.effects import Effect, Launch, Tell
from swapd.core.eviction import Candidate, choose_victims
from swapd.core.fairness import aged_priority
from swapd.core.ledger import LEAVING_STATES, LOADING_STATES, Departure, Eviction, Ledger, Model, Worker
from swapd.core.lifecycle import WorkerState
from swapd.core.placement import MIB, describe, fits, options, place, shortage
from swapd.core.spec import Placement
from swapd.core.turns import bound_s, leave_at_s, leaving_cost_s, turn_ends_s, wanted_since_s


def needs_worker(ledger: Ledger, model: Model, now_s: float) -> bool:
    """Whether this model wants a worker and none is up or coming."""
    if ledger.closing or wanted_since_s(model) is None or model.spec.costs is None or model.verdict:
        return False
    if model.retry_at_s is not None and now_s < model.retry_at_s:
        return False
    return all(worker.state in LEAVING_STATES for worker in ledger.workers_of(model.id))


def in_order(ledger: Ledger, now_s: float) -> list[Model]:
    """The models that need a worker, first the one that is to be helped first."""

    def rank(model: Model) -> tuple[bool, int, float, str]:
        since_s = wanted_since_s(model)
        assert since_s is not None
        return (model.claim is None, -aged_priority(model.spec.priority, now_s - since_s), since_s, model.id)

    return sorted((model for model in ledger.models.values() if needs_worker(ledger, model, now_s)), key=rank)


def make_room(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    """Launch what fits now; for the rest, claim what is leaving, and ask others to leave when it is time."""
    claimed = dict.fromkeys(ledger.devices, 0)
    needy = in_order(ledger, now_s)
    for model in ledger.models.values():
        if model not in needy:
            model.claim = None
    for model in needy:
        ways = options(model.spec, list(ledger.devices))
        soon = {name: ledger.free_bytes(name) + ledger.leaving_bytes(name) - claimed[name] for name in ledger.devices}
        free = {name: min(ledger.free_bytes(name), soon[name]) for name in ledger.devices}
        placement = place(ways, free)
        if placement is not None:
            model.claim = None
            _launch(ledger, model, placement, now_s, effects)
            continue
        model.claim = _claim(ledger, model, ways, soon, now_s, effects)
        if model.claim is not None:
            for name, size_bytes in model.claim.device_bytes.items():
                claimed[name] += size_bytes


def _launch(ledger: Ledger, model: Model, placement: Placement, now_s: float, effects: list[Effect]) -> None:
    worker = ledger.add_worker(model.spec, placement, portable=model.portable, now_s=now_s)
    effects.append(Tell("loading", model.id, f"loading {model.id!r} {placement.why}"))
    effects.append(Launch(worker.id, model.id, placement, model.portable))


def _claim(
    ledger: Ledger,
    model: Model,
    ways: Sequence[Placement],
    soon: dict[str, int],
    now_s: float,
    effects: list[Effect],
) -> Placement | None:
    """The placement whose room is coming, after asking the cheapest sufficient victims to leave."""
    for way in sorted(ways, key=lambda way: way != model.claim):
        if fits(way.device_bytes, soon):
            return way
    candidates = _candidates(ledger, model, now_s)
    if _is_at_bound(model, now_s):
        candidates += _loading(ledger, now_s)
    cost_s = {candidate.worker_id: candidate.cost_s for candidate in candidates}
    found: list[tuple[bool, float, Placement, list[int]]] = []
    for way in ways:
        victims = choose_victims(shortage(way.device_bytes, soon), candidates)
        if victims is not None:
            busy = any(candidate.busy for candidate in candidates if candidate.worker_id in victims)
            found.append((busy, sum(cost_s[worker_id] for worker_id in victims), way, victims))
    if not found:
        return None
    _, _, way, victims = min(found, key=lambda one: one[:2])
    missing = describe(shortage(way.device_bytes, soon))
    for worker_id in victims:
        worker = ledger.workers[worker_id]
        if worker.state is WorkerState.READY:
            _evict(ledger, worker, model, missing, now_s, effects)
    return way


def _is_at_bound(waiter: Model, now_s: float) -> bool:
    return now_s >= bound_s(waiter)


def _loading(ledger: Ledger, now_s: float) -> list[Candidate]:
    """Workers that cannot leave before they have loaded and served once, but whose room may be claimed.

    Without them, small models of which always one is loading would keep a large one out for ever: there would
    never be a moment at which all who have to leave may be asked.
    """
    return [
        Candidate(worker.id, worker.placement.device_bytes, True, leaving_cost_s(ledger, worker, now_s))
        for worker in ledger.workers.values()
        if worker.state in LOADING_STATES and not worker.spec.pin
    ]


def _candidates(ledger: Ledger, waiter: Model, now_s: float) -> list[Candidate]:
    found = []
    for worker in ledger.workers.values():
        at_s = leave_at_s(ledger, worker, waiter, now_s)
        if at_s is not None and at_s <= now_s:
            cost_s = leaving_cost_s(ledger, worker, now_s)
            found.append(Candidate(worker.id, worker.placement.device_bytes, bool(worker.running), cost_s))
    return found


def _evict(ledger: Ledger, worker: Worker, waiter: Model, missing: str, now_s: float, effects: list[Effect]) -> None:
    since_s = wanted_since_s(waiter)
    assert since_s is not None
    waited_s = now_s - since_s
    if not worker.running:
        reason = "idle"
        state = f"it had been idle for {now_s - worker.idle_since_s:.1f} s"
    elif now_s >= bound_s(waiter):
        reason = "max_wait"
        state = f"it finishes the {len(worker.running)} requests it runs first"
    else:
        reason = "turn_over"
        over_s = now_s - turn_ends_s(worker)
        state = f"its turn was over {over_s:.1f} s ago; it finishes the {len(worker.running)} requests it runs first"
    why = (
        f"{worker.model_id!r} leaves for {waiter.id!r}, which has waited {waited_s:.1f} s "
        f"and is short of {missing}; {state}"
    )
    holder = ledger.models.get(worker.model_id)
    if holder is not None:
        holder.last_eviction = Eviction(now_s, why)
    effects.append(Tell("evicting", worker.model_id, why))
    leave(ledger, worker, Departure(reason, for_model=waiter.id), now_s, effects)


def shrink_to_budgets(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    """After a budget was cut: send away the cheapest workers that cover what is over, pinned ones last."""
    for name in ledger.devices:
        over = -ledger.free_bytes(name) - ledger.leaving_bytes(name)
        if over <= 0:
            continue
        candidates = []
        for worker in ledger.workers.values():
            if worker.state is WorkerState.READY or worker.state in LOADING_STATES:
                cost_s = leaving_cost_s(ledger, worker, now_s) + (1e9 if worker.spec.pin else 0.0)
                # Even a busy worker goes before a pinned one that is idle.
                late = bool(worker.running) or worker.spec.pin
                candidates.append(Candidate(worker.id, worker.placement.device_bytes, late, cost_s))
        for worker_id in choose_victims({name: over}, candidates) or []:
            worker = ledger.workers[worker_id]
            why = f"{worker.model_id!r} leaves: {name} is {-(-over // MIB):,} MiB over its new budget"
            effects.append(Tell("unloading", worker.model_id, why))
            leave(ledger, worker, Departure("budget"), now_s, effects)


def next_room_s(ledger: Ledger, now_s: float) -> float | None:
    """When a worker that may not be asked to leave now may be: the planner must look again then."""
    times = [
        at_s
        for model in ledger.models.values()
        if model.claim is None and needs_worker(ledger, model, now_s)
        for worker in ledger.workers.values()
        if (at_s := leave_at_s(ledger, worker, model, now_s)) is not None and at_s > now_s
    ]
    return min(times, default=None)
