"""The worker's writing side of the control channel: never waits, never grows without bound, never loses a usage.

`Outbox` decides what is still to be said; `Reporter` is the thin shell that says it on a socket. Both belong
to one thread. Messages and their encoding are `backends.control`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable

from backends.control import Loading, Message, Progress, encode

MAX_UNSENT_BYTES = 1024 * 1024
"""Several thousand usages on top of the kernel's own buffer."""
INTERVAL_S = 0.25
"""How often progress of any kind is worth telling."""


class Outbox:
    """Bytes to send, in order. Of messages that only tell where things stand the latest is kept."""

    def __init__(self) -> None:
        self._unsent = bytearray()
        self._standing: Loading | Progress | None = None

    def add(self, message: Message) -> None:
        """Raises `BufferError` when the other side has stopped reading for good."""
        if isinstance(message, Loading | Progress):
            self._standing = message
            return
        if isinstance(self._standing, Loading):
            # What comes after a load's progress makes it old news.
            self._standing = None
        if len(self._unsent) > MAX_UNSENT_BYTES:
            raise BufferError(f"the daemon left {len(self._unsent)} bytes of the control channel unread")
        self._unsent += encode(message)

    def pending(self) -> bytes:
        """What to send next; empty when all is said."""
        if not self._unsent and self._standing is not None:
            self._unsent += encode(self._standing)
            self._standing = None
        return bytes(self._unsent)

    def sent(self, count: int) -> None:
        """The first `count` bytes of `pending` are on their way."""
        assert 0 <= count <= len(self._unsent)
        del self._unsent[:count]


class LoadProgress:
    """Passes on a load's progress a few times a second: llama.cpp tells of every tensor."""

    def __init__(self, send: Callable[[Message], None], now_s: Callable[[], float]) -> None:
        self._send = send
        self._now_s = now_s
        self._next_s = float("-inf")

    def __call__(self, progress: float) -> None:
        """`progress` runs from 0 to 1. The end is always told."""
        now_s = self._now_s()
        if now_s >= self._next_s or progress >= 1:
            self._next_s = now_s + INTERVAL_S
            self._send(Loading(progress))


class Reporter:
    """Sends messages over the control socket as far as it takes them, the rest when it does."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._outbox = Outbox()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From here on the loop tells when the socket takes more."""
        self._loop = loop

    def send(self, message: Message) -> None:
        """Say it now or soon; never blocks."""
        self._outbox.add(message)
        self._flush()

    def drain(self, timeout_s: float) -> None:
        """Wait until all is said or the time is up: for last words, when there is nobody left to hold up."""
        while self._outbox.pending() and select.select([], [self._control], [], timeout_s)[1]:
            self._flush()

    def _flush(self) -> None:
        while pending := self._outbox.pending():
            try:
                count = self._control.send(pending, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._await_room()
                return
            except OSError:
                # The other end is gone; the lifeline ends this process.
                return
            self._outbox.sent(count)
        self._stop_waiting()

    def _await_room(self) -> None:
        if self._loop is not None and not self._waiting:
            self._waiting = True
            self._loop.add_writer(self._control.fileno(), self._flush)

    def _stop_waiting(self) -> None:
        if self._waiting and self._loop is not None:
            self._waiting = False
            with contextlib.suppress(RuntimeError):
                self._loop.remove_writer(self._control.fileno())
