"""How workers leave and how loads fail: the records that go with each, in one place.

Owns no policy: who leaves and when is decided by `room`, `planner` and the events.
"""

from __future__ import annotations

from swapd.core.effects import Answer, Effect, Refusal, RefusalKind, Reject, ReportLoad, Sample, Stop, Tell
from swapd.core.events import WorkerExited
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import Cause, WorkerState
from swapd.core.placement import MIB, place
from swapd.core.records import LEAVING_STATES, LOADING_STATES, MAX_CRASHES, Departure, Model, Worker
from swapd.core.sleepers import fall_asleep, may_sleep
from swapd.core.spec import RAM, Placement

STOP_GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL."""

LOWER_SHARE = 7 / 8
"""After a load that ran out of memory: how much of what it was given there the next one may take."""

FIRST_BACKOFF_S = 2.0
MAX_BACKOFF_S = 300.0
CRASH_WINDOW_S = 60.0
"""No load begins within it after `records.MAX_CRASHES` crashes in it, whatever was served between them."""


def backoff_s(failures: int) -> float:
    """2, 4, 8 … 300 seconds after 1, 2, 3 … failures in a row."""
    return float(min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures - 1, 16)))


def leave(ledger: Ledger, worker: Worker, departure: Departure, now_s: float, effects: list[Effect]) -> None:
    """Ask a worker to go: at once when nothing runs on it, else after what runs.

    One that drains already takes the new reason if that one has a deadline and the old one has not.
    """
    if worker.state is WorkerState.STOPPING:
        return
    if worker.state is WorkerState.DRAINING:
        assert worker.departure is not None
        if worker.departure.deadline_s is None and departure.deadline_s is not None:
            worker.departure = departure
    elif worker.running:
        worker.departure = departure
        worker.move(Cause.DRAIN_ASKED)
    else:
        stop(ledger, worker, departure, now_s, effects)


def stop(
    ledger: Ledger,
    worker: Worker,
    departure: Departure,
    now_s: float,
    effects: list[Effect],
    *,
    grace_s: float = STOP_GRACE_S,
) -> None:
    """End a worker's process. Requests that still run on it fail here; their clients see the stream break."""
    cut_running(ledger, worker, now_s)
    if worker.state in LOADING_STATES:
        outcome = "stuck" if departure.reason == "stuck" else "stopped"
        effects.append(ReportLoad(worker.model_id, outcome, now_s - worker.launched_at_s))
    sleeps = may_sleep(ledger, worker, departure)
    worker.move(Cause.STOP_ASKED)
    worker.departure = departure
    if sleeps:
        fall_asleep(ledger, worker, now_s)
    # The free memory before the process goes is what its return is measured against.
    effects += [Sample(name) for name in worker.placement.device_bytes if ledger.devices[name].spec.settles]
    effects.append(Stop(worker.id, grace_s, sleeps))


def cut_running(ledger: Ledger, worker: Worker, now_s: float) -> None:
    """Count a worker's running requests as failed and give back their slots."""
    for request in list(worker.running.values()):
        ledger.release(request, now_s, refund=True)
        ledger.counters.failed += 1


def reprieve(worker: Worker) -> None:
    """A worker that was draining to make room may stay after all."""
    assert worker.state in LEAVING_STATES
    worker.move(Cause.REPRIEVED)
    worker.departure = None


def refuse(ledger: Ledger, request_id: str, refusal: Refusal, effects: list[Effect]) -> None:
    """End a waiting request with an error."""
    ledger.dequeue(request_id)
    ledger.counters.failed += 1
    effects.append(Reject(request_id, refusal))


def refuse_all(ledger: Ledger, model: Model, refusal: Refusal, effects: list[Effect]) -> None:
    """End everything that waits for a model, people's asks included, with one error."""
    for request_id in list(model.waiting):
        refuse(ledger, request_id, refusal, effects)
    effects += [Answer(ask.id, refusal) for ask in model.load_asks]
    model.load_asks.clear()


def fail_load(
    ledger: Ledger, model: Model, kind: RefusalKind, message: str, now_s: float, effects: list[Effect]
) -> None:
    """A load ended without a ready worker: back off, and tell everyone who waited for it."""
    model.ceilings.clear()
    _note_failure(ledger, model, message)
    model.retry_at_s = now_s + backoff_s(model.failures)
    effects.append(Tell("load_failed", model.id, message))
    if not serves(ledger, model):
        refuse_all(ledger, model, Refusal(kind, message, backoff_s(model.failures)), effects)


def serves(ledger: Ledger, model: Model) -> bool:
    """Whether the model has a worker that takes requests, so that what waits need not wait for a load."""
    return any(worker.state is WorkerState.READY for worker in ledger.workers_of(model.id))


def _note_failure(ledger: Ledger, model: Model, message: str) -> None:
    model.failures += 1
    model.first_since_failure = ledger.next_worker_id
    model.last_error = message


def forgive(model: Model, worker: Worker) -> None:
    """A worker served a request. One that was there before the last failure does not show that it has passed."""
    if worker.id >= model.first_since_failure:
        model.failures = 0


def run_out(
    ledger: Ledger, model: Model, worker: Worker, event: WorkerExited, now_s: float, effects: list[Effect]
) -> None:
    """A load ended for want of memory. It is tried once more with less where it was short, and then has failed."""
    if serves(ledger, model):
        message = f"a further worker of model {model.id!r} ran out of memory. {event.detail}"
        fail_load(ledger, model, RefusalKind.LOAD_FAILED, message, now_s, effects)
        return
    again = not model.ceilings
    if again:
        model.ceilings.update(_lower(worker.placement, event.device))
        movable = model.spec.fixed is None
        if movable and place(model.spec, model.within(ledger.open_room(model))) is not None:
            message = f"{model.id!r} is loaded once more, with less on {' and '.join(model.ceilings)}: {event.detail}"
            effects.append(Tell("memory_retry", model.id, message))
            return
    sums = ", ".join(_sum(ledger, worker.placement, name) for name in model.ceilings)
    tried = "and no placement takes less there" if again else "and it was tried before with more there"
    message = f"model {model.id!r} ran out of memory: {sums}, {tried}. {event.detail}"
    fail_load(ledger, model, RefusalKind.LOAD_FAILED, message, now_s, effects)


def _lower(placement: Placement, device: str | None) -> dict[str, int]:
    """The most to take next time: less on the device that ran out, or on all it may have been."""
    sizes = {name: size_bytes for name, size_bytes in placement.device_bytes.items() if size_bytes}
    suspects = [device] if device in sizes else list(placement.devices) or [RAM]
    return {name: int(sizes.get(name, 0) * LOWER_SHARE) for name in suspects}


def _sum(ledger: Ledger, placement: Placement, name: str) -> str:
    reserved = f"{-(-placement.device_bytes.get(name, 0) // MIB):,} MiB were reserved for it on {name}"
    free_bytes = ledger.devices[name].free_bytes
    return reserved if free_bytes is None else f"{reserved}, which showed {free_bytes // MIB:,} MiB free"


def note_crash(ledger: Ledger, worker: Worker, message: str, now_s: float, effects: list[Effect]) -> None:
    """A worker died or hung while it served. The first time in a row its model is simply loaded again.

    A request that kills every worker would otherwise have it loaded again for ever, between others that are served.
    """
    effects.append(Tell("worker_lost", worker.model_id, message))
    model = ledger.models.get(worker.model_id)
    if model is None or model.spec.launch_key != worker.spec.launch_key:
        return  # The settings and the file that it ran with are gone; the new ones have done nothing wrong.
    _note_failure(ledger, model, message)
    model.crashed_at_s.append(now_s)
    retry_at_s = now_s if model.failures == 1 else now_s + backoff_s(model.failures - 1)
    if len(model.crashed_at_s) == MAX_CRASHES:
        retry_at_s = max(retry_at_s, model.crashed_at_s[0] + CRASH_WINDOW_S)
    if retry_at_s > now_s:
        model.retry_at_s = retry_at_s
