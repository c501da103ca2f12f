"""What the kernel is told about a process that serves: with whom it ends, and that it is the first to go.

Owns the two system calls. Must stay as small as the guard, which has it loaded for as long as its program runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
from pathlib import Path

OOM_SCORE_ADJ = 500
"""When memory runs out, the kernel should take a worker before the daemon, a guard or the user's shell."""
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends. Raises `OSError`."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def go_first() -> None:
    """Be taken before others when memory runs out, where the kernel lets a process say so."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
