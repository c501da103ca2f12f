"""The program's processes: started, signalled as a group, and killed with whatever became of them.

Owns the system calls that make this sure. The guard is the subreaper of all its descendants: whoever loses his parent,
and has left group and session, becomes the guard's own child, and can be killed as such.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from backends.ties import die_with_parent, go_first

KILL_PASS_S = 0.002
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """From here on orphans among the descendants are this process's children."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def start(argv: Sequence[str], env: Mapping[str, str], output_fd: int, input_fd: int = subprocess.DEVNULL) -> int:
    """Start a program in a session and group of its own; returns its process id. Raises `OSError`.

    Only for a process of one thread, because of what the child does before it is the program.
    """
    process = subprocess.Popen(
        argv,
        env=env,
        stdin=input_fd,
        stdout=output_fd,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_prepare,
    )
    process.returncode = 0  # It is reaped below: the object must not try.
    return process.pid


def _prepare() -> None:
    # What is ignored stays so in the program; the guard ignores it for itself.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Should the guard itself be killed, the kernel ends the program at least, though not what it has started.
    with contextlib.suppress(OSError):
        die_with_parent()
    go_first()


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal the group that `pid`, a child that has not been reaped, was started as the leader of."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def has_ended(pid: int) -> bool:
    """Whether this child has ended. Reaps all others that have; it itself stays, so that its number stays taken."""
    while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if ended.si_pid == pid:
            return True
        os.waitpid(ended.si_pid, 0)
    return False


def kill_all(pid: int | None, spared: int | None = None) -> int:
    """Kill the child `pid`, its group and every descendant there is, and reap them; the child `spared` may go on.

    Returns the exit code of `pid`, or less than 0 for a signal's number. Does not return while one of them cannot die.
    """
    if pid is not None:
        signal_group(pid, signal.SIGKILL)
    code = 0
    while True:
        try:
            reaped, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if reaped:
            code = os.waitstatus_to_exitcode(status) if reaped == pid else code
            continue
        children = _children() - {spared}
        if not children:
            return code
        for child in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        time.sleep(KILL_PASS_S)


def is_child(pid: int) -> bool:
    """Whether this child has not ended. Reaps those that have."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return pid in _children()


def end_as(code: int) -> NoReturn:
    """End this process the way a program ended: by its exit code, or by its signal."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler to take away
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def _children() -> set[int]:
    """Direct children of this process, which has not reaped them: their numbers are their own."""
    own = os.getpid()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The name, in brackets, may hold anything; after it come the state and the parent.
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == own:
                    found.add(int(entry.name))
    return found
