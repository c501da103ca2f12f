"""What to do next, given the ledger as it is: runs after every event, in one fixed order.

Overdue things first, then refusals, grants, overflow, idle unloads, room for models that wait, spares, and the timer.
Each part records in the ledger before it adds the effect. Never called but by `scheduler.step`.

An event that can make a difference to its own model alone (`swapd.core.scope` has the rule) has that model's part of
the plan done and no other. That is what the whole plan would do, or the whole plan follows in the same step; what only
time has made possible is looked for soon after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from swapd.core import fairness
from swapd.core.admission import over_queue_bounds
from swapd.core.departures import fail_load, leave, note_crash, refuse, refuse_all, reprieve, stop
from swapd.core.devices import answer_pauses, ask_samples, device_deadlines, settle_overdue
from swapd.core.effects import Answer, Effect, Grant, Refusal, RefusalKind, SetTimer, Tell
from swapd.core.idle import idle_limit, idle_unload_at_s
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.placement import misfit
from swapd.core.pressure import shrink_to_budgets, yield_to_others
from swapd.core.records import LEAVING_STATES, LOADING_STATES, Departure, Model, Worker
from swapd.core.room import (
    LeaveTimes,
    make_room,
    needs_worker,
    next_room_s,
    read_ahead,
    wanting,
    watched_devices,
    why_waiting,
)
from swapd.core.scope import LOOK_AGAIN_S, Scope
from swapd.core.sleepers import end_unwanted, sleeper_deadlines
from swapd.core.spares import keep_spares, spare_deadlines


def plan(ledger: Ledger, scope: Scope, now_s: float, effects: list[Effect]) -> None:
    """Bring the ledger to where nothing more can be done now, and set the timer for when something can.

    `scope` has the models that may have something to be done for since the last plan.
    """
    if scope is None or not _plan_within(ledger, scope, now_s, effects):
        _plan_all(ledger, now_s, effects)


def _plan_within(ledger: Ledger, scope: Iterable[Model], now_s: float, effects: list[Effect]) -> bool:
    """Look at these models alone; False if what became of them may concern others."""
    deadlines = [] if ledger.timer_at_s is None else [ledger.timer_at_s]
    if ledger.is_short:
        deadlines.append(now_s + LOOK_AGAIN_S)
    for model in scope:
        _serve(ledger, model, now_s, effects)
        staying = ledger.staying(model.id)
        if any(worker.state is WorkerState.READY and not worker.running for worker in staying):
            return False
        stuck_s = [at_s for worker in staying if (at_s := stuck_at_s(worker)) is not None]
        if any(at_s <= now_s for at_s in stuck_s):
            return False
        deadlines += stuck_s
        if staying:
            continue
        if not model.waiting or ledger.sleepers:
            return False
        if model.claim is None:
            times = LeaveTimes(ledger, now_s).of(model)
            # A busy one whose time has come had it before: a request adds nothing yet to what has been waited.
            if any(at_s <= now_s and not worker.running for worker, at_s in times):
                return False
            deadlines += [at_s for _, at_s in times if at_s > now_s]
    _set_timer(ledger, deadlines, now_s, effects)
    return True


def _plan_all(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    settle_overdue(ledger, now_s, effects)
    _stop_stuck(ledger, now_s, effects)
    _reprieve_unneeded(ledger, now_s, effects)
    _finish_drains(ledger, now_s, effects)
    for model in ledger.models.values():
        if model.waiting or model.load_asks:
            _serve(ledger, model, now_s, effects)
    _unload_idle(ledger, now_s, effects)
    end_unwanted(ledger, now_s, effects)
    shrink_to_budgets(ledger, now_s, effects)
    yield_to_others(ledger, now_s, effects)
    answer_pauses(ledger, effects)
    times = LeaveTimes(ledger, now_s)
    make_room(ledger, times, now_s, effects)
    keep_spares(ledger, now_s, effects)
    read_ahead(ledger, effects)
    needy = wanting(ledger, now_s)
    draining = any(worker.state is WorkerState.DRAINING for worker in ledger.workers.values())
    ledger.is_short = bool(needy) or draining
    watched = watched_devices(ledger, needy)
    ask_samples(ledger, watched, now_s, effects)
    deadlines = [
        *device_deadlines(ledger, watched, now_s),
        *_deadlines(ledger, now_s),
        next_room_s(ledger, needy, times),
    ]
    _set_timer(ledger, [at_s for at_s in deadlines if at_s is not None], now_s, effects)


def _serve(ledger: Ledger, model: Model, now_s: float, effects: list[Effect]) -> None:
    """Bring a model's own queue to where nothing more can be done without room for it."""
    _refuse_hopeless(ledger, model, now_s, effects)
    _refuse_overdue(ledger, model, now_s, effects)
    _grant(ledger, model, now_s, effects)
    _refuse_overflow(ledger, model, now_s, effects)


def stuck_at_s(worker: Worker) -> float | None:
    """When a worker counts as stuck if it reports nothing until then; None while it has nothing to do."""
    if worker.state in LOADING_STATES:
        return worker.last_progress_s + worker.spec.load_timeout_s
    if worker.running and not worker.spec.elsewhere:
        return worker.last_progress_s + _silence_s(worker)[0]
    return None


def _silence_s(worker: Worker) -> tuple[float, str]:
    """How long a worker that runs requests may show nothing, and the key that says so.

    Reading a prompt is no progress that can be seen of a worker which does not report it.
    """
    spec = worker.spec
    first_s = spec.first_token_timeout_s
    reads = first_s is not None and not all(request.began for request in worker.running.values())
    if first_s is not None and reads and first_s > spec.stall_timeout_s:
        return first_s, "first_token_timeout"
    return spec.stall_timeout_s, "stall_timeout"


def _stop_stuck(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    for worker in list(ledger.workers.values()):
        at_s = stuck_at_s(worker)
        if at_s is None or now_s < at_s:
            continue
        if worker.state in LOADING_STATES:
            message = (
                f"model {worker.model_id!r} made no load progress for {worker.spec.load_timeout_s:g} s and was "
                "killed; a slow disk needs a longer load_timeout"
            )
            # A load ends when its model is removed.
            fail_load(ledger, ledger.models[worker.model_id], RefusalKind.LOAD_TIMEOUT, message, now_s, effects)
        else:
            silence_s, key = _silence_s(worker)
            message = (
                f"the worker of model {worker.model_id!r} finished nothing for {silence_s:g} s ({key}) and was killed"
            )
            note_crash(ledger, worker, message, now_s, effects)
        stop(ledger, worker, Departure("stuck"), now_s, effects, grace_s=0.0)


def _reprieve_unneeded(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    for worker in ledger.workers.values():
        if worker.state is not WorkerState.DRAINING:
            continue
        assert worker.departure is not None
        if not worker.departure.is_eviction:
            continue
        waiter, holder = ledger.models.get(worker.departure.for_model or ""), ledger.models.get(worker.model_id)
        if holder is not None and len(ledger.staying(holder.id)) >= holder.spec.replicas:
            continue
        if waiter is None or not needs_worker(ledger, waiter, now_s):
            message = f"{worker.model_id!r} stays: {worker.departure.for_model!r} no longer needs its room"
            effects.append(Tell("reprieved", worker.model_id, message))
            reprieve(worker)


def _finish_drains(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    for worker in list(ledger.workers.values()):
        if worker.state is not WorkerState.DRAINING:
            continue
        assert worker.departure is not None
        deadline_s = worker.departure.deadline_s
        overdue = deadline_s is not None and now_s >= deadline_s
        if overdue and worker.running:
            message = f"{worker.model_id!r} had {len(worker.running)} requests left when its drain time was over"
            effects.append(Tell("drain_cut", worker.model_id, message))
        if overdue or not worker.running:
            stop(ledger, worker, worker.departure, now_s, effects)


def hopeless(ledger: Ledger, model: Model, now_s: float) -> Refusal | None:
    """Why waiting for this model makes no sense, or None if it does."""
    verdict = model.spec.verdict or model.verdict
    if verdict is not None:
        return Refusal(RefusalKind.INVALID_MODEL, verdict)
    if all(worker.state in LEAVING_STATES for worker in ledger.workers_of(model.id)):
        reason = _misfit(ledger, model)
        if reason is not None:
            return Refusal(RefusalKind.DOES_NOT_FIT, reason)
        if model.retry_at_s is not None and now_s < model.retry_at_s:
            message = model.last_error or f"model {model.id!r} failed to load"
            return Refusal(RefusalKind.LOAD_FAILED, message, model.retry_at_s - now_s)
    return None


def _misfit(ledger: Ledger, model: Model) -> str | None:
    """Why it can never fit. Asked of every model that waits at every turn, with the same answer nearly always."""
    known_by = (model.spec, ledger.limits)
    if model.misfit is None or model.misfit[0] != known_by:
        model.misfit = (known_by, misfit(model.spec, ledger.budget_room(model)))
    return model.misfit[1]


def _refuse_hopeless(ledger: Ledger, model: Model, now_s: float, effects: list[Effect]) -> None:
    refusal = hopeless(ledger, model, now_s)
    if refusal is not None:
        refuse_all(ledger, model, refusal, effects)


def _refuse_overdue(ledger: Ledger, model: Model, now_s: float, effects: list[Effect]) -> None:
    """Requests, and people who asked for a load, wait no longer than `queue_timeout_s`."""
    limit_s = model.spec.queue_timeout_s
    while model.waiting and now_s >= (request := next(iter(model.waiting.values()))).arrived_at_s + limit_s:
        what = f"the request waited {limit_s:g} s (queue.timeout) for model {model.id!r}"
        refuse(ledger, request.id, _waited_too_long(ledger, model, what, now_s), effects)
    while model.load_asks and now_s >= model.load_asks[0].asked_at_s + limit_s:
        what = f"the load of model {model.id!r} that was asked for waited {limit_s:g} s (queue.timeout)"
        refusal = _waited_too_long(ledger, model, what, now_s)
        effects.append(Answer(model.load_asks.pop(0).id, refusal))


def _waited_too_long(ledger: Ledger, model: Model, what: str, now_s: float) -> Refusal:
    why = why_waiting(ledger, model, now_s)
    return Refusal(RefusalKind.QUEUE_TIMEOUT, what if why is None else f"{what}, which {why}")


def _grant(ledger: Ledger, model: Model, now_s: float, effects: list[Effect]) -> None:
    while model.waiting and (worker := _least_loaded(ledger, model)) is not None:
        request = fairness.next_request(model, now_s)
        if not worker.running:
            # The watch for progress starts with the work, not with the last time there was some.
            worker.last_progress_s = now_s
        ledger.grant(request, worker, now_s)
        model.last_used_s = now_s
        effects.append(Grant(request.id, worker.id, now_s - request.arrived_at_s))


def _least_loaded(ledger: Ledger, model: Model) -> Worker | None:
    """The worker with a free slot that runs least. The oldest of equals, so that those not needed come to rest."""
    ready = (worker for worker in ledger.workers_of(model.id) if worker.state is WorkerState.READY)
    free = (worker for worker in ready if len(worker.running) < worker.spec.slots)
    return min(free, key=lambda worker: (len(worker.running), worker.id), default=None)


def _refuse_overflow(ledger: Ledger, model: Model, now_s: float, effects: list[Effect]) -> None:
    while model.waiting:
        refusal = over_queue_bounds(ledger, model, now_s)
        if refusal is None:
            return
        refuse(ledger, next(reversed(model.waiting)), refusal, effects)


def _unload_idle(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    for worker in list(ledger.workers.values()):
        at_s = idle_unload_at_s(ledger, worker)
        if at_s is not None and now_s >= at_s:
            why = f"{worker.model_id!r} leaves: idle for {idle_limit(ledger, worker)}"
            effects.append(Tell("unloading", worker.model_id, why))
            leave(ledger, worker, Departure("idle"), now_s, effects)


def _deadlines(ledger: Ledger, now_s: float) -> Iterator[float | None]:
    yield from spare_deadlines(ledger, now_s)
    yield from sleeper_deadlines(ledger)
    for worker in ledger.workers.values():
        yield stuck_at_s(worker)
        yield idle_unload_at_s(ledger, worker)
        if worker.state is WorkerState.DRAINING and worker.departure is not None:
            yield worker.departure.deadline_s
    for model in ledger.models.values():
        if model.waiting:
            yield next(iter(model.waiting.values())).arrived_at_s + model.spec.queue_timeout_s
        if model.load_asks:
            yield model.load_asks[0].asked_at_s + model.spec.queue_timeout_s
        if model.spec.pin and model.retry_at_s is not None and model.retry_at_s > now_s:
            yield model.retry_at_s


def _set_timer(ledger: Ledger, deadlines: list[float], now_s: float, effects: list[Effect]) -> None:
    at_s = min(deadlines, default=None)
    assert at_s is None or at_s > now_s, f"something due at {at_s} was left undone at {now_s}"
    if at_s != ledger.timer_at_s:
        ledger.timer_at_s = at_s
        effects.append(SetTimer(at_s))
