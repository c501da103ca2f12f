"""The guard's entry: `python -m backends.guard CONTROL_FD`, with the plan in the environment.

Started by the daemon in place of a worker, see `backends.guard.plan`.
"""

from __future__ import annotations

import os
import socket
import sys

import msgspec

from backends.guard.guard import Guard
from backends.guard.plan import read_plan
from backends.guard.processes import end_as

EXIT_USAGE = 2


def main() -> None:
    try:
        control = socket.socket(fileno=int(sys.argv[1]))
        plan = read_plan(os.environ)
    except (IndexError, ValueError, KeyError, OSError, msgspec.MsgspecError) as error:
        print(f"the guard is started by swapd alone: {error!r}", file=sys.stderr)  # noqa: T201 - it has no log
        sys.exit(EXIT_USAGE)
    # The program is not to inherit it: it must see neither the daemon's end nor hold the channel open.
    control.set_inheritable(False)
    end_as(Guard(plan, control).run())


if __name__ == "__main__":
    main()
