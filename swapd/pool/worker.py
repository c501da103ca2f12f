"""One worker process's life: launch, listen, stop, reap. Every end is an event, never an exception.

Owns the process, its control channel and its output. It cannot outlive `run`: whatever ends that, the process
group is killed and the process reaped. Must never decide whether a worker should live.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import structlog

from backends import control
from backends.address import UnixAddress, WorkerAddress
from backends.base import LaunchSpec, Sleep
from swapd.core.events import (
    Event,
    ExitKind,
    SleeperExited,
    WorkerAsleep,
    WorkerExited,
    WorkerProgressed,
    WorkerReady,
    WorkerStarted,
)
from swapd.core.lifecycle import WorkerState
from swapd.pool import asking
from swapd.pool.asking import NotDoneError
from swapd.pool.failures import End, judge
from swapd.pool.lease import Patience
from swapd.pool.process import Started, start
from swapd.pool.ring import Ring
from swapd.pool.spares import SpareProcess

log = structlog.get_logger()

MAX_LINE_CHARS = 2_000
TAIL_LINES = 16
PROGRESS_EVERY_S = 0.25
"""How often the progress that answers show is told of."""
PIPE_CLOSE_S = 1.0
"""How long output may still come after the process has ended, if a grandchild holds the pipe."""


class Steps:
    """How long each step of a load took, by the times at which the next one began."""

    def __init__(self, now_s: float) -> None:
        self._began_s = {"start_s": now_s}

    def begin(self, name: str, now_s: float) -> None:
        """Beginning a step again is news of the same one."""
        self._began_s.setdefault(name, now_s)

    def end(self, now_s: float) -> dict[str, float]:
        """Seconds by step, from the order to start on."""
        times = [*self._began_s.values(), now_s]
        return {
            name: round(after - began, 4) for name, (began, after) in zip(self._began_s, pairwise(times), strict=True)
        }


class WorkerProcess:
    """A worker from the daemon's side. `run` is its whole life; `stop` asks for its end."""

    def __init__(
        self,
        worker_id: int,
        model_id: str,
        socket_path: Path,
        output: Ring[str],
        post: Callable[[Event], None],
        on_usage: Callable[[control.Usage], None],
        on_buffers: Callable[[int, Mapping[str, int]], None] = lambda _worker_id, _device_bytes: None,
        *,
        reports_usage: bool = True,
        sleep: Sleep | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.model_id = model_id
        self.socket_path = socket_path
        self.address: WorkerAddress = UnixAddress(socket_path)
        self.reports_usage = reports_usage
        self.sleep = sleep
        self.patience: Patience | None = None
        self.pid: int | None = None
        self.load_progress: float | None = None
        #: Resolves with a sentence once the process is gone.
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._output = output
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._post = post
        self._on_usage = on_usage
        self._on_buffers = on_buffers
        self._stop_grace_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._phase = WorkerState.LAUNCHING
        self._sleeps = False
        self._failure: control.Failed | None = None
        self._steps = Steps(self._now_s())
        self._moved_s = 0.0

    def answer_moved(self, request_id: str, *, began: bool) -> None:
        """A part of an answer has come, which is how the progress of a worker is seen that does not report it."""
        now_s = self._now_s()
        if self.lost.done() or (not began and now_s - self._moved_s < PROGRESS_EVERY_S):
            return
        self._moved_s = now_s
        self._post(WorkerProgressed(self.worker_id, request_id if began else None))

    def stop(self, grace_s: float) -> None:
        """Terminate the process, kill it after `grace_s` seconds. The first call counts."""
        if not self._stop_grace_s.done():
            self._stop_grace_s.set_result(grace_s)

    async def fall_asleep(self, grace_s: float) -> None:
        """Have the program sleep, which posts WorkerAsleep; stop it if it does not. Whatever ends it then is told by a
        SleeperExited."""
        assert self.sleep is not None
        try:
            await asking.ask(self.address, self.sleep.to_sleep, self.sleep.timeout_s, self.lost)
        except NotDoneError as error:
            if not self._stop_grace_s.done():
                log.warning("worker does not sleep", model=self.model_id, pid=self.pid, error=str(error))
            self.stop(grace_s)
            return
        # If it has ended meanwhile, its WorkerExited says so.
        if not self.lost.done():
            self._sleeps = True
            self._post(WorkerAsleep(self.worker_id))

    def become(self, worker_id: int) -> bool:
        """A sleeper is to be this worker; False if it has ended already, as a SleeperExited told."""
        assert self._sleeps
        if self.lost.done():
            return False
        self.worker_id, self._sleeps = worker_id, False
        self._phase, self._steps = WorkerState.LOADING, Steps(self._now_s())
        return True

    async def wake(self) -> None:
        """Have the program wake: posts WorkerStarted and WorkerReady. One that does not wake is ended."""
        assert self.sleep is not None
        self._post(WorkerStarted(self.worker_id))
        try:
            await asking.ask(self.address, self.sleep.to_wake, self.sleep.timeout_s, self.lost)
        except NotDoneError as error:
            self._failure = control.Failed(control.FailureKind.FAILED, f"it did not wake: {error}")
            self.stop(0.0)
            return
        if not self.lost.done():
            log.info("worker awake", model=self.model_id, pid=self.pid, **self._steps.end(self._now_s()))
            self._phase = WorkerState.READY
            self._post(WorkerReady(self.worker_id))

    def give_up(self, kind: ExitKind, detail: str) -> None:
        """End without having begun: in place of `run`."""
        self.lost.set_result(detail)
        self._post(WorkerExited(self.worker_id, kind, detail))

    async def run(self, describe: Callable[[int], LaunchSpec], spare: SpareProcess | None = None) -> None:
        """Start the process that `describe(control_fd)` names, or have the spare become it, and see it to its end.

        Posts WorkerStarted, WorkerProgressed, WorkerReady as they happen, and one WorkerExited last, or SleeperExited.
        """
        end = End(ExitKind.FAILED, f"the worker of model {self.model_id!r} was stopped")
        try:
            self.socket_path.unlink(missing_ok=True)
            end = await self._live(await _began(partial(self._described, describe), spare))
        except OSError as error:
            end = End(ExitKind.FAILED, f"the worker of model {self.model_id!r} could not be started: {error}")
        finally:
            self.socket_path.unlink(missing_ok=True)
            if not self.lost.done():
                self.lost.set_result(end.detail)
            if self._sleeps:
                self._post(SleeperExited(self.worker_id, end.detail))
            else:
                self._post(WorkerExited(self.worker_id, end.kind, end.detail, end.device))

    def _described(self, describe: Callable[[int], LaunchSpec], control_fd: int) -> LaunchSpec:
        spec = describe(control_fd)
        if spec.address is not None:
            self.address = spec.address
        return spec

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def _live(self, started: Started) -> End:
        process = started.process
        try:
            self.pid = process.pid
            self._phase = WorkerState.LOADING
            self._post(WorkerStarted(self.worker_id))
            async with asyncio.TaskGroup() as tasks:
                output = tasks.create_task(self._drain(process), name=f"output of worker {self.worker_id}")
                messages = tasks.create_task(self._listen(started.control), name=f"control of worker {self.worker_id}")
                await self._until_exit(started)
                # Its children must not outlive it, nor hold its pipes open.
                started.signal(signal.SIGKILL)
                await asyncio.wait({output, messages}, timeout=PIPE_CLOSE_S)
                output.cancel()
                messages.cancel()
        finally:
            await started.end()
        assert process.returncode is not None
        return judge(
            self.model_id,
            process.returncode,
            self._phase,
            self._tail,
            failure=self._failure,
            stopped=self._stop_grace_s.done(),
        )

    async def _until_exit(self, started: Started) -> None:
        """Wait for the process, which may be told to end meanwhile. Returns when it is reaped."""
        process = started.process
        async with asyncio.TaskGroup() as tasks:
            exited = tasks.create_task(process.wait(), name=f"exit of worker {self.worker_id}")
            either: set[asyncio.Future[Any]] = {exited, self._stop_grace_s}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return
            grace_s, asked_at_s = self._stop_grace_s.result(), self._now_s()
            if grace_s > 0:
                started.signal(signal.SIGTERM)
                await asyncio.wait({exited}, timeout=grace_s)
            if not exited.done():
                log.warning("worker killed", model=self.model_id, pid=process.pid, grace_s=grace_s)
                await started.kill()
            await exited
            log.info("worker stopped", model=self.model_id, stop_s=round(self._now_s() - asked_at_s, 4))

    async def _drain(self, process: asyncio.subprocess.Process) -> None:
        """Keep the output pipe empty whatever the worker writes; keep the newest lines, cut to a length."""
        assert process.stdout is not None
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        partial = ""
        while chunk := await process.stdout.read(65_536):
            *lines, partial = (partial + decode(chunk)).split("\n")
            partial = partial[:MAX_LINE_CHARS]
            for line in lines:
                self._note_line(line)
        if partial:
            self._note_line(partial)

    def _note_line(self, line: str) -> None:
        line = line.rstrip("\r")[:MAX_LINE_CHARS]
        self._tail.append(line)
        self._output.add(line)

    async def _listen(self, ours: socket.socket) -> None:
        """Read the control channel to its end. A worker that talks nonsense is stopped."""
        reader, writer = await asyncio.open_connection(sock=ours, limit=control.MAX_LINE_BYTES)
        try:
            while line := await reader.readline():
                self._hear(control.decode(line))
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("worker broke the control protocol", model=self.model_id, error=str(error))
            self.stop(0.0)
            # Closing the channel now would tell the worker to end by itself, and hide how it did.
            with contextlib.suppress(ConnectionError):
                while await reader.read(control.MAX_LINE_BYTES):
                    pass
        except ConnectionError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _hear(self, message: control.Message) -> None:
        match message:
            case control.Loading(progress):
                self.load_progress = progress
                self._steps.begin("load_s", self._now_s())
                self._post(WorkerProgressed(self.worker_id))
            case control.WarmingUp():
                self._steps.begin("warm_up_s", self._now_s())
                self._post(WorkerProgressed(self.worker_id))
            case control.Progress():
                self._post(WorkerProgressed(self.worker_id))
            case control.Ready():
                if self._phase is WorkerState.LOADING:
                    log.info("worker ready", model=self.model_id, pid=self.pid, **self._steps.end(self._now_s()))
                    self._phase, self.load_progress = WorkerState.READY, None
                    self._post(WorkerReady(self.worker_id))
            case control.Failed():
                self._failure = message
            case control.Buffers(device_bytes):
                self._on_buffers(self.worker_id, device_bytes)
            case control.Usage():
                self._on_usage(message)


async def _began(describe: Callable[[int], LaunchSpec], spare: SpareProcess | None) -> Started:
    """The spare's process, told what it is to be; else a new one. The caller must end it. Raises `OSError`."""
    started = None if spare is None else spare.release()
    if started is None:
        return await start(describe)
    try:
        order = started.process.stdin
        assert order is not None
        order.write(msgspec.json.encode(describe(started.control_fd).argv) + b"\n")
        order.close()
    except BaseException:
        await started.end()
        raise
    return started
