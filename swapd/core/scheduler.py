"""`step`: the one door into the scheduler. It records an event, then plans, and returns what must be done.

Never awaits, never reads a clock, never raises for an operating error. An impossible event is an assertion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swapd.core import events as ev
from swapd.core import fairness
from swapd.core.admission import over_client_limit
from swapd.core.departures import forgive, leave, refuse_all, serves
from swapd.core.devices import devices_changed, memory_sampled, pause, resume
from swapd.core.effects import (
    Answer,
    Effect,
    Refusal,
    RefusalKind,
    Reject,
    Tell,
)
from swapd.core.idle import keep_alive_asked
from swapd.core.ledger import Ledger
from swapd.core.planner import plan
from swapd.core.records import Ask, Departure, Device, Model
from swapd.core.requests import Request
from swapd.core.scope import Seen
from swapd.core.sleepers import dismiss_sleeper
from swapd.core.spares import spare_exited, spares_changed
from swapd.core.spec import ModelSpec
from swapd.core.waking import devices_found
from swapd.core.worker_events import (
    answer_unloads,
    sleeper_exited,
    worker_asleep,
    worker_exited,
    worker_progressed,
    worker_ready,
    worker_started,
)

MAX_ASKS = 64
"""People waiting for one model's load or unload."""

SERVICE_WEIGHT = 0.2
"""Of the newest sample in the running mean of a request's service time."""


def step(ledger: Ledger, event: ev.Event, now_s: float) -> list[Effect]:
    """Record one event at `now_s` (monotonic seconds) and return what the shell must do, in order."""
    assert now_s >= ledger.now_s, "time went backwards"
    ledger.now_s = now_s
    ledger.moved.clear()
    effects: list[Effect] = []
    seen = Seen(ledger, event, now_s)
    _HANDLERS[type(event)](ledger, event, now_s, effects)
    plan(ledger, seen.scope(), now_s, effects)
    return effects


def _request_arrived(ledger: Ledger, event: ev.RequestArrived, now_s: float, effects: list[Effect]) -> None:
    ledger.counters.accepted += 1
    model = ledger.models.get(event.model_id)
    refusal = None
    if ledger.closing:
        refusal = _closing()
    elif model is None:
        refusal = Refusal(RefusalKind.UNKNOWN_MODEL, f"model {event.model_id!r} is not in the configuration")
    elif not event.may_load and not serves(ledger, model):
        message = f"model {event.model_id!r} is not loaded, and this request may not load it"
        refusal = Refusal(RefusalKind.NOT_LOADED, message)
    else:
        refusal = over_client_limit(ledger, model, event.client)
    if model is None or refusal is not None:
        assert refusal is not None
        ledger.counters.failed += 1
        effects.append(Reject(event.request_id, refusal))
        return
    model.demand.note(event.client, model.last_seen_s.get(event.client), now_s)
    if event.keep_alive_s is not None:
        model.keep_alive_s = event.keep_alive_s
    model.pin_lifted = False
    tokens = model.shares.estimate(event.prompt_tokens, event.answer_limit)
    ledger.enqueue(Request(event.request_id, model.id, event.client, event.priority, now_s, tokens, event.weight))


def _request_cancelled(ledger: Ledger, event: ev.RequestCancelled, now_s: float, _: list[Effect]) -> None:
    if event.request_id in ledger.waiting:
        ledger.dequeue(event.request_id)
        ledger.counters.cancelled += 1
    elif event.request_id in ledger.running:
        _end_running(ledger, event.request_id, now_s)
        ledger.counters.cancelled += 1


def _request_finished(ledger: Ledger, event: ev.RequestFinished, now_s: float, _: list[Effect]) -> None:
    if event.request_id not in ledger.running:
        return  # It failed with its worker and was counted then.
    request = _end_running(ledger, event.request_id, now_s)
    if not event.ok:
        ledger.counters.failed += 1
        return
    ledger.counters.finished += 1
    model = ledger.models.get(request.model_id)
    if model is not None:
        assert request.worker_id is not None
        forgive(model, ledger.workers[request.worker_id])
        took_s = now_s - request.granted_at_s
        known_s = model.service_s
        model.service_s = took_s if known_s is None else known_s + SERVICE_WEIGHT * (took_s - known_s)


def _end_running(ledger: Ledger, request_id: str, now_s: float) -> Request:
    request = ledger.running[request_id]
    ledger.release(request, now_s)
    model = ledger.models.get(request.model_id)
    if model is not None:
        fairness.note_seen(model, request.client, now_s)
    return request


def _tokens_served(ledger: Ledger, event: ev.TokensServed, now_s: float, _: list[Effect]) -> None:
    model = ledger.models.get(event.model_id)
    if model is None:
        return
    if event.answer_tokens:
        model.shares.count_answer(event.answer_tokens)
    running = ledger.running.get(event.request_id or "")
    if running is not None:
        model.shares.settle(running, event.tokens)
    else:
        model.shares.settle_late(event.request_id, event.client, event.tokens)


def _models_changed(ledger: Ledger, event: ev.ModelsChanged, now_s: float, effects: list[Effect]) -> None:
    listed = {spec.id: spec for spec in event.models}
    assert len(listed) == len(event.models), "a model is listed twice"
    for model in list(ledger.models.values()):
        if model.id not in listed:
            _remove_model(ledger, model, now_s, effects)
    for spec in event.models:
        if spec.id in ledger.models:
            _change_model(ledger, ledger.models[spec.id], spec, now_s, effects)
        else:
            ledger.models[spec.id] = Model(spec, known_since_s=now_s)
    ledger.models = {spec.id: ledger.models[spec.id] for spec in event.models}


def _change_model(ledger: Ledger, model: Model, spec: ModelSpec, now_s: float, effects: list[Effect]) -> None:
    """Take over new settings: policy at once, anything a running worker depends on by replacing the worker."""
    changed = model.spec.launch_key != spec.launch_key
    if model.spec.costs != spec.costs:
        model.claim = None
    model.spec = spec
    if changed:
        model.verdict = model.last_error = model.retry_at_s = model.load_s = None
        model.usual_load_s = model.usual_wake_s = None
        model.failures, model.sleep_failures, model.portable, model.claim = 0, 0, False, None
        model.ceilings.clear()
        model.crashed_at_s.clear()
        _dismiss(ledger, model.id, "reload", spec.drain_s, now_s, effects)
        return
    for worker in ledger.workers_of(spec.id):
        if worker.spec.launch_key == spec.launch_key:
            worker.spec = spec
    for worker in ledger.staying(spec.id)[spec.replicas :]:
        effects.append(Tell("unloading", spec.id, f"a worker of {spec.id!r} leaves: replicas is {spec.replicas} now"))
        leave(ledger, worker, Departure("reload", deadline_s=now_s + spec.drain_s), now_s, effects)


def _remove_model(ledger: Ledger, model: Model, now_s: float, effects: list[Effect]) -> None:
    message = f"model {model.id!r} was removed from the configuration"
    refuse_all(ledger, model, Refusal(RefusalKind.UNKNOWN_MODEL, message), effects)
    effects += [Answer(ask.id, None) for ask in model.unload_asks]
    _dismiss(ledger, model.id, "removed", model.spec.drain_s, now_s, effects)
    del ledger.models[model.id]


def _dismiss(ledger: Ledger, model_id: str, reason: str, drain_s: float, now_s: float, effects: list[Effect]) -> None:
    for worker in list(ledger.workers_of(model_id)):
        message = f"{model_id!r} leaves: {_DISMISSALS[reason]}"
        effects.append(Tell("unloading", model_id, message))
        leave(ledger, worker, Departure(reason, deadline_s=now_s + drain_s), now_s, effects)


_DISMISSALS = {
    "reload": "its settings or its file changed",
    "removed": "it was removed from the configuration",
    "asked": "somebody asked for it",
}


def _load_asked(ledger: Ledger, event: ev.LoadAsked, now_s: float, effects: list[Effect]) -> None:
    model = _asked_model(ledger, event.ask_id, event.model_id, effects)
    if model is None:
        return
    model.pin_lifted = False
    model.keep_alive_s = None
    # A person who asks has perhaps mended it: do not make them sit out a back-off.
    model.retry_at_s = None
    if serves(ledger, model):
        effects.append(Answer(event.ask_id, None))
    elif len(model.load_asks) >= MAX_ASKS:
        effects.append(Answer(event.ask_id, _too_many_asks(model)))
    else:
        model.load_asks.append(Ask(event.ask_id, now_s))


def _unload_asked(ledger: Ledger, event: ev.UnloadAsked, now_s: float, effects: list[Effect]) -> None:
    model = _asked_model(ledger, event.ask_id, event.model_id, effects)
    if model is None:
        return
    model.pin_lifted = True
    refusal = Refusal(RefusalKind.LOAD_FAILED, f"model {model.id!r} was unloaded by hand")
    effects += [Answer(ask.id, refusal) for ask in model.load_asks]
    model.load_asks.clear()
    if len(model.unload_asks) >= MAX_ASKS:
        effects.append(Answer(event.ask_id, _too_many_asks(model)))
        return
    model.unload_asks.append(Ask(event.ask_id, now_s))
    _dismiss(ledger, model.id, "asked", model.spec.drain_s, now_s, effects)
    dismiss_sleeper(ledger, model.id, effects)
    answer_unloads(ledger, model, effects)


def _asked_model(ledger: Ledger, ask_id: str, model_id: str, effects: list[Effect]) -> Model | None:
    model = ledger.models.get(model_id)
    if ledger.closing:
        effects.append(Answer(ask_id, _closing()))
        return None
    if model is None:
        message = f"model {model_id!r} is not in the configuration"
        effects.append(Answer(ask_id, Refusal(RefusalKind.UNKNOWN_MODEL, message)))
    return model


def _pause_asked(ledger: Ledger, event: ev.PauseAsked, now_s: float, effects: list[Effect]) -> None:
    device = _asked_device(ledger, event.ask_id, event.device, effects)
    if device is not None:
        pause(ledger, device, Ask(event.ask_id, now_s), now_s, effects)


def _resume_asked(ledger: Ledger, event: ev.ResumeAsked, now_s: float, effects: list[Effect]) -> None:
    device = _asked_device(ledger, event.ask_id, event.device, effects)
    if device is not None:
        resume(device, Ask(event.ask_id, now_s), effects)


def _asked_device(ledger: Ledger, ask_id: str, name: str, effects: list[Effect]) -> Device | None:
    device = ledger.devices.get(name)
    if ledger.closing:
        effects.append(Answer(ask_id, _closing()))
        return None
    if device is None:
        message = f"there is no device {name!r}; this machine has {', '.join(ledger.devices)}"
        effects.append(Answer(ask_id, Refusal(RefusalKind.UNKNOWN_DEVICE, message)))
        return None
    if len(device.pause_asks) >= MAX_ASKS:
        message = f"{MAX_ASKS} others already wait for {name} to be handed over"
        effects.append(Answer(ask_id, Refusal(RefusalKind.QUEUE_FULL, message, 1.0)))
        return None
    return device


def _too_many_asks(model: Model) -> Refusal:
    return Refusal(RefusalKind.QUEUE_FULL, f"{MAX_ASKS} others already wait for model {model.id!r}", 1.0)


def _closing() -> Refusal:
    return Refusal(RefusalKind.SHUTTING_DOWN, "swapd is shutting down; try again in a moment", 5.0)


def _shutdown_asked(ledger: Ledger, _: ev.ShutdownAsked, now_s: float, effects: list[Effect]) -> None:
    ledger.closing = True
    for model in ledger.models.values():
        refuse_all(ledger, model, _closing(), effects)
    for device in ledger.devices.values():
        effects += [Answer(ask.id, _closing()) for ask in device.pause_asks]
        device.pause_asks.clear()
    for worker in list(ledger.workers.values()):
        departure = Departure("stopped", deadline_s=now_s + worker.spec.drain_s)
        leave(ledger, worker, departure, now_s, effects)


def _timer_fired(ledger: Ledger, _: ev.TimerFired, now_s: float, effects: list[Effect]) -> None:
    ledger.timer_at_s = None


_HANDLERS: dict[type, Callable[[Ledger, Any, float, list[Effect]], None]] = {
    ev.RequestArrived: _request_arrived,
    ev.RequestCancelled: _request_cancelled,
    ev.RequestFinished: _request_finished,
    ev.TokensServed: _tokens_served,
    ev.WorkerStarted: worker_started,
    ev.WorkerProgressed: worker_progressed,
    ev.WorkerReady: worker_ready,
    ev.SpareExited: spare_exited,
    ev.SparesChanged: spares_changed,
    ev.WorkerExited: worker_exited,
    ev.WorkerAsleep: worker_asleep,
    ev.SleeperExited: sleeper_exited,
    ev.MemorySampled: memory_sampled,
    ev.ModelsChanged: _models_changed,
    ev.DevicesChanged: devices_changed,
    ev.DevicesFound: devices_found,
    ev.LoadAsked: _load_asked,
    ev.UnloadAsked: _unload_asked,
    ev.KeepAliveAsked: keep_alive_asked,
    ev.PauseAsked: _pause_asked,
    ev.ResumeAsked: _resume_asked,
    ev.ShutdownAsked: _shutdown_asked,
    ev.TimerFired: _timer_fired,
}
