"""Listening sockets: addresses of the configuration, sockets that were passed in, and how they end.

Owns binding and the connection timeouts. Must never decide what a request means.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from swapd.config.address import UnixAddress, parse_address
from swapd.config.schema import Server
from swapd.errors import StartupError
from swapd.http.connection import HEADERS_S, Bounds, Runner
from swapd.http.crowd import Limits, limits_of

KEEPALIVE_S = 75.0
"""How long a connection may be idle, before its first request too."""
BACKLOG = 1024
_protocol_log = logging.getLogger("swapd.http.protocol")
_UNIX_UMASK = 0o117
"""Sockets get mode 0660: the daemon's user and group."""


def _is_the_daemons_fault(record: logging.LogRecord) -> bool:
    """aiohttp logs a traceback for every client that speaks HTTP wrongly; those are no errors of the daemon."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError))


_protocol_log.addFilter(_is_the_daemons_fault)


@asynccontextmanager
async def serve(
    app: web.Application,
    listen: Sequence[str],
    *,
    sockets: Sequence[socket.socket] = (),
    shutdown_timeout_s: float = 5.0,
    limits: Callable[[], Limits] | None = None,
    headers_s: float = HEADERS_S,
) -> AsyncIterator[tuple[str, ...]]:
    """Accept requests while the scope lasts; yields the addresses that accept, ports filled in.

    Sockets that were passed in (systemd's) replace `listen`. `limits` gives those of connections, which a reload may
    change; None: the defaults. A request's headers may take `headers_s`. Leaving stops accepting, gives running
    handlers `shutdown_timeout_s`, then cancels them. Raises `StartupError` for an address that cannot be had.
    """
    bounds = Bounds(limits or partial(limits_of, Server()), headers_s)
    runner = Runner(
        app, bounds, shutdown_timeout=shutdown_timeout_s, logger=_protocol_log, keepalive_timeout=KEEPALIVE_S
    )
    with ExitStack() as unix_sockets:
        await runner.setup()
        try:
            for passed in sockets:
                passed.setblocking(False)
                await web.SockSite(runner, passed, backlog=BACKLOG).start()
            for text in () if sockets else listen:
                await _start_site(runner, text, unix_sockets)
            yield tuple(_show(address) for address in runner.addresses)
        finally:
            await runner.cleanup()


async def _start_site(runner: web.AppRunner, text: str, unix_sockets: ExitStack) -> None:
    try:
        address = parse_address(text)
    except ValueError as exc:
        raise StartupError(f"server.listen: {exc}") from None
    try:
        if isinstance(address, UnixAddress):
            bound = unix_sockets.enter_context(_bound_unix_socket(address.path))
            await web.SockSite(runner, bound, backlog=BACKLOG).start()
        else:
            await web.TCPSite(runner, address.host, address.port, backlog=BACKLOG).start()
    except OSError as exc:
        # asyncio wraps the reason in a sentence of its own; the error number has the plain one.
        reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else str(exc)
        raise StartupError(f"cannot listen on {text}: {reason}") from exc


@contextmanager
def _bound_unix_socket(path: Path) -> Iterator[socket.socket]:
    """A socket bound at the path, in place of one that nobody serves any more; removed at the end."""
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(_UNIX_UMASK)
    try:
        bound.bind(str(path))
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(before)
    identity = path.stat().st_ino
    try:
        yield bound
    finally:
        bound.close()
        if path.exists() and path.stat().st_ino == identity:
            path.unlink()


def _remove_stale(path: Path) -> None:
    """Raises `OSError` if something lives at the path: a server that answers, or no socket at all."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _show(address: object) -> str:
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{address}"
