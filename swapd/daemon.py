"""The composition root: builds every part, owns the root task group, the signals and the order of shutdown.

Must never schedule, serve or translate anything itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from backends.base import Backend
from backends.registry import installed_backends
from swapd import __version__
from swapd.activity.book import Book, Counts
from swapd.activity.store import FILE_NAME as ACTIVITY_FILE_NAME
from swapd.activity.store import Store as ActivityStore
from swapd.config import diff, watch
from swapd.config.keys import Keys, load_keys
from swapd.config.load import load
from swapd.config.problems import ConfigError
from swapd.config.schema import Config
from swapd.errors import ShuttingDownError, StartupError
from swapd.http.crowd import Limits, limits_of, raise_open_files
from swapd.http.exposure import refuse_exposure
from swapd.http.keyring import Keyring
from swapd.http.listen import serve
from swapd.http.server import make_app
from swapd.observe import logs
from swapd.observe.metrics import Metrics
from swapd.pool.devices import Machine, discover
from swapd.pool.learned import FILE_NAME, Store
from swapd.pool.listener import Listener, Listeners
from swapd.pool.pool import Pool
from swapd.pool.rediscovery import Rediscovery
from swapd.pool.status import Status
from swapd.system import activation, directories, lock
from swapd.system.notify import Notifier, watchdog_interval_s
from swapd.system.sleep import SleepWatch

if TYPE_CHECKING:
    from swapd.observe.otlp import OtlpTraces

log = structlog.get_logger()

GIB = 1024 * 1024 * 1024
WORKERS_PREFIX = "workers-"
EXTEND_S = 10.0
"""While the daemon drains, the service manager is told this often that it needs this much longer."""


def run(
    config: Config,
    backends: Mapping[str, Backend] | None = None,
    *,
    lifeline_fd: int | None = None,
    open_to_network: bool = False,
) -> int:
    """Run the daemon until it is told to stop; returns the exit code. Raises `StartupError`, `ConfigError`.

    The file that `config` came from, if any, is watched. The addresses of `config` stay in force whatever a changed
    file says. The end of file on `lifeline_fd`, a pipe or a socket, counts as a SIGTERM. `open_to_network` is the
    second word that it takes to serve a network without keys, see `exposure`.
    """
    logs.set_up()
    logs.set_level(config.server.log_level)
    os.umask(0o077)
    raise_open_files()
    keys = None if config.server.keys is None else load_keys(directories.credential(config.server.keys, os.environ))
    state_dir = directories.state_dir(config.server.state_dir, os.environ, Path.home())
    runtime_dir = directories.runtime_dir(
        config.server.runtime_dir, os.environ, Path(tempfile.gettempdir()), os.getuid()
    )
    directories.prepare_state_dir(state_dir, os.getuid())
    directories.prepare_runtime_dir(runtime_dir, os.getuid())
    with ExitStack() as held:
        for directory in {state_dir, runtime_dir}:
            held.enter_context(lock.hold(directory, os.getpid()))
        sockets_dir = held.enter_context(_sockets_dir(runtime_dir))
        known = installed_backends() if backends is None else backends
        store = Store.opened(state_dir / FILE_NAME)
        held.callback(store.close)
        machine = discover(known)
        for remark in machine.remarks:
            log.warning(remark)

        async def main() -> int:
            daemon = _Daemon(config, known, machine, store, state_dir, sockets_dir, lifeline_fd, keys, open_to_network)
            return await daemon.main()

        try:
            return asyncio.run(main())
        except BaseExceptionGroup as group:
            # A task group wraps what its body raises; the person at the terminal is owed the one line.
            refused, others = group.split(StartupError)
            if refused is None or others is not None:
                raise
            raise _first(refused) from None


def _first(group: BaseExceptionGroup[StartupError]) -> StartupError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


@contextlib.contextmanager
def _sockets_dir(runtime_dir: Path) -> Iterator[Path]:
    """A fresh directory for the workers' sockets. What an earlier daemon left is removed: the lock is ours."""
    for left in runtime_dir.glob(f"{WORKERS_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=WORKERS_PREFIX, dir=runtime_dir) as directory:
        yield Path(directory)


class _Daemon:
    """One run of the daemon. Made inside its event loop."""

    def __init__(
        self,
        config: Config,
        backends: Mapping[str, Backend],
        machine: Machine,
        store: Store,
        state_dir: Path,
        sockets_dir: Path,
        lifeline_fd: int | None,
        keys: Keys | None,
        open_to_network: bool,
    ) -> None:
        self._path = config.path
        self._config = config
        self._backends = backends
        self._lifeline_fd = lifeline_fd
        self._keys = keys
        self._keyring = None if keys is None else Keyring(keys.by_digest, time.monotonic, time.time)
        self._open_to_network = open_to_network
        self._notifier = Notifier.take_from(os.environ)
        self._watchdog_s = watchdog_interval_s(os.environ, os.getpid())
        self._metrics = Metrics()
        self._traces = _traces(config.server.otlp_endpoint)
        listeners: list[Listener] = [self._metrics] if self._traces is None else [self._metrics, self._traces]
        self._pool = Pool(backends, machine, store, sockets_dir, Listeners(listeners), __version__)
        self._rediscovery = Rediscovery(
            machine,
            partial(discover, backends),
            SleepWatch(partial(time.clock_gettime, time.CLOCK_BOOTTIME), time.monotonic).slept_s,
            self._pool.doubts_devices,
            self._pool.post,
        )
        activity = ActivityStore(
            state_dir / ACTIVITY_FILE_NAME, lambda: self._config.activity, self._metrics.activity_dropped
        )
        self._book = Book(activity) if self._traces is None else Book(activity, kept=self._traces.kept)
        self._stop = asyncio.Event()
        self._reload_asked = asyncio.Event()

    async def main(self) -> int:
        """Serve until a signal, drain, and return the exit code."""
        with ExitStack() as kept:
            if self._traces is not None:
                # After the book, whose last rows it is told of.
                kept.callback(self._traces.close)
            kept.enter_context(self._book)
            return await self._serve()

    async def _serve(self) -> int:
        app = make_app(
            self._pool, self._pool.config, self._metrics, self._book, keyring=self._keyring, traces=self._traces
        )
        sockets = activation.take_sockets(os.environ, os.getpid())
        server = self._config.server
        refuse_exposure(
            server.listen,
            sockets,
            has_keys=self._keyring is not None,
            in_file=server.open_to_network,
            on_command_line=self._open_to_network,
        )
        async with asyncio.TaskGroup() as root:
            pool = root.create_task(self._pool.run(), name="pool")
            with self._signals(pool), self._lifeline():
                await self._pool.configure(self._config)
                async with serve(app, server.listen, sockets=sockets, limits=self._limits) as addresses:
                    log.info("serving", addresses=addresses, models=len(self._config.models), version=__version__)
                    self._notifier.ready(self._status_line())
                    async with asyncio.TaskGroup() as helpers:
                        around = [helpers.create_task(self._tell_status(), name="status line")]
                        around.append(helpers.create_task(self._reload_when_asked(), name="reload"))
                        around.append(helpers.create_task(self._book_counts(), name="activity"))
                        around.append(helpers.create_task(self._rediscovery.run(), name="rediscovery"))
                        if self._watchdog_s is not None:
                            around.append(helpers.create_task(self._ping(self._watchdog_s), name="watchdog"))
                        if self._path is not None:
                            around.append(helpers.create_task(self._watch(self._path, self._config), name="watch"))
                        if self._keys is not None:
                            watching = self._watch(self._keys.path, self._keys)
                            around.append(helpers.create_task(watching, name="watch keys"))
                        await self._stop.wait()
                        await self._drain(pool)
                        for task in around:
                            task.cancel()
        log.info("stopped")
        return 1 if pool.cancelled() else 0

    def _limits(self) -> Limits:
        return limits_of(self._config.server)

    async def _drain(self, pool: asyncio.Task[None]) -> None:
        """Refuse what is new, let running streams finish, wait until every worker is gone."""
        status = self._pool.status()
        log.info("draining", running=status.requests.running, drain_s=self._pool.config().server.drain_s)
        self._notifier.stopping(f"draining {status.requests.running} requests")
        self._pool.shutdown()
        while not pool.done():
            self._notifier.extend_timeout(2 * EXTEND_S)
            await asyncio.wait({pool}, timeout=EXTEND_S)

    @contextlib.contextmanager
    def _signals(self, pool: asyncio.Task[None]) -> Iterator[None]:
        """SIGTERM and SIGINT drain, a second one kills the workers and ends their streams; SIGHUP reloads."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self._stop.is_set():
                pool.cancel()
            self._stop.set()

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: self._reload_asked.set}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def _lifeline(self) -> Iterator[None]:
        """Stop when whoever holds the other end of the pipe is gone. What is written to it has no meaning."""
        fd = self._lifeline_fd
        if fd is None:
            yield
            return
        loop = asyncio.get_running_loop()

        def on_readable() -> None:
            if not os.read(fd, 4096):
                loop.remove_reader(fd)
                self._stop.set()

        try:
            loop.add_reader(fd, on_readable)
        except OSError as error:
            raise StartupError(f"cannot wait for the end of the standard input: {error.strerror}") from error
        try:
            yield
        finally:
            loop.remove_reader(fd)

    async def _book_counts(self) -> None:
        async with contextlib.aclosing(self._pool.requests_ended()) as requests:
            async for one in requests:
                if one.prompt_tokens is not None:
                    counts = Counts(one.prompt_tokens, one.cached_tokens or 0, one.completion_tokens or 0)
                    self._book.counted(one.id, counts)

    # -- configuration -----------------------------------------------------------------------------------------

    async def _watch(self, path: Path, read: Config | Keys) -> None:
        async with contextlib.aclosing(watch.changes(path, self._stop, known=read.identity)) as changes:
            async for _ in changes:
                self._reload_asked.set()

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            self._notifier.reloading(time.monotonic())
            if self._path is None:
                log.warning("nothing to reload: this daemon has no configuration file")
            else:
                refused = [error for error in (await self._reload(self._path), await self._reload_keys()) if error]
                if refused:
                    self._pool.keep_config("\n".join(refused))
            # In any case: with Type=notify-reload, systemd waits for it.
            self._notifier.ready(self._status_line())

    async def _reload_keys(self) -> str:
        """As `_reload`, of the file of keys."""
        if self._keys is None or self._keyring is None:
            return ""
        try:
            keys = await asyncio.to_thread(load_keys, self._keys.path)
        except ConfigError as error:
            return self._refuse(error, "keys_refused")
        if keys.by_digest != self._keys.by_digest:
            self._keyring.replace(keys.by_digest)
            log.info("keys reloaded", keys=len(keys.by_digest))
        self._keys = keys
        return ""

    def _refuse(self, error: ConfigError, kind: str) -> str:
        for line in str(error).splitlines():
            log.error(line, kind=kind)
        self._metrics.config_reloaded("refused")
        return str(error)

    async def _reload(self, path: Path) -> str:
        """Take over the file if all of it is valid; otherwise keep what is in force and return why."""
        try:
            config = await asyncio.to_thread(load, path, self._backends)
        except ConfigError as error:
            return self._refuse(error, "config_refused")
        changes = diff.diff(self._config, config)
        try:
            await self._pool.configure(config)
        except ShuttingDownError:
            return ""
        self._config = config
        logs.set_level(config.server.log_level)
        log.info("configuration reloaded", changes=str(changes))
        self._metrics.config_reloaded("applied")
        return ""

    # -- the service manager -----------------------------------------------------------------------------------

    async def _ping(self, interval_s: float) -> None:
        """Ping the watchdog as long as the event loop turns and the scheduler takes events."""
        while True:
            with contextlib.suppress(ShuttingDownError):
                await self._pool.heartbeat()
            self._notifier.watchdog()
            await asyncio.sleep(interval_s)

    async def _tell_status(self) -> None:
        async with contextlib.aclosing(self._pool.happenings()) as happenings:
            async for _ in happenings:
                self._notifier.status(self._status_line())

    def _status_line(self) -> str:
        return status_line(self._pool.status())


def _traces(endpoint: str | None) -> OtlpTraces | None:
    """Raises `StartupError` where OpenTelemetry is not installed."""
    if endpoint is None:
        return None
    try:
        from swapd.observe.otlp import OtlpTraces
    except ImportError as error:
        raise StartupError(f"server.otlp_endpoint needs OpenTelemetry ({error}): pip install 'swapd[otel]'") from error
    return OtlpTraces(endpoint, __version__)


def status_line(status: Status) -> str:
    """One line for `systemctl status`: models that are up, requests, memory."""
    up = [f"{model.id} {model.state}" for model in status.models if model.state not in ("unloaded", "asleep")]
    memory = [
        f"{device.name} {device.reserved_bytes / GIB:.1f}/{device.budget_bytes / GIB:.1f} GiB"
        for device in status.devices
    ]
    requests = f"{status.requests.running} running, {status.requests.waiting} waiting"
    return " | ".join([f"{len(up)}/{len(status.models)} models up", *up[:8], requests, *memory])
