"""Reads the meters, tells the core what they show, and learns from them what workers really take.

Owns the runs that are being watched. What it learns goes to the store and, through `Entries`, into the next estimate;
what is reserved for a worker that runs is not touched. Must never decide where anything goes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import msgspec
import structlog

from backends.base import Backend, ProbeError, ProbeResult
from swapd.core.events import Event, ExitKind, MemorySampled, ModelsChanged, WorkerAsleep, WorkerExited
from swapd.core.ledger import Ledger
from swapd.core.placement import describe
from swapd.core.records import SERVING_STATES
from swapd.core.spec import RAM, Placement, SplitMode
from swapd.errors import ShuttingDownError
from swapd.pool import sysfs
from swapd.pool.catalog import Entry, offload
from swapd.pool.devices import Machine
from swapd.pool.entries import Entries
from swapd.pool.learned import Store
from swapd.pool.measure import Run, Surplus, after_running_out, grown, probed_bytes, settled
from swapd.pool.meters import Meter, Reading
from swapd.pool.probes import run_probe
from swapd.pool.snapshot import Learned

log = structlog.get_logger()

PROBE_TIMEOUT_S = 60.0
MAX_CORRECTIONS = 3
"""By probes, before a worker is started all the same: what the engine says may depend on where its layers go."""


class Metering:
    """Watches workers through the machine's meters. `pids` gives the processes there are, `do` has an event made."""

    def __init__(
        self,
        machine: Machine,
        backends: Mapping[str, Backend],
        store: Store,
        ledger: Ledger,
        entries: Entries,
        pids: Callable[[], Mapping[int, int]],
        post: Callable[[Event], None],
        do: Callable[[Callable[[], Event]], Awaitable[None]],
    ) -> None:
        self._machine = machine
        self._backends = backends
        self._store = store
        self._ledger = ledger
        self._entries = entries
        self._pids = pids
        self._post = post
        self._do = do
        self._runs: dict[int, Run] = {}
        self._sampling: set[str] = set()
        #: How often probes have corrected a model in a row, by the key of its workers.
        self._corrections: Counter[str] = Counter()

    # -- meters ------------------------------------------------------------------------------------------------

    async def sample(self, device: str) -> None:
        """Read a device's meter and post what it shows. While it has not answered, it is not asked again."""
        meter = self._machine.meters.get(device)
        if meter is None or device in self._sampling:
            return
        self._sampling.add(device)
        try:
            reading, by_worker = await asyncio.to_thread(_read, meter, self._pids())
        finally:
            self._sampling.discard(device)
        if reading is None:
            return
        told = None if by_worker is None else {**by_worker, **self._declared_bytes(device)}
        self._post(MemorySampled(device, reading.free_bytes, told))
        for model_id, launch_key in self._see(device, reading, by_worker):
            # A shutdown may come first; then the store alone knows.
            with suppress(ShuttingDownError):
                await self._do(partial(self._correction, model_id, launch_key))

    def _declared_bytes(self, device: str) -> Mapping[int, int]:
        """What workers have by their settings' word: a container's processes are no children of its worker."""
        workers = ((worker_id, self._ledger.workers.get(worker_id), run) for worker_id, run in self._runs.items())
        return {
            worker_id: worker.placement.device_bytes.get(device, 0)
            for worker_id, worker, run in workers
            if worker is not None and worker.state in SERVING_STATES and device in run.declared
        }

    def _see(self, device: str, reading: Reading, by_worker: Mapping[int, int] | None) -> list[tuple[str, str]]:
        """Note what loaded workers have; the models of which more is known now."""
        learned = []
        for worker_id, run in self._runs.items():
            worker = self._ledger.workers.get(worker_id)
            if worker is None or worker.state not in SERVING_STATES:
                continue
            if by_worker is None:
                run.see_difference(device, reading.free_bytes)
            elif worker_id in by_worker:
                run.see(device, by_worker[worker_id])
            run.served = run.served or bool(worker.running)
            lesson = self._store.lesson(run.launch_key)
            more = grown(lesson.surplus, run)
            is_more = run.is_fixed and run.most_bytes(lesson.measured_bytes) != lesson.measured_bytes
            if more != lesson.surplus or is_more:
                self._learn(run, more)
                learned.append((run.model_id, run.launch_key))
        return learned

    def _correction(self, model_id: str, launch_key: str) -> Event:
        changed = self._entries.correct(model_id, launch_key)
        return changed or ModelsChanged(tuple(entry.spec for entry in self._entries.by_id.values()))

    # -- probes ------------------------------------------------------------------------------------------------

    async def probe(self, entry: Entry, placement: Placement) -> str | None:
        """Ask the engine itself what a worker would take on GPUs, in the room that is reserved for that worker.

        A sentence if that is more than is known so far; the estimate is corrected then. None lets the worker start.
        """
        key = entry.spec.launch_key
        if not placement.devices or entry.formula is None or self._corrections[key] >= MAX_CORRECTIONS:
            return None
        result = await self._ask(entry, placement)
        if result is None:
            return None
        probed = probed_bytes(result)
        run = Run.of(key, key, placement, entry.formula, by_rows=entry.spec.split_mode is SplitMode.ROW, maps=False)
        if not self._takes_more(run, probed):
            self._corrections.pop(key, None)
            return None
        self._corrections[key] += 1
        with suppress(ShuttingDownError):
            await self._do(partial(self._correction, entry.spec.id, key))
        gpus = {name: probed[name] for name in placement.devices if name in probed}
        return (
            f"{entry.spec.id!r} takes more than was worked out by llama.cpp's own account, {describe(gpus)}; "
            "the estimate is corrected"
        )

    async def told(self, worker_id: int, device_bytes: Mapping[str, int]) -> None:
        """An engine that nobody can ask before says, once it has loaded, what it has allocated.

        That counts from the next load on, if it is more than was known.
        """
        run = self._runs.get(worker_id)
        if run is not None and self._takes_more(run, device_bytes):
            with suppress(ShuttingDownError):
                await self._do(partial(self._correction, run.model_id, run.launch_key))

    def _takes_more(self, run: Run, counted_bytes: Mapping[str, int]) -> bool:
        """Keep what an engine counts itself; whether that is more on GPUs than was known."""
        lesson = self._store.lesson(run.launch_key)
        beyond, more = run.probed_beyond_bytes(counted_bytes), lesson.surplus
        if beyond > max(0, more.gpu_bytes):
            more = replace(more, gpu_bytes=beyond)
        fresh = msgspec.structs.replace(lesson, surplus=more, probed_bytes=dict(counted_bytes))
        self._store.learn(run.launch_key, fresh)
        return more != lesson.surplus

    async def _ask(self, entry: Entry, placement: Placement) -> ProbeResult | None:
        model, backend = entry.model, self._backends[entry.model.backend]
        asked = (model.settings, offload(placement), model.env)
        key = await asyncio.to_thread(backend.probe_key, *asked)
        process = None if key is None else backend.probe(*asked)
        if key is None or process is None:
            return None
        known = self._store.probe(key)
        if known is not None:
            return known
        try:
            result = backend.read_probe(await asyncio.to_thread(run_probe, process, PROBE_TIMEOUT_S))
        except ProbeError as error:
            log.info("no probe; the formulas count", model=model.id, error=str(error))
            return None
        self._store.keep_probe(key, result)
        return result

    # -- runs --------------------------------------------------------------------------------------------------

    def launched(self, worker_id: int, entry: Entry, placement: Placement) -> None:
        """A worker is about to be started."""
        assert entry.formula is not None
        assert entry.inspection is not None
        for run in self._runs.values():
            # Somebody else comes: from here on a difference in free memory is not theirs alone.
            for device in placement.devices:
                run.free_before.pop(device, None)
        run = Run.of(
            entry.spec.id,
            entry.spec.launch_key,
            placement,
            entry.formula,
            by_rows=entry.spec.split_mode is SplitMode.ROW,
            maps=entry.inspection.maps_weights,
            is_fixed=entry.fixed is not None,
        )
        run.declared = frozenset(entry.inspection.declared_bytes)
        for device in placement.devices:
            free_bytes = self._ledger.devices[device].free_bytes
            alone = not any(entry.device == device for entry in self._ledger.settling)
            if free_bytes is not None and alone and not self._is_loading(device, worker_id):
                run.free_before[device] = free_bytes
        self._runs[worker_id] = run

    def loaded(self, model_id: str) -> None:
        """One of a model's workers is ready: keep how long its loads take."""
        model = self._ledger.models[model_id]
        lesson = self._store.lesson(model.spec.launch_key)
        self._store.learn(model.spec.launch_key, msgspec.structs.replace(lesson, load_s=model.usual_load_s))

    def _is_loading(self, device: str, worker_id: int) -> bool:
        return any(
            worker.id != worker_id and worker.state not in SERVING_STATES and worker.placement.device_bytes.get(device)
            for worker in self._ledger.workers.values()
        )

    def ended(self, event: WorkerExited | WorkerAsleep) -> Event | None:
        """A worker is gone, or sleeps. What the core must hear before that, if more is known of its model now."""
        run = self._runs.pop(event.worker_id, None)
        if run is None:
            return None
        for other in self._runs.values():
            for device in run.placement.devices:
                other.free_before.pop(device, None)
        known = self._store.lesson(run.launch_key).surplus
        surplus = known
        if isinstance(event, WorkerExited) and event.kind is ExitKind.OUT_OF_MEMORY:
            surplus = self._after_running_out(run, event.device, known)
            run.ran_out = True
        else:
            surplus = settled(known, run)
        self._learn(run, surplus)
        news = surplus != known or run.is_fixed
        return self._entries.correct(run.model_id, run.launch_key) if news else None

    def _after_running_out(self, run: Run, device: str | None, known: Surplus) -> Surplus:
        """More, if the GPU had what was reserved; else others have taken it, and the estimate was not wrong."""
        if device is None or device == RAM or device not in run.placement.devices:
            return known
        reserved, before = run.placement.device_bytes[device], run.free_before.get(device)
        return after_running_out(known, reserved) if before is not None and before >= reserved else known

    def _learn(self, run: Run, surplus: Surplus) -> None:
        lesson = self._store.lesson(run.launch_key)
        measured = run.most_bytes(lesson.measured_bytes)
        fresh = msgspec.structs.replace(lesson, surplus=surplus, measured_bytes=measured)
        if fresh != lesson:
            self._store.learn(run.launch_key, fresh)

    def learned(self, entry: Entry) -> Learned:
        """What the model's workers were seen to take, those that run or else the last one, and were said to."""
        lesson = self._store.lesson(entry.spec.launch_key)
        runs = (run for run in reversed(self._runs.values()) if run.launch_key == entry.spec.launch_key)
        measured = next((run.seen_bytes for run in runs if run.seen_bytes), lesson.measured_bytes)
        return Learned(measured, lesson.probed_bytes)


def _read(meter: Meter, workers: Mapping[int, int]) -> tuple[Reading | None, dict[int, int] | None]:
    """What a meter shows, and what each worker has of it, with all its processes. Blocks."""
    owners = {one: workers[pid] for pid in workers for one in sysfs.family(sysfs.PROC, pid)}
    reading = meter.read(tuple(owners))
    if reading is None or reading.held_bytes is None:
        return reading, None
    by_worker: Counter[int] = Counter()
    for pid, size_bytes in reading.held_bytes.items():
        by_worker[owners[pid]] += size_bytes
    return reading, dict(by_worker)
