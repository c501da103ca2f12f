"""What the guard is to run, and how the daemon starts a guard that does.

Owns the plan and the way it travels: in the guard's environment, which only its own user can read, because a command
line can be read by everyone. Must never start anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated

import msgspec

from backends.address import TcpAddress, UnixAddress, WorkerAddress
from backends.base import LaunchSpec, decode_path, encode_path

PLAN_VARIABLE = "SWAPD_GUARD_PLAN"
PID_MACRO = "${PID}"
"""In `stop_argv`: the program's process id, which nobody knows before it runs."""
STOP_S = 10.0
LEAVE_S = 5.0
"""What the guard may take beyond the bound of `stop_argv`, to see everything dead."""


class GuardPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A program to run as a worker. The worker is ready once it is found to listen."""

    argv: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    env: dict[str, str]
    """The program's whole environment, and that of `stop_argv`."""
    unix: UnixAddress | None = None
    tcp: TcpAddress | None = None
    """Where it listens, one of the two."""
    check: str | None = "/health"
    """The path that is asked until it answers 200; None: ready when it takes connections."""
    slots: int
    """Requests that the program runs at once."""
    n_ctx: int = 0
    """Context in tokens; 0 is not known."""
    stop_argv: tuple[str, ...] = ()
    """What asks the program to end; empty: SIGTERM to its process group."""
    stop_s: float = STOP_S
    """After being asked to end, what is left is killed this many seconds later."""
    stop_input: str = ""
    """What is written to its standard input, ahead of SIGTERM, to ask it to end. Its input is then open as long as the
    guard lives; else there is none."""
    watch: str | None = None
    """A path that is asked while requests run, which lines of `progress` tell: a whole answer is a sign of work, so it
    must be one that the program cannot give while it hangs."""
    watch_while: str = ""
    """A regular expression for answers of a program that is still at work, and is to be asked again."""
    buffers: str = ""
    """A regular expression for lines that tell, while it loads, of memory that it has allocated: its group `name` is a
    device's, or any other for host memory, and `mebibytes` how much. Empty: it tells of none."""
    progress: tuple[str, ...] = ()
    """Regular expressions for lines of its output that tell of work done, while it loads and while it serves. One group
    is a percentage, or a part of 1 if it is named `fraction`; two are a part and the whole; without a group it is a
    sign of life."""

    @property
    def address(self) -> WorkerAddress:
        found = self.unix or self.tcp
        assert found is not None
        return found


def guard_launch(plan: GuardPlan, control_fd: int, environ: Mapping[str, str] | None = None) -> LaunchSpec:
    """The guard's process for this plan. Its environment is the daemon's, whatever the program's is."""
    env = dict(os.environ if environ is None else environ)
    env[PLAN_VARIABLE] = msgspec.json.encode(plan, enc_hook=encode_path).decode()
    argv = (sys.executable, "-P", "-m", "backends.guard", str(control_fd))
    return LaunchSpec(argv, env, address=plan.address, end_s=plan.stop_s + LEAVE_S)


def read_plan(environ: Mapping[str, str]) -> GuardPlan:
    """The plan that a guard was started with. Raises `msgspec.MsgspecError`, or `KeyError` without one."""
    return msgspec.json.decode(environ[PLAN_VARIABLE], type=GuardPlan, dec_hook=decode_path)
