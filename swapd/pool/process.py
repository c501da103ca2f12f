"""Starting and ending the processes of workers and spares: a group and a session of their own, one control channel.

Owns how a process is made. What is said on the channel is `backends.control`'s, and who reads it its owner's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from backends.base import LaunchSpec


@dataclass(frozen=True, slots=True)
class Started:
    """A process and the daemon's end of its control channel. Whoever holds it must end it and close that."""

    process: asyncio.subprocess.Process
    control: socket.socket
    control_fd: int
    """The number of the other end, in the process."""
    end_s: float = 0.0
    """How long it may take to end what it has started, see `LaunchSpec.end_s`."""

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole process group: it was started as the leader of its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    async def kill(self) -> None:
        """See the process dead and reaped, and before it what it has started, if that is not in its group."""
        if self.end_s and self.process.returncode is None:
            with contextlib.suppress(OSError):
                self.control.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), self.end_s)
        self.signal(signal.SIGKILL)
        await self.process.wait()

    async def end(self) -> None:
        """Kill what is left of it and of its group, and close the channel."""
        try:
            await self.kill()
        finally:
            self.control.close()


async def start(describe: Callable[[int], LaunchSpec], *, takes_order: bool = False) -> Started:
    """Start the process that `describe(control_fd)` names; with `takes_order` its standard input is a pipe.

    Raises `OSError`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            spec = describe(theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *spec.argv,
                env=dict(spec.env),
                stdin=asyncio.subprocess.PIPE if takes_order else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        return Started(process, ours, theirs.fileno(), spec.end_s)
