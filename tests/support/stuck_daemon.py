"""`python -m support.stuck_daemon CONFIG`: the scripted daemon with two defects that a daemon might have.

The backend `blocking` is a plug-in that takes its time where it must not: its `launch` sleeps in the event loop's own
thread. SIGUSR1 makes the scheduler's inbox give nothing any more, while the loop turns on. A drain asks for more time
every `EXTEND_S` instead of the daemon's ten seconds.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import ClassVar

from support.scripted_backend import ScriptedBackend, ScriptedSettings

from backends.base import LaunchOrder, LaunchSpec, Settings
from swapd import daemon
from swapd.config.load import load
from swapd.core.events import Event
from swapd.pool.inbox import Inbox, Job

EXTEND_S = 0.2


class BlockingSettings(ScriptedSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    block_s: float = 0.0


class BlockingBackend(ScriptedBackend):
    name: ClassVar[str] = "blocking"
    settings_type: ClassVar[type[Settings]] = BlockingSettings

    def launch(self, settings: ScriptedSettings, order: LaunchOrder) -> LaunchSpec:
        assert isinstance(settings, BlockingSettings)
        print('{"event": "the loop is blocked"}', file=sys.stderr, flush=True)
        time.sleep(settings.block_s)
        return super().launch(settings, order)


def stick() -> None:
    async def nothing(_: Inbox) -> Event | Job:
        print('{"event": "the scheduler is stuck"}', file=sys.stderr, flush=True)
        await asyncio.Event().wait()
        raise AssertionError

    Inbox.get = nothing  # type: ignore[method-assign]


def main() -> int:
    daemon.EXTEND_S = EXTEND_S
    signal.signal(signal.SIGUSR1, lambda *_: stick())
    backends = {"scripted": ScriptedBackend(), "blocking": BlockingBackend()}
    return daemon.run(load(Path(sys.argv[1]), backends), backends)


if __name__ == "__main__":
    raise SystemExit(main())
