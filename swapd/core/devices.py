"""What devices show and what follows from it: memory that comes back, what others hold, pauses, when to ask again.

Owns the ledger's `Device` and `Settling` records. Who leaves for others or for a cut budget is `swapd.core.pressure`'s
to say, what is placed where `room`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

from swapd.core.departures import leave
from swapd.core.effects import Answer, Effect, Sample, Tell
from swapd.core.events import DevicesChanged, MemorySampled
from swapd.core.ledger import (
    LEAVING_STATES,
    LOADING_STATES,
    WATCH_EVERY_S,
    Ask,
    Departure,
    Device,
    Ledger,
    Settling,
    Worker,
)
from swapd.core.room import looks_at, needs_worker
from swapd.core.spec import RAM, shared_memories

SETTLE_S = 10.0
"""How long a GPU may take to show a dead process's memory as free before it is taken as free."""

RETURNED_SHARE = 0.75
"""The part of a worker's bytes that must be seen to be free again: others may take some meanwhile."""

SAMPLE_EVERY_S = 0.25
"""How often a device is asked whether memory has come back."""

GUARD_EVERY_S = 5.0
"""How often it is asked while workers are on it, whether others need it. Without any it is left to sleep."""


# -- samples --------------------------------------------------------------------------------------------------------


def memory_sampled(ledger: Ledger, event: MemorySampled, now_s: float, _: list[Effect]) -> None:
    """A device told how much of it is free."""
    device = ledger.devices.get(event.device)
    if device is None:
        return
    device.free_bytes, device.sampled_at_s, device.silent_since_s = event.free_bytes, now_s, None
    _note_others(ledger, device, event)
    _note_returned(ledger, event)


def _note_others(ledger: Ledger, device: Device, event: MemorySampled) -> None:
    """What is neither free nor swapd's. Bytes on their way back count as swapd's until they are seen back.

    A worker that has taken more than was reserved for it has what is over from others. Where the device does not
    tell who has what, nothing is learned while a worker loads and has taken only a part.
    """
    name = event.device
    on_it = [worker for worker in ledger.workers.values() if worker.placement.device_bytes.get(name)]
    if event.held_bytes is None and any(worker.state in LOADING_STATES for worker in on_it):
        return
    settling_bytes = sum(entry.size_bytes for entry in ledger.settling if entry.device == name)
    ours_bytes = settling_bytes + sum(_held_bytes(ledger, worker, event) for worker in on_it)
    device.others_bytes = max(0, device.spec.total_bytes - event.free_bytes - ours_bytes)


def _held_bytes(ledger: Ledger, worker: Worker, event: MemorySampled) -> int:
    charged_bytes = worker.placement.device_bytes[event.device]
    if event.held_bytes is None:
        return charged_bytes
    # What an integrated GPU holds for the worker is no part of the process as the kernel counts it.
    shared_bytes = sum(
        worker.placement.device_bytes.get(name, 0)
        for name, memory in shared_memories(device.spec for device in ledger.devices.values()).items()
        if memory == event.device
    )
    return min(charged_bytes, event.held_bytes.get(worker.id, 0) + shared_bytes)


def _note_returned(ledger: Ledger, event: MemorySampled) -> None:
    kept: list[Settling] = []
    returned = 0
    for entry in ledger.settling:
        if entry.device != event.device:
            kept.append(entry)
            continue
        before = entry.free_before_bytes
        if before is not None and event.free_bytes >= before + returned + RETURNED_SHARE * entry.size_bytes:
            # Later entries must see memory beyond what this one brought back.
            returned += entry.size_bytes
        elif before is None:
            kept.append(entry)
        else:
            kept.append(Settling(entry.device, entry.size_bytes, before + returned, entry.until_s))
    ledger.settling = kept
    ledger.note_release()


def ask_samples(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    """Ask every device whose time has come. Each is asked as often as there is a reason to, and else never."""
    for name, device in ledger.devices.items():
        at_s = _sample_at_s(ledger, device, now_s)
        if at_s is not None and now_s >= at_s:
            device.asked_at_s = now_s
            if device.silent_since_s is None:
                device.silent_since_s = now_s
            effects.append(Sample(name))


def _sample_at_s(ledger: Ledger, device: Device, now_s: float) -> float | None:
    """When to ask it next; None lets it sleep. Not after `now_s` means now."""
    every_s = _sample_every_s(ledger, device, now_s)
    if every_s is None:
        return None
    return now_s if device.asked_at_s is None else device.asked_at_s + every_s


def _sample_every_s(ledger: Ledger, device: Device, now_s: float) -> float | None:
    name = device.spec.name
    if any(entry.device == name for entry in ledger.settling):
        return SAMPLE_EVERY_S
    if not device.spec.metered or device.paused or ledger.closing:
        return None
    if any(needs_worker(ledger, model, now_s) and name in looks_at(ledger, model) for model in ledger.models.values()):
        return WATCH_EVERY_S
    return GUARD_EVERY_S if ledger.charged_bytes(name) else None


def device_deadlines(ledger: Ledger, now_s: float) -> Iterator[float]:
    """When a device has to be looked at again."""
    for entry in ledger.settling:
        yield entry.until_s
    for device in ledger.devices.values():
        at_s = _sample_at_s(ledger, device, now_s)
        if at_s is not None:
            yield at_s


# -- memory that comes back -----------------------------------------------------------------------------------------


def take_out(ledger: Ledger, worker: Worker, now_s: float, *, settles: bool) -> None:
    """Free a reaped worker's bytes. One whose process never began to load had none on a GPU to give back."""
    ledger.remove_worker(worker)
    for name, size_bytes in worker.placement.device_bytes.items():
        if settles and name != RAM and size_bytes:
            free_before = ledger.devices[name].free_bytes
            ledger.settling.append(Settling(name, size_bytes, free_before, now_s + SETTLE_S))
    ledger.note_release()


def settle_overdue(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    """Take bytes as free that were not seen back in time."""
    overdue = [entry for entry in ledger.settling if now_s >= entry.until_s]
    for entry in overdue:
        ledger.settling.remove(entry)
        message = f"{entry.device} did not show {entry.size_bytes} bytes as free again in time; taking them as free"
        effects.append(Tell("memory_late", None, message))
    if overdue:
        ledger.note_release()


# -- what people do with devices ------------------------------------------------------------------------------------


def devices_changed(ledger: Ledger, event: DevicesChanged, now_s: float, _: list[Effect]) -> None:
    """The list of devices, or their budgets, are others now."""
    listed = {spec.name: spec for spec in event.devices}
    for name in [name for name in ledger.devices if name not in listed]:
        if ledger.charged_bytes(name) == 0:
            del ledger.devices[name]
        else:
            gone = ledger.devices[name].spec
            listed[name] = type(gone)(name, gone.total_bytes, 0)
    for name, spec in listed.items():
        device = ledger.devices.setdefault(name, Device(spec))
        device.spec = spec
        charged = ledger.charged_bytes(name)
        device.tolerated_bytes = charged if charged > spec.budget_bytes else 0


def pause(ledger: Ledger, device: Device, asked: Ask, now_s: float, effects: list[Effect]) -> None:
    """Hand a device over: whoever is on it leaves, after what it runs or when its drain time is over."""
    name = device.spec.name
    device.pause_asks.append(asked)
    if not device.paused:
        effects.append(Tell("paused", None, f"{name} is handed over; models that need it wait until it is resumed"))
    device.paused = True
    for worker in list(ledger.workers.values()):
        if worker.placement.device_bytes.get(name):
            if worker.state not in LEAVING_STATES:
                effects.append(Tell("unloading", worker.model_id, f"{worker.model_id!r} leaves: {name} is handed over"))
            leave(ledger, worker, Departure("paused", deadline_s=now_s + worker.spec.drain_s), now_s, effects)


def resume(device: Device, asked: Ask, effects: list[Effect]) -> None:
    """Take a device back. Who still waits for it to be handed over is answered, too: it no longer will be."""
    if device.paused:
        effects.append(Tell("resumed", None, f"{device.spec.name} may be used again"))
    device.paused = False
    effects += [Answer(one.id, None) for one in (*device.pause_asks, asked)]
    device.pause_asks.clear()


def answer_pauses(ledger: Ledger, effects: list[Effect]) -> None:
    """Tell who asked for a device once nothing of ours is on it, its memory seen back."""
    for name, device in ledger.devices.items():
        if device.pause_asks and ledger.charged_bytes(name) == 0:
            effects += [Answer(one.id, None) for one in device.pause_asks]
            device.pause_asks.clear()
