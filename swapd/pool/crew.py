"""The workers there are, here and elsewhere: made, described, read ahead for, told to stop, and what they print.

Owns them, the spares they are made of and their output. Must never decide that one starts or stops: the core does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from backends import control
from backends.base import Backend, LaunchOrder, LaunchSpec
from swapd.config.schema import Model
from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.departures import STOP_GRACE_S
from swapd.pool import catalog
from swapd.pool.entries import Entries
from swapd.pool.lease import Lease
from swapd.pool.metering import Metering
from swapd.pool.peer import PeerWorker
from swapd.pool.ports import Ports
from swapd.pool.read_ahead import ReadAheads
from swapd.pool.ring import Ring
from swapd.pool.snapshot import WorkerFacts
from swapd.pool.spares import SpareProcess, Spares
from swapd.pool.worker import WorkerProcess

OUTPUT_LINES = 1_000


class Crew:
    """Performs what the core decides about workers. `own` takes a task into the pool's care."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        runtime_dir: Path,
        entries: Entries,
        metering: Metering,
        free_ram_bytes: Callable[[], int],
        post: Callable[[ev.Event], None],
        book: Callable[[control.Usage], None],
        own: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._backends = backends
        self._runtime_dir = runtime_dir
        self._entries = entries
        self._metering = metering
        self._post = post
        self._book = book
        self._own = own
        self._workers: dict[int, WorkerProcess | PeerWorker] = {}
        self._sleepers: dict[int, WorkerProcess] = {}
        self._outputs: dict[str, Ring[str]] = {}
        self._ports = Ports()
        self.spares = Spares(backends, post, own)
        self.read_aheads = ReadAheads(free_ram_bytes, own)

    def launch(self, effect: ef.Launch) -> None:
        """Begin a worker's life. Exactly one `WorkerExited` is posted at its end."""
        entry = self._entries.by_id[effect.model_id]
        assert entry.inspection is not None
        if entry.inspection.elsewhere:
            self._visit(entry, effect)
            return
        if effect.sleeper is not None:
            self._wake(entry, effect, effect.sleeper)
            return
        self._metering.launched(effect.worker_id, entry, effect.placement)
        worker = WorkerProcess(
            effect.worker_id,
            effect.model_id,
            self._runtime_dir / f"worker-{effect.worker_id}.sock",
            self.output(effect.model_id),
            self._post,
            self._book,
            self._told_of_buffers,
            reports_usage=entry.inspection.reports_usage,
            sleep=entry.inspection.sleep,
        )
        self._workers[effect.worker_id] = worker
        spare = self.spares.take(entry.model.backend) if effect.from_spare else None
        self._own(self._start(worker, entry, effect, spare), f"worker {effect.worker_id} of {effect.model_id}")

    def _told_of_buffers(self, worker_id: int, device_bytes: Mapping[str, int]) -> None:
        self._own(self._metering.told(worker_id, device_bytes), f"buffers of worker {worker_id}")

    def _wake(self, entry: catalog.Entry, effect: ef.Launch, sleeper_id: int) -> None:
        """Have a sleeper be the worker."""
        worker = self._sleepers.pop(sleeper_id)
        if not worker.become(effect.worker_id):
            why = f"the sleeping process of model {effect.model_id!r} has ended"
            self._post(ev.WorkerExited(effect.worker_id, ev.ExitKind.FAILED, why))
            return
        self._workers[effect.worker_id] = worker
        self._metering.launched(effect.worker_id, entry, effect.placement)
        self._own(worker.wake(), f"wake worker {effect.worker_id} of {effect.model_id}")

    def _visit(self, entry: catalog.Entry, effect: ef.Launch) -> None:
        """Begin with a server elsewhere."""
        assert entry.inspection is not None
        model = entry.model
        silence_s = (entry.inspection.first_token_timeout_s, model.stall_timeout_s)
        worker = PeerWorker(effect.worker_id, model.id, self.output(model.id), silence_s, self._post)
        self._workers[effect.worker_id] = worker
        backend = self._backends[model.backend]
        self._own(worker.run(partial(backend.peer, model.settings)), f"worker {effect.worker_id} of {model.id}")

    async def _start(
        self, worker: WorkerProcess, entry: catalog.Entry, effect: ef.Launch, spare: SpareProcess | None
    ) -> None:
        """See the worker through to its end, unless the engine's own account shows that too little was reserved."""
        try:
            short = await self._metering.probe(entry, effect.placement)
            if short is not None:
                worker.give_up(ev.ExitKind.UNDERESTIMATED, short)
                return
            if spare is not None and await spare.is_stale():
                spare.stop()
            with self._port(entry) as port:
                await worker.run(partial(self._describe, entry.model, worker, effect, port), spare)
        finally:
            if spare is not None:
                spare.stop()

    @contextmanager
    def _port(self, entry: catalog.Entry) -> Iterator[Callable[[], int]]:
        """Gives a port when it is asked for, to a worker that wants one."""
        given: list[int] = []

        def take() -> int:
            if entry.inspection is not None and entry.inspection.wants_port:
                given.append(self._ports.take())
            return given[-1] if given else 0

        try:
            yield take
        finally:
            for port in given:
                self._ports.give_back(port)

    def _describe(
        self, model: Model, worker: WorkerProcess, effect: ef.Launch, port: Callable[[], int], control_fd: int
    ) -> LaunchSpec:
        order = LaunchOrder(
            model_id=model.id,
            socket_path=worker.socket_path,
            control_fd=control_fd,
            offload=catalog.offload(effect.placement),
            portable=effect.portable,
            proven=effect.proven,
            env=model.env,
            port=port(),
        )
        return self._backends[model.backend].launch(model.settings, order)

    def stop(self, effect: ef.Stop) -> None:
        """Terminate it, and kill it after the grace; or have it sleep."""
        worker = self._workers[effect.worker_id]
        if not effect.sleep:
            worker.stop(effect.grace_s)
            return
        assert isinstance(worker, WorkerProcess), "nothing of a server elsewhere is here to sleep"
        self._own(worker.fall_asleep(effect.grace_s), f"sleep of worker {effect.worker_id} of {worker.model_id}")

    def asleep(self, worker_id: int) -> None:
        """It is no worker any more, but sleeps."""
        worker = self._workers.pop(worker_id)
        assert isinstance(worker, WorkerProcess)
        self._sleepers[worker_id] = worker

    def stop_sleeper(self, sleeper_id: int) -> None:
        """Terminate one that sleeps, or is about to."""
        (self._sleepers.get(sleeper_id) or self._workers[sleeper_id]).stop(STOP_GRACE_S)

    def forget_sleeper(self, sleeper_id: int) -> None:
        """It has ended, and no effect names it any more, or it was told to wake and could not."""
        self._sleepers.pop(sleeper_id, None)

    def forget(self, worker_id: int) -> None:
        """It has ended, and no effect names it any more."""
        self._workers.pop(worker_id, None)

    def read_ahead(self, effect: ef.ReadAhead) -> None:
        """Have a model's files in the page cache before its worker asks for them."""
        entry = self._entries.by_id[effect.model_id]
        files = self._backends[entry.model.backend].files(entry.model.settings)
        self.read_aheads.start(effect.model_id, files, catalog.unmapped_bytes(entry, effect.placement))

    # -- what is known of them ---------------------------------------------------------------------------------

    def lease(self, request_id: str, worker_id: int, waited_s: float) -> Lease:
        """A request's place at a worker."""
        worker = self._workers[worker_id]
        return Lease(
            request_id,
            worker.model_id,
            worker_id,
            worker.address,
            waited_s,
            worker.lost,
            reports_usage=worker.reports_usage,
            patience=worker.patience,
        )

    def answer_moved(self, lease: Lease, *, began: bool) -> None:
        """See `Door.answer_moved`."""
        worker = self._workers.get(lease.worker_id)
        if isinstance(worker, PeerWorker):
            worker.answer_moved()
        elif worker is not None:
            worker.answer_moved(lease.request_id, began=began)

    def answer_broke(self, lease: Lease) -> None:
        """See `Door.answer_broke`."""
        worker = self._workers.get(lease.worker_id)
        if isinstance(worker, PeerWorker):
            worker.answer_broke()

    def pids(self) -> Mapping[int, int]:
        """The processes there are, and the workers and sleepers they are."""
        everyone = (*self._workers.values(), *self._sleepers.values())
        return {worker.pid: worker.worker_id for worker in everyone if worker.pid is not None}

    def facts(self) -> Mapping[int, WorkerFacts]:
        """Of each worker and sleeper, for people."""
        everyone = (*self._workers.values(), *self._sleepers.values())
        return {one.worker_id: WorkerFacts(one.pid, one.load_progress) for one in everyone}

    def load_progress(self, worker_id: int) -> float | None:
        """From 0 to 1, if it is known."""
        worker = self._workers.get(worker_id)
        return worker.load_progress if worker is not None else None

    def output(self, model_id: str) -> Ring[str]:
        """The last lines that a model's workers have printed."""
        return self._outputs.setdefault(model_id, Ring(OUTPUT_LINES))

    def keep_outputs(self, model_ids: Collection[str]) -> None:
        """Forget what workers of other models have printed."""
        self._outputs = {key: ring for key, ring in self._outputs.items() if key in model_ids}
