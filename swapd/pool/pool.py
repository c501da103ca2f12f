"""The shell around the core: one inbox, one loop, effects become tasks, `async with pool.lease(request)`.

Owns the ledger and every task; `crew` has the worker processes. All that happens reaches the core as an
event through `post`; all that must be done comes out of `step`. Must never decide anything itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from backends import control
from backends.base import Backend
from swapd.config.schema import Config, Model
from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.audit import Audit
from swapd.core.ledger import Ledger
from swapd.core.replicas import next_may_load
from swapd.core.scheduler import step
from swapd.core.spec import RAM
from swapd.core.waking import is_doubtful
from swapd.errors import UnknownDeviceError, UnknownModelError
from swapd.pool import catalog, devices
from swapd.pool.asks import Asks
from swapd.pool.crew import Crew
from swapd.pool.entries import Entries
from swapd.pool.in_force import InForce
from swapd.pool.inbox import Inbox, Job, closed
from swapd.pool.journal import Journal
from swapd.pool.learned import Store
from swapd.pool.lease import Lease, Place, Ticket, TokenCounts
from swapd.pool.listener import Listener
from swapd.pool.metering import Metering
from swapd.pool.places import Places
from swapd.pool.refusals import error_for
from swapd.pool.ring import Ring
from swapd.pool.routes import Routes
from swapd.pool.snapshot import in_flight, snapshot
from swapd.pool.status import (
    DeviceStatus,
    Happening,
    ListedModel,
    ModelStatus,
    Outcome,
    RequestEnded,
    RequestStatus,
    Status,
)

log = structlog.get_logger()

HAPPENINGS = 500


class Pool:
    """Everything between a ticket and a worker. Implements `swapd.pool.door.Door`.

    `run` must be running for anything else to work; it returns after `shutdown` once every worker is gone.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        machine: devices.Machine,
        store: Store,
        runtime_dir: Path,
        listener: Listener,
        version: str,
    ) -> None:
        self._backends = backends
        self._machine = machine
        self._store = store
        self._listener = listener
        self._version = version
        self._loop = asyncio.get_running_loop()
        self._ledger = Ledger()
        self._audit = Audit(self._ledger)
        self._inbox = Inbox()
        self._tasks = asyncio.TaskGroup()
        self._timer: asyncio.TimerHandle | None = None
        names = [device.name for device in machine.devices]
        self._entries = Entries(backends, names, store.lesson, self._inbox.do, self._own)
        self._metering = Metering(
            machine, backends, store, self._ledger, self._entries, lambda: self._crew.pids(), self.post, self._inbox.do
        )
        self._crew = Crew(
            backends,
            runtime_dir,
            self._entries,
            self._metering,
            lambda: machine.free_now()[RAM].free_bytes,
            self.post,
            self._book,
            self._own,
        )
        self._in_force = InForce(
            self._entries, backends, machine, store, self._crew.keep_outputs, self._inbox, self._loop.time
        )
        self._happenings: Ring[Happening] = Ring(HAPPENINGS)
        self._grants: dict[str, asyncio.Future[Lease]] = {}
        self._journal = Journal(self._loop.time, time.time)
        self._asks = Asks(self._inbox)
        self.routes = Routes(self._ledger, self._entries, self._loop.time)
        self._places = Places(self._ledger, self._crew.load_progress)
        self._sequence = 0

    def __repr__(self) -> str:
        return f"<Pool {self._ledger!r}>"

    # -- the loop ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take events from the inbox, one at a time, until a shutdown is complete."""
        try:
            async with self._tasks:
                while not (self._ledger.closing and not self._ledger.workers and not self._ledger.sleepers):
                    self._take(await self._inbox.get())
                self._close()
        finally:
            self._close()

    def _close(self) -> None:
        """No event is taken from here on: whoever waits for one to be is told."""
        if self._timer is not None:
            self._timer.cancel()
        self._inbox.close()
        self._asks.close()
        for grant in self._grants.values():
            if not grant.done():
                grant.set_exception(closed())

    def post(self, event: ev.Event) -> None:
        """Put an event into the inbox. Never waits: who posts is bounded by requests, workers and timers."""
        self._inbox.put(event)

    def _take(self, item: ev.Event | Job) -> None:
        event = item.make() if isinstance(item, Job) else item
        if isinstance(event, ev.WorkerExited | ev.WorkerAsleep):
            correction = self._metering.ended(event)
            if correction is not None:
                self._step(correction)
        if isinstance(event, ev.WorkerAsleep):
            self._crew.asleep(event.worker_id)
        self._step(event)
        # Not before: effects of earlier events may still have named it.
        if isinstance(event, ev.WorkerExited):
            self._crew.forget(event.worker_id)
        elif isinstance(event, ev.SleeperExited):
            self._crew.forget_sleeper(event.sleeper_id)
        if isinstance(item, Job):
            item.finish()

    def _step(self, event: ev.Event) -> None:
        effects = step(self._ledger, event, self._loop.time())
        self._audit.look()
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: ef.Effect) -> None:
        match effect:
            case ef.Grant():
                self._grant(effect)
            case ef.Reject(request_id, refusal):
                grant = self._grants.get(request_id)
                if grant is not None and not grant.done():
                    grant.set_exception(error_for(refusal))
            case ef.Answer(ask_id, refusal):
                self._asks.answer(ask_id, refusal)
            case ef.Launch():
                self._crew.launch(effect)
            case ef.Stop():
                self._crew.stop(effect)
            case ef.StopSleeper(sleeper_id):
                self._crew.stop_sleeper(sleeper_id)
            case ef.StartSpare(kind, number):
                self._crew.spares.start(kind, number)
            case ef.StopSpare(kind):
                self._crew.spares.stop(kind)
            case ef.ReadAhead():
                self._crew.read_ahead(effect)
            case ef.StopReadAhead(model_id):
                self._crew.read_aheads.stop(model_id)
            case ef.Sample(device):
                self._own(self._metering.sample(device), f"sample {device}")
            case ef.SetTimer(at_s):
                self._set_timer(at_s)
            case ef.Tell(kind, model_id, message):
                log.info(message, kind=kind, model=model_id)
                self._happenings.add(Happening(at=time.time(), kind=kind, model=model_id, message=message))
            case ef.ReportLoad(model_id, outcome, load_s):
                self._listener.load_ended(model_id, outcome, load_s)
                if outcome == "ready":
                    self._metering.loaded(model_id)
            case ef.ReportDeparture(model_id, reason, evicted):
                self._listener.worker_left(model_id, reason, evicted=evicted)

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(work, name=name)

    def _set_timer(self, at_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if at_s is None else self._loop.call_at(at_s, self.post, ev.TimerFired())

    async def heartbeat(self) -> None:
        """Return once the loop has taken an event that was posted now: proof that scheduling moves."""
        await self._inbox.do(ev.TimerFired)

    # -- workers -----------------------------------------------------------------------------------------------

    def _book(self, usage: control.Usage) -> None:
        """A worker counted a request's tokens: tell the metrics, and charge the client."""
        ticket = self._journal.counted(usage)
        if ticket is None:
            return
        model_id = ticket.model_id
        self._listener.tokens_served(model_id, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        tokens = usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens
        if ticket.counted is not None:
            ticket.counted(tokens)
        self.post(ev.TokensServed(model_id, ticket.client, tokens, usage.request_id, usage.completion_tokens))

    # -- requests ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(self, ticket: Ticket) -> AsyncIterator[Lease]:
        """See `Door.lease`."""
        await self._refresh_before_load(ticket.model_id)
        if self._inbox.closed:
            raise closed()
        if ticket.model_id in self._entries.by_id:
            catalog.require(self._entries.by_id[ticket.model_id], ticket.needs, ticket.senses)
        request_id = self._unique(ticket.request_id)
        grant: asyncio.Future[Lease] = self._loop.create_future()
        self._grants[request_id] = grant
        self._journal.arrived(request_id, ticket)
        outcome: Outcome = "failed"
        self.post(
            ev.RequestArrived(
                request_id,
                ticket.model_id,
                ticket.client,
                ticket.priority,
                ticket.prompt_tokens,
                ticket.answer_limit,
                ticket.weight,
                ticket.keep_alive_s,
                ticket.may_load,
            )
        )
        try:
            lease = await grant
            self._listener.queue_left(ticket.model_id, lease.waited_s)
            self._journal.granted(request_id, lease.waited_s)
            yield lease
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled"
            self.post(ev.RequestCancelled(request_id))
            raise
        except BaseException:
            self.post(ev.RequestFinished(request_id, ok=False))
            raise
        else:
            outcome = "finished"
            self.post(ev.RequestFinished(request_id, ok=True))
        finally:
            self._journal.left(request_id, outcome)
            del self._grants[request_id]

    async def _refresh_before_load(self, model_id: str) -> None:
        """Look again at a model's file when a load may follow.

        What the ledger says here saves work and gates nothing: the core decides from the inspection that is current
        when the request arrives.
        """
        if not self._inbox.closed and next_may_load(self._ledger, model_id):
            await self._entries.refresh(model_id)

    def _unique(self, request_id: str) -> str:
        """Clients choose request ids and may choose one that is in use; the ledger's are unique."""
        if request_id not in self._grants:
            return request_id
        self._sequence += 1
        return f"{request_id}.{self._sequence}"

    def _grant(self, effect: ef.Grant) -> None:
        grant = self._grants.get(effect.request_id)
        if grant is None or grant.done():
            return
        grant.set_result(self._crew.lease(effect.request_id, effect.worker_id, effect.waited_s))

    def answer_moved(self, lease: Lease, *, began: bool) -> None:
        self._crew.answer_moved(lease, began=began)

    def answer_counted(self, lease: Lease, counts: TokenCounts) -> None:
        usage = (lease.request_id, counts.prompt_tokens, counts.cached_tokens, counts.completion_tokens)
        self._book(control.Usage(*usage))

    def answer_broke(self, lease: Lease) -> None:
        self._crew.answer_broke(lease)

    def place(self, request_id: str) -> Place | None:
        return self._places.of(request_id, self._loop.time())

    def in_flight(self) -> Sequence[RequestStatus]:
        return in_flight(self._ledger, self._loop.time())

    # -- people ------------------------------------------------------------------------------------------------

    def resolve(self, name: str) -> Model:
        return self.routes.model(name)

    def listed(self) -> Sequence[ListedModel]:
        return self.routes.listed()

    def listed_as(self, name: str) -> ListedModel:
        return self.routes.listed_as(name)

    def ready(self) -> bool:
        return not self._ledger.closing

    async def load(self, model_id: str) -> ModelStatus:
        await self._refresh_before_load(model_id)
        await self._asks.ask(lambda ask_id: ev.LoadAsked(ask_id, model_id))
        return self._model_status(model_id)

    async def unload(self, model_id: str) -> ModelStatus:
        await self._asks.ask(lambda ask_id: ev.UnloadAsked(ask_id, model_id))
        return self._model_status(model_id)

    async def pin(self, model_id: str, *, pinned: bool) -> ModelStatus:
        await self._in_force.pin(model_id, pinned=pinned)
        return self._model_status(model_id)

    def keep(self, model_id: str, keep_alive_s: float) -> None:
        self.post(ev.KeepAliveAsked(model_id, keep_alive_s))

    async def pause(self, device: str) -> DeviceStatus:
        if device in {one.name for one in self._machine.devices}:
            self._store.keep_paused(device, paused=True)
        await self._asks.ask(lambda ask_id: ev.PauseAsked(ask_id, device))
        return self._device_status(device)

    async def resume(self, device: str) -> DeviceStatus:
        self._store.keep_paused(device, paused=False)
        await self._asks.ask(lambda ask_id: ev.ResumeAsked(ask_id, device))
        return self._device_status(device)

    def doubts_devices(self) -> bool:
        """Whether the machine's devices had better be looked for again, see `swapd.pool.rediscovery`."""
        return is_doubtful(self._ledger, self._loop.time())

    def logs(self, model_id: str) -> Sequence[str]:
        return self._crew.output(model_id).newest()

    def follow_logs(self, model_id: str) -> AsyncGenerator[str, None]:
        return self._crew.output(model_id).follow()

    def happenings(self) -> AsyncGenerator[Happening, None]:
        return self._happenings.follow()

    def requests_ended(self) -> AsyncGenerator[RequestEnded, None]:
        return self._journal.follow()

    def status(self) -> Status:
        now_s = self._loop.time()
        return snapshot(
            self._ledger,
            self._entries.by_id,
            self._crew.facts(),
            self._machine.free_now(),
            self._metering.learned,
            self._in_force.status(),
            now_s,
            self._version,
        )

    def _model_status(self, model_id: str) -> ModelStatus:
        for model in self.status().models:
            if model.id == model_id:
                return model
        raise UnknownModelError(f"model {model_id!r} was removed from the configuration")

    def _device_status(self, name: str) -> DeviceStatus:
        for device in self.status().devices:
            if device.name == name:
                return device
        raise UnknownDeviceError(f"device {name!r} is gone")

    # -- configuration -----------------------------------------------------------------------------------------

    def config(self) -> Config:
        """The configuration in force."""
        return self._entries.config

    async def configure(self, config: Config) -> None:
        await self._in_force.configure(config)

    async def switch_profile(self, name: str | None) -> None:
        await self._in_force.switch_profile(name)

    def keep_config(self, error: str) -> None:
        self._in_force.refused(error)

    def shutdown(self) -> None:
        """Refuse what waits, let run what runs until its drain time is over, stop every worker."""
        self.post(ev.ShutdownAsked())
