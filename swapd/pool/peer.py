"""A server elsewhere in a worker's place: looked at, used, looked after, given up. Every end is an event.

It lives by the same events as a process (`swapd.pool.worker`): it is loaded once it is healthy, and has ended once it
is not. Owns the looks at its health. Must never follow a redirect, nor let what its address carries into any text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import aiohttp
import structlog

from backends.address import TcpAddress, UrlAddress
from backends.base import InvalidModelError, Peer
from swapd.core.events import Event, ExitKind, WorkerExited, WorkerReady, WorkerStarted
from swapd.pool.lease import Patience
from swapd.pool.ring import Ring
from swapd.pool.tls import client_context

log = structlog.get_logger()

CHECK_EVERY_S = 15.0
"""While it is used. A server that nobody asks anything is left in peace."""
CHECK_AGAIN_S = 1.0
"""After a first failure; twice as long after each further one."""
MAX_FAILURES = 3
"""In a row, of looks and of requests together, and without a byte of an answer in between."""
ANSWER_S = 10.0
"""How long a look at its health may take once it is connected."""


class _UnhealthyError(Exception):
    """Why it is not."""


class PeerWorker:
    """A server elsewhere from the daemon's side. `run` is its whole life; `stop` asks for its end."""

    reports_usage = False
    pid: int | None = None
    load_progress: float | None = None

    def __init__(
        self,
        worker_id: int,
        model_id: str,
        output: Ring[str],
        silence_s: tuple[float, float],
        post: Callable[[Event], None],
        *,
        check_every_s: float = CHECK_EVERY_S,
    ) -> None:
        """`silence_s`: how long it may be silent before an answer has begun, and after."""
        self.worker_id = worker_id
        self.model_id = model_id
        self.address: UrlAddress | TcpAddress = TcpAddress("", 0)
        self.patience: Patience | None = None
        #: Resolves with a sentence once it is given up.
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._output = output
        self._silence_s = silence_s
        self._post = post
        self._check_every_s = check_every_s
        self._stopped = False
        self._scope: asyncio.Timeout | None = None
        self._news = asyncio.Event()
        self._failures = 0
        self._used = False
        self._doubted = False

    def stop(self, _grace_s: float) -> None:
        """End it; there is nothing to wait for."""
        if self._stopped or self.lost.done():
            return
        self._stopped = True
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())

    def answer_moved(self) -> None:
        """A part of an answer has come: it works."""
        self._used = True
        self._failures = 0

    def answer_broke(self) -> None:
        """A request failed: look at once whether it is still there."""
        self._failures += 1
        self._doubted = True
        self._news.set()

    async def run(self, describe: Callable[[], Peer]) -> None:
        """Look at the server that `describe` names, which may read files, and see it to its end.

        Posts WorkerStarted and WorkerReady as they happen, and one WorkerExited last.
        """
        kind, why = ExitKind.FAILED, f"the server of model {self.model_id!r} is no longer used"
        try:
            self._post(WorkerStarted(self.worker_id))
            async with asyncio.timeout(0 if self._stopped else None) as self._scope:
                await self._live(await asyncio.to_thread(describe))
        except TimeoutError:
            assert self._stopped, "nothing else ends it by time"
        except _UnhealthyError as error:
            why = f"the server of model {self.model_id!r}, {self.address}, {error}"
            self._note(why)
        except InvalidModelError as error:
            kind, why = ExitKind.INVALID_MODEL, f"model {self.model_id!r} cannot be loaded: {error}"
        finally:
            self.lost.set_result(why)
            self._post(WorkerExited(self.worker_id, kind, why))

    async def _live(self, peer: Peer) -> None:
        self.address = peer.address
        self.patience = Patience(peer.connect_timeout_s, *self._silence_s)
        await self._look(peer)
        self._note(f"{peer.address} is ready")
        self._post(WorkerReady(self.worker_id))
        await self._look_after(peer)

    def _note(self, line: str) -> None:
        log.info("peer", model=self.model_id, says=line)
        self._output.add(line)

    async def _look_after(self, peer: Peer) -> None:
        """Ends with the `_UnhealthyError` for which it is given up."""
        wait_s = self._check_every_s
        while True:
            await self._sleep(wait_s)
            wait_s = self._check_every_s
            if not (self._used or self._failures):
                continue
            self._used, doubted, self._doubted = False, self._doubted, False
            try:
                await self._look(peer)
            except _UnhealthyError as error:
                self._failures += 1
                self._note(f"{peer.address} {error}")
                # A request and a look that both fail are proof enough.
                if doubted or self._failures >= MAX_FAILURES:
                    raise
                wait_s = CHECK_AGAIN_S * 2 ** (self._failures - 1)
            else:
                if self._failures >= MAX_FAILURES:
                    raise _UnhealthyError(f"broke {self._failures} requests in a row")
                if not doubted:
                    self._failures = 0

    async def _sleep(self, time_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(time_s):
                await self._news.wait()
        self._news.clear()

    async def _look(self, peer: Peer) -> None:
        """Raises `_UnhealthyError` unless it is healthy."""
        try:
            if peer.health_path is None:
                await _connect(peer)
            else:
                await _get(peer, peer.health_path)
        except TimeoutError:
            raise _UnhealthyError(f"did not answer within {peer.connect_timeout_s + ANSWER_S:g} s") from None
        except (OSError, aiohttp.ClientError) as error:
            raise _UnhealthyError(f"takes no connection: {error}") from None


async def _connect(peer: Peer) -> None:
    address = peer.address
    context = None if address.tls is None else await client_context(address.tls)
    async with asyncio.timeout(peer.connect_timeout_s):
        _, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    writer.transport.abort()


async def _get(peer: Peer, path: str) -> None:
    """Raises `_UnhealthyError` for any answer but 200, and what aiohttp raises where there is none."""
    address = peer.address
    verify = True if address.tls is None else await client_context(address.tls)
    timeout = aiohttp.ClientTimeout(total=peer.connect_timeout_s + ANSWER_S, connect=peer.connect_timeout_s)
    connector = aiohttp.TCPConnector(ssl=verify, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.get(f"{address}{path}", headers=address.headers, allow_redirects=False) as answer,
    ):
        if answer.status in (401, 403):
            raise _UnhealthyError(f"refuses swapd's key ({answer.status} to GET {path}); see api_key_file")
        if answer.status != 200:
            raise _UnhealthyError(f"is not healthy: it answered {answer.status} to GET {path}")
