"""The ledger as people see it: pure translation into `swapd.pool.status`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

from msgspec.structs import replace

from backends.base import Inspection
from swapd.core.admission import expected_wait_s, newcomers_wait_s
from swapd.core.fairness import in_order
from swapd.core.idle import unload_in_s
from swapd.core.layout import Layout, parts
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.placement import place, preferred
from swapd.core.planner import hopeless
from swapd.core.records import SERVING_STATES, Model, Sleeper, Worker
from swapd.core.records import Device as LedgerDevice
from swapd.core.room import why_waiting
from swapd.core.spec import RAM, SplitMode
from swapd.pool.catalog import Entry, capabilities, modalities
from swapd.pool.devices import Device
from swapd.pool.status import (
    ConfigStatus,
    DeviceStatus,
    EvictionStatus,
    FootprintStatus,
    ListedModel,
    ModelStatus,
    RequestCounts,
    RequestStatus,
    Status,
    WorkerStatus,
)

MAX_IN_FLIGHT = 100
"""Waiting requests that are listed one by one, and running ones."""

#: The state that a model is said to be in is that of the worker which comes last here.
_ADVANCE = {
    state: rank
    for rank, state in enumerate(
        (
            WorkerState.GONE,
            WorkerState.STOPPING,
            WorkerState.DRAINING,
            WorkerState.LAUNCHING,
            WorkerState.LOADING,
            WorkerState.READY,
        )
    )
}


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned of one model, by device."""

    measured_bytes: Mapping[str, int]
    probed_bytes: Mapping[str, int]


class WorkerFacts:
    """What only the shell knows of a worker."""

    __slots__ = ("pid", "progress")

    def __init__(self, pid: int | None, progress: float | None) -> None:
        self.pid = pid
        self.progress = progress


def snapshot(
    ledger: Ledger,
    entries: Mapping[str, Entry],
    facts: Mapping[int, WorkerFacts],
    machine: Mapping[str, Device],
    learned: Callable[[Entry], Learned],
    config: ConfigStatus,
    now_s: float,
    version: str,
) -> Status:
    """One consistent picture at `now_s`."""
    counters = ledger.counters
    return Status(
        devices=tuple(
            DeviceStatus(
                name=name,
                total_bytes=device.spec.total_bytes,
                budget_bytes=device.spec.budget_bytes,
                reserved_bytes=ledger.charged_bytes(name) + (ledger.spare_bytes if name == RAM else 0),
                free_bytes=_free_bytes(device, machine.get(name)),
                description=machine[name].description if name in machine else "",
                others_bytes=device.others_bytes,
                paused=device.paused,
                lost=device.lost,
                spare_bytes=ledger.spare_bytes if name == RAM else 0,
                shares=device.spec.shares,
            )
            for name, device in ledger.devices.items()
        ),
        models=tuple(
            model_status(ledger, model, entries[model.id], facts, learned(entries[model.id]), now_s)
            for model in ledger.models.values()
        ),
        config=config,
        requests=RequestCounts(
            accepted=counters.accepted,
            waiting=len(ledger.waiting),
            running=len(ledger.running),
            finished=counters.finished,
            failed=counters.failed,
            cancelled=counters.cancelled,
        ),
        version=version,
    )


def in_flight(ledger: Ledger, now_s: float) -> tuple[RequestStatus, ...]:
    """Requests one by one, `MAX_IN_FLIGHT` of each kind at most. Of a waiting queue, the first to be granted."""
    return (*islice(_waiting(ledger, now_s), MAX_IN_FLIGHT), *islice(_running(ledger, now_s), MAX_IN_FLIGHT))


def listed_model(ledger: Ledger, entry: Entry, now_s: float) -> ListedModel:
    """What a list of models has of one. Cheap: there may be a thousand."""
    serving = [worker for worker in ledger.workers_of(entry.model.id) if worker.state in SERVING_STATES]
    reserved = [
        (ledger.devices[name].spec, size) for one in serving for name, size in one.placement.device_bytes.items()
    ]
    unloads = [unload_in_s(ledger, worker, now_s) for worker in serving]
    listed = ListedModel(
        id=entry.model.id,
        aliases=entry.model.aliases,
        name=entry.model.name,
        description=entry.model.description,
        metadata=entry.model.metadata,
        state=_state(ledger, entry.model.id),
        size_bytes=sum(size for *_, size, _ in entry.identity or ()),
        modified_at=max((mtime_ns for *_, mtime_ns in entry.identity or ()), default=0) / 1e9,
        digest=sha256(entry.spec.launch_key.encode()).hexdigest(),
        # What a GPU takes of RAM is in RAM's figure already.
        reserved_bytes=sum(size for spec, size in reserved if spec.shares is None),
        reserved_gpu_bytes=sum(size for spec, size in reserved if spec.name != RAM),
        unload_in_s=None if None in unloads else max((one for one in unloads if one is not None), default=None),
    )
    return listed if entry.inspection is None else _inspected(listed, entry.inspection)


def _inspected(listed: ListedModel, inspection: Inspection) -> ListedModel:
    """With what the model's file says."""
    able = inspection.capabilities
    return replace(
        listed,
        n_ctx=inspection.n_ctx,
        input_modalities=modalities(able),
        capabilities=capabilities(able),
        architecture=inspection.architecture,
        parameters=inspection.parameters,
        quantization=inspection.quantization,
    )


def _state(ledger: Ledger, model_id: str) -> str:
    """That of the most advanced worker; one that merely stops is less than one that sleeps."""
    workers = ledger.workers_of(model_id)
    state = max((worker.state for worker in workers), key=_ADVANCE.__getitem__, default=None)
    if state is None or state is WorkerState.STOPPING:
        asleep = next(_sleepers(ledger, model_id), None)
        if asleep is not None:
            return asleep.state.value
    return "unloaded" if state is None else state.value


def _sleepers(ledger: Ledger, model_id: str) -> Iterator[Sleeper]:
    """Those of a model that are no workers."""
    return (one for one in ledger.sleepers.values() if one.model_id == model_id and one.worker_id is None)


def _waiting(ledger: Ledger, now_s: float) -> Iterator[RequestStatus]:
    for model in ledger.models.values():
        for position, request in enumerate(in_order(model), start=1):
            yield RequestStatus(
                id=request.id,
                model=model.id,
                client=request.client,
                priority=request.priority,
                state="waiting",
                waited_s=now_s - request.arrived_at_s,
                position=position,
                expected_wait_s=expected_wait_s(ledger, model, position, now_s),
            )


def _running(ledger: Ledger, now_s: float) -> Iterator[RequestStatus]:
    for request in ledger.running.values():
        yield RequestStatus(
            id=request.id,
            model=request.model_id,
            client=request.client,
            priority=request.priority,
            state="running",
            waited_s=request.granted_at_s - request.arrived_at_s,
            running_s=now_s - request.granted_at_s,
        )


def _free_bytes(device: LedgerDevice, found: Device | None) -> int:
    """RAM as it is now, a GPU as it was last read: it is not woken for a glance at it."""
    if device.free_bytes is not None and device.spec.name != RAM:
        return device.free_bytes
    return found.free_bytes if found is not None else 0


def model_status(
    ledger: Ledger,
    model: Model,
    entry: Entry,
    facts: Mapping[int, WorkerFacts],
    learned: Learned,
    now_s: float,
) -> ModelStatus:
    workers = list(ledger.workers_of(model.id))
    refusal = hopeless(ledger, model, now_s)
    inspection, eviction = entry.inspection, model.last_eviction
    return ModelStatus(
        id=model.id,
        state=_state(ledger, model.id),
        aliases=entry.model.aliases,
        backend=entry.model.backend,
        description=inspection.description if inspection is not None else "",
        n_ctx=inspection.n_ctx if inspection is not None else 0,
        slots=model.spec.slots,
        replicas=model.spec.replicas,
        input_modalities=modalities(inspection.capabilities) if inspection is not None else ("text",),
        pin=model.spec.pin,
        running=sum(len(worker.running) for worker in workers),
        waiting=len(model.waiting),
        loads=model.loads,
        load_s=model.load_s,
        last_used_s=None if model.last_used_s is None else now_s - model.last_used_s,
        footprint=_footprint(ledger, model, entry, workers, learned),
        last_eviction=None if eviction is None else EvictionStatus(ago_s=now_s - eviction.at_s, why=eviction.why),
        error=refusal.message if refusal is not None else model.last_error,
        waits=why_waiting(ledger, model, now_s),
        retry_in_s=refusal.retry_after_s if refusal is not None else None,
        expected_wait_s=newcomers_wait_s(ledger, model, now_s),
        workers=(
            *(_worker_status(ledger, worker, facts.get(worker.id)) for worker in workers),
            *(_sleeper_status(one, facts.get(one.id)) for one in _sleepers(ledger, model.id)),
        ),
    )


def _footprint(ledger: Ledger, model: Model, entry: Entry, workers: list[Worker], learned: Learned) -> FootprintStatus:
    if model.spec.costs is None or entry.formula is None or model.spec.elsewhere:
        return FootprintStatus()
    if workers:
        placement = workers[-1].placement
    else:
        room = ledger.budget_room(model)
        placement = place(model.spec, room) or preferred(model.spec, room)
    if entry.fixed is not None:
        declared = {name: size_bytes for name, size_bytes in entry.fixed.items() if size_bytes is not None}
        return FootprintStatus(
            estimated_bytes=dict(placement.device_bytes),
            measured_bytes=dict(learned.measured_bytes),
            formula_bytes=declared,
        )
    layout = Layout(
        placement.devices, placement.tensor_split, placement.n_cpu_moe, model.spec.split_mode is SplitMode.ROW
    )
    formula = parts(entry.formula, layout) if placement.n_gpu_layers <= entry.formula.layers else {}
    corrected = parts(model.spec.costs, layout) if formula else {}
    corrections = {name: part.total_bytes - formula[name].total_bytes for name, part in corrected.items()}
    return FootprintStatus(
        estimated_bytes=dict(placement.device_bytes),
        measured_bytes=dict(learned.measured_bytes),
        formula_bytes={name: part.total_bytes for name, part in formula.items()},
        probed_bytes=dict(learned.probed_bytes),
        correction_bytes={name: size_bytes for name, size_bytes in corrections.items() if size_bytes},
    )


def _worker_status(ledger: Ledger, worker: Worker, facts: WorkerFacts | None) -> WorkerStatus:
    return WorkerStatus(
        pid=facts.pid if facts is not None else None,
        state=worker.state.value,
        running=len(worker.running),
        reserved_bytes=dict(worker.placement.device_bytes),
        placement=worker.placement.why,
        shared_bytes=_shared_bytes(ledger, worker),
        progress=facts.progress if facts is not None else None,
        portable=worker.portable,
    )


def _sleeper_status(sleeper: Sleeper, facts: WorkerFacts | None) -> WorkerStatus:
    return WorkerStatus(
        pid=facts.pid if facts is not None else None,
        state=sleeper.state.value,
        running=0,
        reserved_bytes=dict(sleeper.held_bytes),
        placement="it sleeps; this is what it keeps",
    )


def _shared_bytes(ledger: Ledger, worker: Worker) -> int:
    pages = worker.pages
    others = (other for other in ledger.workers.values() if other is not worker)
    return pages.size_bytes if pages is not None and any(other.pages == pages for other in others) else 0
