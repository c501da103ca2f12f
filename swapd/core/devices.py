"""What devices show and what follows from it: memory that comes back, what others hold, pauses, when to ask again.

Owns the ledger's `Device` and `Settling` records. Who leaves for others or for a cut budget is `swapd.core.pressure`'s
to say, what is placed where `room`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from swapd.core.departures import leave
from swapd.core.effects import Answer, Effect, Sample, Tell
from swapd.core.events import DevicesChanged, MemorySampled
from swapd.core.ledger import Ledger
from swapd.core.records import (
    LEAVING_STATES,
    LOADING_STATES,
    SERVING_STATES,
    WATCH_EVERY_S,
    Ask,
    Departure,
    Device,
    Settling,
    Sleeper,
    Worker,
)
from swapd.core.spec import RAM, DeviceSpec, shared_memories

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
    unexplained = _unexplained_bytes(ledger, device, event)
    was_sampled = device.sampled_at_s is not None
    device.free_bytes, device.sampled_at_s, device.silent_since_s = event.free_bytes, now_s, None
    if device.spec.metered and was_sampled and unexplained is not None:
        _note_accounted(ledger, event.device, unexplained - device.others_bytes)
    else:
        _note_returned(ledger, event)
    ledger.note_release()
    if unexplained is not None and not any(entry.device == event.device for entry in ledger.settling):
        device.others_bytes = max(0, unexplained)


def _unexplained_bytes(ledger: Ledger, device: Device, event: MemorySampled) -> int | None:
    """What is neither free nor had by a worker that is there; None while that cannot be told.

    A worker that has taken more than was reserved for it has what is over from others. A driver that does not name
    one that has loaded names none (it counts processes outside a container), and then each is taken to have what was
    reserved for it; nothing is known while one that is not named may have taken only a part.
    """
    name, held = event.device, event.held_bytes or {}
    on_it = [worker for worker in ledger.workers.values() if worker.placement.device_bytes.get(name)]
    unnamed = [worker for worker in on_it if worker.id not in held]
    tells = event.held_bytes is not None and not any(worker.state in SERVING_STATES for worker in unnamed)
    if any(worker.state in LOADING_STATES for worker in unnamed) and not (tells and held):
        return None
    ours = sum(_held_bytes(ledger, worker, name, held if tells else None) for worker in on_it)
    ours += ledger.spare_bytes if name == RAM else 0
    ours += sum(_kept_bytes(one, name, held if tells else None) for one in ledger.sleepers.values())
    return device.spec.total_bytes - event.free_bytes - ours


def _held_bytes(ledger: Ledger, worker: Worker, name: str, held: Mapping[int, int] | None) -> int:
    charged_bytes = worker.placement.device_bytes[name]
    if held is None:
        return charged_bytes
    # What an integrated GPU holds for the worker is no part of the process as the kernel counts it.
    shared_bytes = sum(
        worker.placement.device_bytes.get(gpu, 0)
        for gpu, memory in shared_memories(device.spec for device in ledger.devices.values()).items()
        if memory == name
    )
    return min(charged_bytes, held.get(worker.id, 0) + shared_bytes)


def _kept_bytes(sleeper: Sleeper, name: str, held: Mapping[int, int] | None) -> int:
    """What a sleeper has beside its worker; of one that is not named, what is charged."""
    charged_bytes = sleeper.charged_bytes(name)
    if sleeper.worker_id is None:
        return charged_bytes if held is None or sleeper.id not in held else min(charged_bytes, held[sleeper.id])
    if held is None or sleeper.worker_id not in held:
        return charged_bytes
    return min(charged_bytes, max(0, held[sleeper.worker_id] - sleeper.placed_bytes(name)))


def _note_accounted(ledger: Ledger, name: str, outstanding: int) -> None:
    """Bytes are back when what is still out beyond the others' is accounted for by the rest, the largest last."""
    waiting = sorted((entry for entry in ledger.settling if entry.device == name), key=lambda one: one.size_bytes)
    rest = sum(entry.size_bytes for entry in waiting)
    for entry in waiting:
        rest -= entry.size_bytes
        if outstanding > rest + (1 - RETURNED_SHARE) * entry.size_bytes:
            rest += entry.size_bytes
        else:
            ledger.settling.remove(entry)


def _note_returned(ledger: Ledger, event: MemorySampled) -> None:
    """Without an account: bytes are back when so many more are free than before the process went."""
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


def ask_samples(ledger: Ledger, watched: Collection[str], now_s: float, effects: list[Effect]) -> None:
    """Ask every device whose time has come. Each is asked as often as there is a reason to, and else never.

    `watched` are those that models which wait for room may be placed on.
    """
    for name, device in ledger.devices.items():
        at_s = _sample_at_s(ledger, device, watched, now_s)
        if at_s is not None and now_s >= at_s:
            device.asked_at_s = now_s
            if device.silent_since_s is None:
                device.silent_since_s = now_s
            effects.append(Sample(name))


def _sample_at_s(ledger: Ledger, device: Device, watched: Collection[str], now_s: float) -> float | None:
    """When to ask it next; None lets it sleep. Not after `now_s` means now."""
    every_s = _sample_every_s(ledger, device, watched)
    if every_s is None:
        return None
    return now_s if device.asked_at_s is None else device.asked_at_s + every_s


def _sample_every_s(ledger: Ledger, device: Device, watched: Collection[str]) -> float | None:
    name = device.spec.name
    if any(entry.device == name for entry in ledger.settling):
        return SAMPLE_EVERY_S * device.slowness
    if not device.spec.metered or device.is_closed or ledger.closing:
        return None
    if name in watched:
        return WATCH_EVERY_S * device.slowness
    return GUARD_EVERY_S if ledger.charged_bytes(name) and not device.spec.slow_meter else None


def device_deadlines(ledger: Ledger, watched: Collection[str], now_s: float) -> Iterator[float]:
    """When a device has to be looked at again."""
    for entry in ledger.settling:
        yield entry.until_s
    for device in ledger.devices.values():
        at_s = _sample_at_s(ledger, device, watched, now_s)
        if at_s is not None:
            yield at_s


# -- memory that comes back -----------------------------------------------------------------------------------------


def take_out(
    ledger: Ledger, worker: Worker, now_s: float, *, settles: bool, kept_bytes: Mapping[str, int] | None = None
) -> None:
    """Free the bytes of a worker that was reaped, or sleeps and keeps some.

    One whose process never began to load had none on a GPU to give back.
    """
    ledger.remove_worker(worker)
    for name, placed_bytes in worker.placement.device_bytes.items():
        device = ledger.devices[name]
        size_bytes = placed_bytes - (kept_bytes or {}).get(name, 0)
        if settles and device.spec.settles and size_bytes > 0:
            ledger.settling.append(Settling(name, size_bytes, device.free_bytes, now_s + SETTLE_S))
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
            listed[name] = DeviceSpec(name, gone.total_bytes, 0, gone.shares)
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
