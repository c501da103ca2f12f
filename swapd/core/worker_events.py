"""What becomes of workers: they start, load, serve, sleep and end, and what their model learns from that.

Owns the events' records. Must never decide who starts or leaves: that is the plan's.
"""

from __future__ import annotations

from swapd.core import events as ev
from swapd.core import sleepers
from swapd.core.departures import cut_running, fail_load, note_crash, run_out, serves
from swapd.core.devices import take_out
from swapd.core.effects import Answer, Effect, RefusalKind, ReportDeparture, ReportLoad, Sample, Tell
from swapd.core.idle import forget_keep_alive
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import Cause, WorkerState
from swapd.core.records import LEAVING_STATES, LOADING_STATES, Departure, Model, Worker
from swapd.core.turns import note_load, note_wake


def worker_started(ledger: Ledger, event: ev.WorkerStarted, now_s: float, _: list[Effect]) -> None:
    """Its process loads."""
    worker = ledger.workers[event.worker_id]
    worker.move(Cause.STARTED)
    worker.last_progress_s = now_s


def worker_progressed(ledger: Ledger, event: ev.WorkerProgressed, now_s: float, _: list[Effect]) -> None:
    """It shows that it works."""
    worker = ledger.workers.get(event.worker_id)
    if worker is None:
        return  # Bytes of a worker that has gone meanwhile may still be on their way to a client.
    worker.last_progress_s = now_s
    running = ledger.running.get(event.began or "")
    if running is not None and running.worker_id == event.worker_id:
        running.began = True


def worker_ready(ledger: Ledger, event: ev.WorkerReady, now_s: float, effects: list[Effect]) -> None:
    """It has loaded, or is awake."""
    worker = ledger.workers[event.worker_id]
    worker.move(Cause.LOADED)
    if worker.state is not WorkerState.READY:
        return
    worker.ready_at_s = worker.idle_since_s = worker.last_progress_s = now_s
    load_s = now_s - worker.launched_at_s
    woken = sleepers.awoke(ledger, worker)
    effects.append(ReportLoad(worker.model_id, "woken" if woken else "ready", load_s))
    what = "awake" if woken else "ready"
    effects.append(Tell("loaded", worker.model_id, f"{worker.model_id!r} is {what} after {load_s:.2f} s"))
    # What it took can be seen now.
    effects += [Sample(name) for name in worker.placement.device_bytes if ledger.devices[name].spec.metered]
    # A worker whose model was changed or removed meanwhile has been told to leave: it is not READY.
    model = ledger.models[worker.model_id]
    model.last_error = model.retry_at_s = None
    if woken:
        note_wake(model, load_s)
        model.sleep_failures = 0
    else:
        note_load(model, load_s)
        model.loads += 1
    model.ceilings.clear()
    effects += [Answer(ask.id, None) for ask in model.load_asks]
    model.load_asks.clear()


def worker_exited(ledger: Ledger, event: ev.WorkerExited, now_s: float, effects: list[Effect]) -> None:
    """Its process is gone: as it was asked to, before it was ready, or while it served."""
    worker = ledger.workers[event.worker_id]
    state = worker.state
    cut_running(ledger, worker, now_s)
    slept = sleepers.broke(ledger, worker)
    # One that was to wake had memory on GPUs before it was told to.
    take_out(ledger, worker, now_s, settles=state is not WorkerState.LAUNCHING or slept is not None)
    model = ledger.models.get(worker.model_id)
    if event.kind is ev.ExitKind.UNDERESTIMATED:
        effects.append(Tell("estimate_corrected", worker.model_id, event.detail))
    elif state in LOADING_STATES and slept is not None:
        # Nothing is wrong with its model for all that is known: it is loaded afresh.
        effects.append(ReportLoad(worker.model_id, "failed", now_s - worker.launched_at_s))
        effects.append(Tell("wake_failed", worker.model_id, event.detail))
    elif state in LOADING_STATES:
        outcome = _LOAD_OUTCOMES.get(event.kind, "failed")
        effects.append(ReportLoad(worker.model_id, outcome, now_s - worker.launched_at_s))
        # A load ends when its model is removed.
        _load_ended(ledger, ledger.models[worker.model_id], worker, event, now_s, effects)
    else:
        asked = worker.departure if state is WorkerState.STOPPING else None
        departure = asked or Departure("crashed")
        if worker.ready_at_s is not None:
            effects.append(ReportDeparture(worker.model_id, departure.reason, departure.is_eviction))
        if asked is None:
            note_crash(ledger, worker, event.detail, now_s, effects)
    if model is not None:
        forget_keep_alive(ledger, model)
        answer_unloads(ledger, model, effects)


def worker_asleep(ledger: Ledger, event: ev.WorkerAsleep, now_s: float, effects: list[Effect]) -> None:
    """It sleeps, and is no worker any more."""
    worker = sleepers.worker_asleep(ledger, event, now_s, effects)
    take_out(ledger, worker, now_s, settles=True, kept_bytes=ledger.sleepers[worker.id].held_bytes)
    model = ledger.models.get(worker.model_id)
    if model is not None:
        forget_keep_alive(ledger, model)


def sleeper_exited(ledger: Ledger, event: ev.SleeperExited, now_s: float, effects: list[Effect]) -> None:
    """A sleeper's process is gone."""
    sleeper = ledger.sleepers.get(event.sleeper_id)
    sleepers.sleeper_exited(ledger, event, now_s, effects)
    model = ledger.models.get(sleeper.model_id) if sleeper is not None else None
    if model is not None:
        answer_unloads(ledger, model, effects)


_LOAD_OUTCOMES = {ev.ExitKind.CPU_FAULT: "crashed", ev.ExitKind.OUT_OF_MEMORY: "out_of_memory"}


def _load_ended(
    ledger: Ledger,
    model: Model,
    worker: Worker,
    event: ev.WorkerExited,
    now_s: float,
    effects: list[Effect],
) -> None:
    """A worker's process ended by itself before it was ready."""
    if event.kind is ev.ExitKind.CPU_FAULT and worker.spec.has_portable_mode and not worker.portable:
        model.portable = True
        message = (
            f"the worker of {model.id!r} crashed on its first batch ({event.detail}); "
            "loading once more with use_extra_bufts: false, which avoids special CPU instructions"
        )
        effects.append(Tell("portable_retry", model.id, message))
    elif event.kind is ev.ExitKind.INVALID_MODEL and not serves(ledger, model):
        model.verdict = event.detail
        effects.append(Tell("load_failed", model.id, event.detail))
    elif event.kind is ev.ExitKind.OUT_OF_MEMORY:
        run_out(ledger, model, worker, event, now_s, effects)
    else:
        fail_load(ledger, model, RefusalKind.LOAD_FAILED, event.detail, now_s, effects)


def answer_unloads(ledger: Ledger, model: Model, effects: list[Effect]) -> None:
    """Tell who asked for a model to be unloaded, once nothing of it is left that leaves or sleeps."""
    leaving = any(worker.state in LEAVING_STATES for worker in ledger.workers_of(model.id))
    if not leaving and not sleepers.has_sleeper(ledger, model.id):
        effects += [Answer(ask.id, None) for ask in model.unload_asks]
        model.unload_asks.clear()
