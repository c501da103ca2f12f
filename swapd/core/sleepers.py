"""Workers that sleep in place of leaving, where their program can: they keep a little memory and are back soon.

Owns the ledger's `Sleeper` records. Only a worker that leaves to make room sleeps, and only where what it keeps is in
nobody's way; when it is later, it ends. What it keeps is reserved before it is told to sleep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf

from swapd.core.effects import Effect, ReportDeparture, Sample, StopSleeper, Tell
from swapd.core.events import SleeperExited, WorkerAsleep
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import SleeperCause, SleeperState
from swapd.core.pages import needed_bytes
from swapd.core.placement import describe
from swapd.core.records import LEAVING_STATES, LOADING_STATES, Departure, Model, Settling, Sleeper, Worker
from swapd.core.spec import ModelSpec, Placement, shared_memories

MAX_FAILURES = 2
"""Times in a row that a model may fail to sleep or to wake before its workers end like any other's."""

_ENDED_BY_ITSELF = frozenset({SleeperState.FALLING, SleeperState.ASLEEP})
"""One that wakes ends as the worker that it is again."""

SETTLE_S = 10.0
"""As `swapd.core.devices`: how long a GPU may take to show memory as free again."""


# -- falling asleep -------------------------------------------------------------------------------------------------


def may_sleep(ledger: Ledger, worker: Worker, departure: Departure) -> bool:
    """Whether a worker that leaves, and runs nothing, had better sleep: who it leaves for has room all the same."""
    spec, model = worker.spec, ledger.models.get(worker.model_id)
    waiter = ledger.models.get(departure.for_model or "")
    if spec.asleep_bytes is None or worker.ready_at_s is None or ledger.closing or model is None or waiter is None:
        return False
    if model.spec.launch_key != spec.launch_key or model.sleep_failures >= MAX_FAILURES or spec.replicas > 1:
        return False
    if spec.fixed is None or None in spec.fixed.values():
        return False  # It must find its place again where it was.
    if waiter.claim is None or sleeper_of(ledger, model.id) is not None:
        return False
    held = _kept_bytes(ledger, spec, worker.placement)
    needed = needed_bytes(waiter.spec, waiter.claim, ledger.mapped())
    for name, device in ledger.devices.items():
        placed = worker.placement.device_bytes.get(name, 0)
        free = ledger.free_bytes(name)
        if (device.is_closed and placed) or free < max(0, held.get(name, 0) - placed):
            return False
        coming = free + ledger.leaving_bytes(name) + (0 if worker.state in LEAVING_STATES else placed)
        own = min(kept.held_bytes.get(name, 0), kept.placed_bytes(name)) if (kept := _asleep(ledger, waiter)) else 0
        if needed.get(name, 0) > coming - held.get(name, 0) + own:
            return False
    return True


def fall_asleep(ledger: Ledger, worker: Worker, now_s: float) -> None:
    """Reserve what a worker keeps that is about to be told to sleep."""
    held = _kept_bytes(ledger, worker.spec, worker.placement)
    ledger.sleepers[worker.id] = Sleeper(worker.id, worker.spec, worker.placement, held, now_s, worker_id=worker.id)


def _kept_bytes(ledger: Ledger, spec: ModelSpec, placement: Placement) -> Mapping[str, int]:
    """By device; of a GPU at most what the worker has there, and what is carved out of RAM counts there, too."""
    assert spec.asleep_bytes is not None
    kept = {name: size_bytes for name, size_bytes in spec.asleep_bytes.items() if name in ledger.devices}
    for name, memory in shared_memories(device.spec for device in ledger.devices.values()).items():
        if name in kept:
            kept[memory] = kept.get(memory, 0) + kept[name]
    settles = {name for name in kept if ledger.devices[name].spec.settles}
    return {
        name: min(size_bytes, placement.device_bytes.get(name, 0)) if name in settles else size_bytes
        for name, size_bytes in kept.items()
    }


def worker_asleep(ledger: Ledger, event: WorkerAsleep, now_s: float, effects: list[Effect]) -> Worker:
    """It sleeps, if only until it ends. Returns the worker that it was, for its memory to be taken out."""
    worker, sleeper = ledger.workers[event.worker_id], ledger.sleepers[event.worker_id]
    assert worker.departure is not None
    sleeper.move(SleeperCause.FELL_ASLEEP)
    sleeper.worker_id, sleeper.since_s = None, now_s
    effects.append(ReportDeparture(worker.model_id, worker.departure.reason, worker.departure.is_eviction))
    if sleeper.state is SleeperState.ASLEEP:
        what = describe(sleeper.held_bytes) or "nothing"
        effects.append(Tell("asleep", worker.model_id, f"{worker.model_id!r} sleeps and keeps {what}"))
    return worker


# -- waking ---------------------------------------------------------------------------------------------------------


def sleeper_of(ledger: Ledger, model_id: str) -> Sleeper | None:
    """The model's sleeper that was not told to end, whatever it is doing."""
    found = (one for one in ledger.sleepers.values() if one.model_id == model_id)
    return next((one for one in found if one.state is not SleeperState.LEAVING), None)


def _asleep(ledger: Ledger, model: Model) -> Sleeper | None:
    """The model's sleeper that can be woken as its worker."""
    found = sleeper_of(ledger, model.id)
    if found is None or found.state is not SleeperState.ASLEEP:
        return None
    return found if found.spec.launch_key == model.spec.launch_key else None


def is_falling(ledger: Ledger, model: Model) -> bool:
    """Whether the model is just falling asleep, so that it can neither be woken yet nor loaded beside that."""
    found = sleeper_of(ledger, model.id)
    return found is not None and found.state is SleeperState.FALLING


def credit_bytes(ledger: Ledger, model: Model, device: str, *, soon: bool) -> int:
    """Of what the model's next worker takes of a device, what its sleeper keeps there already.

    `soon` counts one that is still falling asleep, too.
    """
    found = sleeper_of(ledger, model.id)
    if found is None or not (_asleep(ledger, model) is found or (soon and found.state is SleeperState.FALLING)):
        return 0
    return min(found.held_bytes.get(device, 0), found.placed_bytes(device))


def wake(ledger: Ledger, model: Model, worker: Worker) -> int | None:
    """The sleeper that becomes this worker, whose memory was just reserved; None if there is none."""
    found = _asleep(ledger, model)
    if found is None:
        return None
    found.move(SleeperCause.WAKE_ASKED)
    found.worker_id, found.placement = worker.id, worker.placement
    return found.id


def awoke(ledger: Ledger, worker: Worker) -> bool:
    """A worker is ready; whether it has been a sleeper, which then is one no longer."""
    found = _of_worker(ledger, worker)
    if found is None:
        return False
    found.move(SleeperCause.AWOKE)
    del ledger.sleepers[found.id]
    ledger.note_release()
    return True


def broke(ledger: Ledger, worker: Worker) -> SleeperState | None:
    """A worker has ended that was falling asleep, or waking: its sleeper has, too. Returns what it was doing.

    It counts against its model, unless it was asked to end meanwhile.
    """
    found = _of_worker(ledger, worker)
    if found is None:
        return None
    was, model = found.state, ledger.models.get(worker.model_id)
    found.move(SleeperCause.EXITED)
    del ledger.sleepers[found.id]
    if model is not None and (was is SleeperState.FALLING or worker.state in LOADING_STATES):
        model.sleep_failures += 1
    return was


def _of_worker(ledger: Ledger, worker: Worker) -> Sleeper | None:
    return next((one for one in ledger.sleepers.values() if one.worker_id == worker.id), None)


# -- ending ---------------------------------------------------------------------------------------------------------


def sleeper_exited(ledger: Ledger, event: SleeperExited, now_s: float, effects: list[Effect]) -> None:
    """A sleeper's process is gone. One that was told to wake ends as the worker that it was to be."""
    sleeper = ledger.sleepers.get(event.sleeper_id)
    if sleeper is None or sleeper.worker_id is not None:
        return
    if sleeper.state is SleeperState.ASLEEP:
        effects.append(Tell("sleeper_lost", sleeper.model_id, event.detail))
    sleeper.move(SleeperCause.EXITED)
    del ledger.sleepers[sleeper.id]
    for name, size_bytes in sleeper.held_bytes.items():
        device = ledger.devices[name]
        if device.spec.settles and size_bytes:
            ledger.settling.append(Settling(name, size_bytes, device.free_bytes, now_s + SETTLE_S))
    ledger.note_release()


def dismiss_sleeper(ledger: Ledger, model_id: str, effects: list[Effect]) -> None:
    """A person wants the model's sleeper to end. One that wakes is a worker, and is told to leave as such."""
    found = sleeper_of(ledger, model_id)
    if found is not None:
        dismiss(ledger, found, "it is unloaded", effects)


def dismiss(ledger: Ledger, sleeper: Sleeper, why: str, effects: list[Effect]) -> None:
    """Stop one that sleeps or is about to."""
    if sleeper.state in _ENDED_BY_ITSELF:
        _end(ledger, sleeper, why, effects)


def has_sleeper(ledger: Ledger, model_id: str) -> bool:
    """Whether there is still a process of the model's that sleeps, even one that is to end."""
    return any(one.model_id == model_id for one in ledger.sleepers.values())


def end_unwanted(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    """Stop sleepers that nobody will wake: of other settings, of closed devices, idle ones, and at the end all.

    Nobody waits until one has fallen asleep for that: it may take its time, or never do it.
    """
    for sleeper in list(ledger.sleepers.values()):
        why = _why_unwanted(ledger, sleeper, now_s)
        if why is not None:
            dismiss(ledger, sleeper, why, effects)


def _why_unwanted(ledger: Ledger, sleeper: Sleeper, now_s: float) -> str | None:
    model = ledger.models.get(sleeper.model_id)
    if ledger.closing:
        return "swapd is shutting down"
    if model is None or model.spec.launch_key != sleeper.spec.launch_key:
        return "it is not wanted back"
    closed = [name for name in sleeper.placement.device_bytes if sleeper.placed_bytes(name)]
    closed = [name for name in closed if ledger.devices[name].is_closed]
    if closed:
        return f"{' and '.join(closed)} is {'gone' if ledger.devices[closed[0]].lost else 'handed over'}"
    if now_s >= _idle_until_s(ledger, sleeper):
        return f"it has slept for {now_s - sleeper.since_s:g} s"
    return None


def _idle_until_s(ledger: Ledger, sleeper: Sleeper) -> float:
    """It sleeps no longer than its model stays when idle, unless somebody waits for it."""
    model = ledger.models.get(sleeper.model_id)
    is_awaited = model is not None and (model.waiting or model.load_asks)
    if model is None or is_awaited or model.spec.idle_unload_s is None or sleeper.state is not SleeperState.ASLEEP:
        return inf
    return sleeper.since_s + model.spec.idle_unload_s


def sleeper_deadlines(ledger: Ledger) -> Iterator[float | None]:
    """When a sleeper is to end if nothing else happens."""
    for sleeper in ledger.sleepers.values():
        at_s = _idle_until_s(ledger, sleeper)
        if at_s < inf:
            yield at_s


def reclaimable_bytes(ledger: Ledger, device: str, waiter: Model | None = None) -> int:
    """What sleepers keep of a device that may be ended for a model, which is all but its own."""
    return sum(one.charged_bytes(device) for one in _dispensable(ledger, waiter))


def end_for(
    ledger: Ledger, missing: Mapping[str, int], waiter: Model | None, why: str, effects: list[Effect]
) -> dict[str, int]:
    """Stop sleepers until what is missing on each device is on its way back, who has slept longest first.

    None is stopped that helps nowhere. Returns what is still missing.
    """
    left = dict(missing)
    for sleeper in list(_dispensable(ledger, waiter)):
        if any(size_bytes > 0 and sleeper.held_bytes.get(name, 0) for name, size_bytes in left.items()):
            for name in left:
                left[name] -= sleeper.held_bytes.get(name, 0)
            _end(ledger, sleeper, why, effects)
    return left


def _dispensable(ledger: Ledger, waiter: Model | None) -> Iterator[Sleeper]:
    asleep = [one for one in ledger.sleepers.values() if one.state is SleeperState.ASLEEP]
    for sleeper in sorted(asleep, key=lambda one: (one.since_s, one.id)):
        if waiter is None or sleeper.model_id != waiter.id:
            yield sleeper


def _end(ledger: Ledger, sleeper: Sleeper, why: str, effects: list[Effect]) -> None:
    sleeper.move(SleeperCause.END_ASKED)
    effects.append(Tell("sleeper_ends", sleeper.model_id, f"{sleeper.model_id!r}, which was put to sleep, ends: {why}"))
    effects += [Sample(name) for name in sleeper.held_bytes if ledger.devices[name].spec.settles]
    effects.append(StopSleeper(sleeper.id))
