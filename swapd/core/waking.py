"""A machine that has slept, and GPUs that are gone or come back: which workers leave, and what waits for what.

What a process has on a GPU may be dead after a suspend, and nothing shows it until it computes. An idle worker there is
no loss, so it leaves and is loaded anew when it is wanted, and one that sleeps in place of leaving ends. A busy one is
held to its deadlines, like any that hangs. A GPU that is not found again keeps its models waiting, as one that was
handed over does: what was meant to run on it is never run in RAM instead.
"""

from __future__ import annotations

from swapd.core.departures import leave
from swapd.core.effects import Effect, Tell
from swapd.core.events import DevicesFound
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.records import Departure, Worker
from swapd.core.sleepers import dismiss
from swapd.core.spec import RAM

DOUBT_S = 10.0
"""How long a device may not answer before it had better be looked for."""


def is_doubtful(ledger: Ledger, now_s: float) -> bool:
    """Whether a device that answers at once has not for so long: a GPU can be lost while the machine is awake."""
    return any(
        device.silent_since_s is not None and now_s - device.silent_since_s >= DOUBT_S
        for device in ledger.devices.values()
        if device.spec.metered and not device.spec.slow_meter
    )


def devices_found(ledger: Ledger, event: DevicesFound, now_s: float, effects: list[Effect]) -> None:
    """The machine's devices were looked for again, perhaps because it has slept."""
    if event.slept_s:
        effects.append(
            Tell("machine_slept", None, f"the machine slept for {event.slept_s:.0f} s; its devices were looked for")
        )
    for name, device in ledger.devices.items():
        lost = name != RAM and name not in event.present
        if lost and not device.lost:
            message = f"{name} is not found any more; models that need it wait until it is back"
            effects.append(Tell("device_lost", None, message))
        elif device.lost and not lost:
            effects.append(Tell("device_found", None, f"{name} is back"))
        device.lost = lost
    for sleeper in list(ledger.sleepers.values()) if event.slept_s else ():
        if any(name != RAM and sleeper.placed_bytes(name) for name in sleeper.placement.device_bytes):
            dismiss(ledger, sleeper, "what it keeps may not have outlived the machine's sleep", effects)
    for worker in list(ledger.workers.values()):
        if worker.departure is None or worker.departure.deadline_s is None:
            _judge(ledger, worker, now_s, effects, slept=bool(event.slept_s))


def _judge(ledger: Ledger, worker: Worker, now_s: float, effects: list[Effect], *, slept: bool) -> None:
    gpus = [name for name, size_bytes in worker.placement.device_bytes.items() if name != RAM and size_bytes]
    gone = [name for name in gpus if ledger.devices[name].lost]
    if gone:
        why, departure = (
            f"{' and '.join(gone)} is gone",
            Departure("device_lost", deadline_s=now_s + worker.spec.drain_s),
        )
    elif slept and gpus and worker.state is WorkerState.READY and not worker.running:
        why, departure = (
            f"what it had on {' and '.join(gpus)} may not have outlived the machine's sleep",
            Departure("machine_slept"),
        )
    else:
        return
    effects.append(Tell("unloading", worker.model_id, f"{worker.model_id!r} leaves: {why}"))
    leave(ledger, worker, departure, now_s, effects)
