"""Room for models that want a worker: placement first, then a claim on memory that others leave.

Models are looked at in one order: those without any worker before those that want one more, of these first those
that hold a claim, then by aged priority, then by who has wanted it for longest. A claim is memory that is on its way
back and that later models may not take, so a large model is not overtaken for ever by small ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf

from swapd.core.departures import leave
from swapd.core.effects import Effect, Launch, ReadAhead, StopReadAhead, Tell
from swapd.core.eviction import Candidate, choose_victims, freed
from swapd.core.fairness import aged_priority
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.pages import needed_bytes, pages_of
from swapd.core.placement import describe, fits, good_enough, place, shortage, targets, usable_gpus
from swapd.core.reach import Reach
from swapd.core.records import LEAVING_STATES, LOADING_STATES, Departure, Eviction, Model, Worker
from swapd.core.replicas import may_leave, wants_replica
from swapd.core.sleepers import credit_bytes, end_for, is_falling, reclaimable_bytes, wake
from swapd.core.spares import take_spare
from swapd.core.spec import RAM, Placement
from swapd.core.turns import bound_s, candidate, leave_at_s, turn_ends_s, wanted_since_s


def needs_worker(ledger: Ledger, model: Model, now_s: float) -> bool:
    """Whether this model wants a worker and none is up or coming."""
    if ledger.closing or wanted_since_s(model) is None or model.spec.costs is None or model.verdict:
        return False
    if model.retry_at_s is not None and now_s < model.retry_at_s:
        return False
    return all(worker.state in LEAVING_STATES for worker in ledger.workers_of(model.id))


def wants_worker(ledger: Ledger, model: Model, now_s: float) -> bool:
    """Whether this model wants a worker: its first one, or one more beside those that are full."""
    if not (model.waiting or model.load_asks or model.spec.pin):
        return False
    return needs_worker(ledger, model, now_s) or wants_replica(ledger, model, now_s)


def looks_at(ledger: Ledger, model: Model) -> list[str]:
    """The devices that this model may be placed on. A GPU that it has no use for is not woken for it."""
    if model.spec.elsewhere:
        return []
    gpus = (
        [] if model.spec.n_gpu_layers == 0 else usable_gpus(model.spec, ledger.room(dict.fromkeys(ledger.devices, 0)))
    )
    return [*gpus, RAM]


def wanting(ledger: Ledger, now_s: float) -> list[Model]:
    """The models that want a worker."""
    return [model for model in ledger.models.values() if wants_worker(ledger, model, now_s)]


def watched_devices(ledger: Ledger, needy: Iterable[Model]) -> set[str]:
    """The devices that one of these models may be placed on."""
    watched: set[str] = set()
    for model in needy:
        watched.update(looks_at(ledger, model))
        if watched >= ledger.devices.keys():
            break
    return watched


class LeaveTimes:
    """When each worker may be asked to leave for each model: worked out once for one plan, for those that ask."""

    def __init__(self, ledger: Ledger, now_s: float) -> None:
        self._ledger = ledger
        self._now_s = now_s
        self._known: dict[Model, list[tuple[Worker, float]]] = {}
        self._reach: Reach | None = None
        #: Models that nobody's leaving can help now, and when that may change by itself.
        self.passed_over: dict[Model, float] = {}

    @property
    def reach(self) -> Reach:
        if self._reach is None:
            self._reach = Reach(self._ledger, self._now_s)
        return self._reach

    def of(self, waiter: Model) -> list[tuple[Worker, float]]:
        """Those that may be at some time. One that is not after now means now."""
        if waiter not in self._known:
            times = [(one, leave_at_s(self._ledger, one, waiter, self._now_s)) for one in self._ledger.workers.values()]
            self._known[waiter] = [(worker, at_s) for worker, at_s in times if at_s is not None]
        return self._known[waiter]

    def forget(self) -> None:
        """Somebody was launched or asked to leave."""
        self._known.clear()
        self._reach = None

    def next_s(self, waiter: Model) -> float | None:
        """When to look again whether somebody may be asked to leave for this model, who may not now."""
        if waiter in self.passed_over:
            at_s = self.passed_over[waiter]
            return at_s if at_s < inf else None
        return min((at_s for _, at_s in self.of(waiter) if at_s > self._now_s), default=None)


def in_order(ledger: Ledger, now_s: float) -> list[Model]:
    """The models that want a worker, first the one that is to be helped first."""

    def rank(model: Model) -> tuple[bool, bool, int, float, str]:
        since_s = wanted_since_s(model)
        assert since_s is not None
        has_one = bool(ledger.staying(model.id))
        return (has_one, model.claim is None, -aged_priority(model.spec.priority, now_s - since_s), since_s, model.id)

    return sorted(wanting(ledger, now_s), key=rank)


def make_room(ledger: Ledger, times: LeaveTimes, now_s: float, effects: list[Effect]) -> None:
    """Launch what fits now; for the rest, claim what is leaving, and ask others to leave when it is time."""
    claimed = dict.fromkeys(ledger.devices, 0)
    needy = in_order(ledger, now_s)
    helped = set(needy)
    for model in ledger.models.values():
        if model.claim is not None and model not in helped:
            model.claim = None
    stale = {name for name, device in ledger.devices.items() if not device.is_fresh(now_s)}
    there, coming = _there_and_coming(ledger)
    for model in needy:
        own = {name: credit_bytes(ledger, model, name, soon=False) for name in there}
        sure = {
            name: size_bytes - claimed[name] + credit_bytes(ledger, model, name, soon=True)
            for name, size_bytes in coming.items()
        }
        soon = {name: size_bytes + reclaimable_bytes(ledger, name, model) for name, size_bytes in sure.items()}
        free = {name: min(there[name] + own[name], sure[name]) for name in there}
        if not stale or stale.isdisjoint(looks_at(ledger, model)):
            best = _best(ledger, model, times.reach)
            opens_s = times.reach.opens_s(model, best, soon)
            if best is None or opens_s > now_s:
                model.claim = None
                times.passed_over[model] = opens_s
                continue
            done = len(effects)
            model.claim = _help(ledger, model, best, free, soon, times, now_s, effects)
            if model.claim is not None:
                _end_sleepers(ledger, model, model.claim, claimed, effects)
            if len(effects) > done:
                there, coming = _there_and_coming(ledger)
                times.forget()
        if model.claim is not None:
            for name, size_bytes in needed_bytes(model.spec, model.claim, ledger.mapped()).items():
                claimed[name] += size_bytes - credit_bytes(ledger, model, name, soon=True)


def _end_sleepers(
    ledger: Ledger, model: Model, claim: Placement, claimed: Mapping[str, int], effects: list[Effect]
) -> None:
    """Stop sleepers that keep what a claim counts on, beside what is on its way back and not claimed by others."""
    _, coming = _there_and_coming(ledger)
    sure = {name: coming[name] - claimed[name] + credit_bytes(ledger, model, name, soon=True) for name in coming}
    missing = shortage(needed_bytes(model.spec, claim, ledger.mapped()), sure)
    if missing:
        end_for(ledger, missing, model, f"{model.id!r} is short of {describe(missing)}", effects)


def _there_and_coming(ledger: Ledger) -> tuple[dict[str, int], dict[str, int]]:
    """What is free on each device, and with that what is on its way back."""
    there = {name: ledger.free_bytes(name) for name in ledger.devices}
    return there, {name: size_bytes + ledger.leaving_bytes(name) for name, size_bytes in there.items()}


def read_ahead(ledger: Ledger, effects: list[Effect]) -> None:
    """Have the files of models read that hold a claim: what they wait for is others' end, not the disk."""
    claims = {model.id: model.claim for model in ledger.models.values() if model.claim is not None}
    effects += [StopReadAhead(model_id) for model_id in sorted(ledger.reading - claims.keys())]
    effects += [ReadAhead(model_id, claim) for model_id, claim in claims.items() if model_id not in ledger.reading]
    ledger.reading = set(claims)


def _help(
    ledger: Ledger,
    model: Model,
    best: Placement,
    free: Mapping[str, int],
    soon: Mapping[str, int],
    times: LeaveTimes,
    now_s: float,
    effects: list[Effect],
) -> Placement | None:
    """Launch the model if it fits; else its claim on room that is coming, if there is any."""
    placement = None
    if not is_falling(ledger, model):
        placement = _apart(ledger, model, best, free) or _placed(ledger, model, best, free)
    if placement is None:
        return _claim(ledger, model, best, soon, times, now_s, effects)
    _launch(ledger, model, placement, now_s, effects)
    return None


def _best(ledger: Ledger, model: Model, reach: Reach) -> Placement | None:
    """The best that this model could have if every other left."""
    known_by = (model.spec, reach.limits)
    if not model.ceilings and model.best is not None and model.best[0] == known_by:
        return model.best[1]
    room = ledger.open_room(model)
    best = place(model.spec, model.within(room))
    if best is None and model.ceilings:
        # A budget was cut since its last load ran out of memory. There is no lower placement left to try.
        model.ceilings.clear()
        best = place(model.spec, room)
    model.best = None if model.ceilings else (known_by, best)
    return best


def _placed(
    ledger: Ledger, model: Model, best: Placement, free: Mapping[str, int], gpus: Sequence[str] | None = None
) -> Placement | None:
    """Where the model goes in this room, perhaps on these GPUs only, unless it had better wait for more."""
    costs, files = model.spec.costs, model.spec.mapped_files
    assert costs is not None
    # First without any of the pages that other workers of the same files have mapped, then with those of each layout.
    mapped = sorted((one for one in ledger.mapped() if one.files == files), key=lambda one: -one.size_bytes)
    for pages in (None, *mapped):
        more = free if pages is None else {**free, RAM: free[RAM] + pages.size_bytes}
        room = model.within(ledger.room(more))
        found = place(model.spec, room if gpus is None else room.only(gpus))
        if found is None or (pages is not None and pages_of(model.spec, found) != pages):
            continue
        if good_enough(found, best, costs):
            return found
    return None


def _apart(ledger: Ledger, model: Model, best: Placement, free: Mapping[str, int]) -> Placement | None:
    """Where one more worker is on GPUs that none of the model's others is on; None if there is no such place."""
    taken = {gpu for worker in ledger.staying(model.id) for gpu in worker.placement.devices}
    if not taken:
        return None
    others = [gpu for gpu in looks_at(ledger, model) if gpu != RAM and gpu not in taken]
    by_hand = model.spec.tensor_split or model.spec.main_gpu is not None
    if not others or by_hand:
        return None
    found = _placed(ledger, model, best, free, others)
    return found if found is not None and found.devices else None


def _launch(ledger: Ledger, model: Model, placement: Placement, now_s: float, effects: list[Effect]) -> None:
    worker = ledger.add_worker(model.spec, placement, portable=model.portable, now_s=now_s)
    proven = model.load_s is not None and not model.failures
    sleeper = wake(ledger, model, worker)
    if sleeper is not None:
        effects.append(Tell("waking", model.id, f"waking {model.id!r} {placement.why}"))
        effects.append(Launch(worker.id, model.id, placement, model.portable, proven, sleeper=sleeper))
        return
    effects.append(Tell("loading", model.id, f"loading {model.id!r} {placement.why}"))
    from_spare = take_spare(ledger, model, now_s)
    effects.append(Launch(worker.id, model.id, placement, model.portable, proven, from_spare))


def _claim(
    ledger: Ledger,
    model: Model,
    best: Placement,
    soon: Mapping[str, int],
    times: LeaveTimes,
    now_s: float,
    effects: list[Effect],
) -> Placement | None:
    """The placement whose room is coming, after asking the cheapest sufficient victims to leave."""
    mapped = ledger.mapped()
    if model.claim is not None and fits(needed_bytes(model.spec, model.claim, mapped), soon):
        return model.claim
    coming = _placed(ledger, model, best, soon)
    if coming is not None:
        return coming
    candidates = _candidates(ledger, model, times, now_s)
    if _is_at_bound(model, now_s) and not ledger.staying(model.id):
        candidates += _loading(ledger, now_s)
    found = _cheapest(ledger, model, best, soon, candidates)
    if found is None:
        return None
    way, victims = found
    missing = describe(shortage(needed_bytes(model.spec, way, mapped), soon))
    workers = [ledger.workers[victim.worker_id] for victim in victims]
    # Whether one of them may sleep goes by what is needed.
    model.claim = way
    for worker in [one for one in workers if one.state is WorkerState.READY or ledger.is_surplus(one)]:
        _evict(ledger, worker, model, missing, now_s, effects)
    return way


def _cheapest(
    ledger: Ledger, model: Model, best: Placement, soon: Mapping[str, int], candidates: Sequence[Candidate]
) -> tuple[Placement, list[Candidate]] | None:
    """The placement that evicts least, over every set of GPUs to make room on, and who has to leave for it."""
    if not candidates:
        return None
    open_room = ledger.open_room(model)
    found: list[tuple[bool, float, Placement, list[Candidate]]] = []
    for gpus in targets(model.spec, open_room):
        goal = _placed(ledger, model, best, open_room.free_bytes, gpus)
        if goal is None:
            continue
        kept = pages_of(model.spec, goal)
        victims = choose_victims(shortage(needed_bytes(model.spec, goal, ledger.mapped()), soon), candidates, kept)
        if victims is None:
            continue
        way = goal
        # Another split of the same GPUs may do with fewer.
        for victim in sorted(victims, key=lambda one: (not one.busy, -one.cost_s, one.worker_id)):
            fewer = [one for one in victims if one is not victim]
            spared = _placed(ledger, model, best, freed(soon, fewer, kept), gpus)
            if spared is not None:
                way, victims = spared, fewer
        found.append((any(one.busy for one in victims), sum(one.cost_s for one in victims), way, victims))
    if not found:
        return None
    _, _, way, victims = min(found, key=lambda one: one[:2])
    return way, victims


def _is_at_bound(waiter: Model, now_s: float) -> bool:
    return now_s >= bound_s(waiter)


def _loading(ledger: Ledger, now_s: float) -> list[Candidate]:
    """Workers that cannot leave before they have loaded and served once, but whose room may be claimed.

    Without them, small models of which always one is loading would keep a large one out for ever: there would
    never be a moment at which all who have to leave may be asked.
    """
    return [
        candidate(ledger, worker, now_s, late=True)
        for worker in ledger.workers.values()
        if worker.state in LOADING_STATES and not ledger.is_pinned(worker) and not ledger.is_surplus(worker)
    ]


def _candidates(ledger: Ledger, waiter: Model, times: LeaveTimes, now_s: float) -> list[Candidate]:
    found = []
    is_replica = bool(ledger.staying(waiter.id))
    for worker, at_s in times.of(waiter):
        if at_s <= now_s and (not is_replica or may_leave(ledger, worker, waiter, now_s)):
            found.append(candidate(ledger, worker, now_s, late=bool(worker.running)))
    return found


def _evict(ledger: Ledger, worker: Worker, waiter: Model, missing: str, now_s: float, effects: list[Effect]) -> None:
    since_s = wanted_since_s(waiter)
    assert since_s is not None
    waited_s = now_s - since_s
    if worker.ready_at_s is None:
        reason, state = "surplus", "another worker of it stays, and this one had not loaded yet"
    elif not worker.running:
        reason = "idle"
        state = f"it had been idle for {now_s - worker.idle_since_s:.1f} s"
    elif ledger.is_surplus(worker):
        reason = "surplus"
        state = f"another worker of it stays, and this one finishes the {len(worker.running)} requests it runs first"
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
    # What may be asked to leave serves or loads, and of a model that was removed nothing does.
    ledger.models[worker.model_id].last_eviction = Eviction(now_s, why)
    effects.append(Tell("evicting", worker.model_id, why))
    leave(ledger, worker, Departure(reason, for_model=waiter.id), now_s, effects)


def next_room_s(ledger: Ledger, needy: Iterable[Model], times: LeaveTimes) -> float | None:
    """When a worker that may not be asked to leave now may be: the planner must look again then."""
    unhelped = (model for model in needy if model.claim is None and not ledger.staying(model.id))
    return min((at_s for model in unhelped if (at_s := times.next_s(model)) is not None), default=None)


def why_waiting(ledger: Ledger, model: Model, now_s: float) -> str | None:
    """What keeps a model that wants a worker from having one: 'waits for …', or None if nothing does."""
    if not needs_worker(ledger, model, now_s):
        return None
    if model.claim is not None:
        return f"waits for its room to be cleared: {describe(model.claim.device_bytes)}"
    best = place(model.spec, ledger.open_room(model))
    if best is None:
        taken = {name: one.others_bytes for name, one in ledger.devices.items() if one.others_bytes}
        return f"waits for memory that other programs hold: {describe(taken)}"
    lost = [name for name in looks_at(ledger, model) if name in ledger.devices and ledger.devices[name].lost]
    if lost:
        return f"waits for {' and '.join(lost)}, which this machine does not find any more"
    paused = [name for name in looks_at(ledger, model) if name in ledger.devices and ledger.devices[name].paused]
    if paused:
        return f"waits for {' and '.join(paused)}, handed over to others until it is resumed"
    there = {
        worker.model_id
        for worker in ledger.workers.values()
        if any(worker.placement.device_bytes.get(name) for name in best.device_bytes)
    }
    return f"waits for its turn after {', '.join(map(repr, sorted(there)))}" if there else "waits for its turn"
