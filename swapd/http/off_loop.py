"""Which work on a request is done in a thread, so that the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

OFF_LOOP_BYTES = 256 * 1024
"""Bodies from this size on are parsed and rewritten in a thread."""

_T = TypeVar("_T")


async def maybe_off_loop(off_loop: bool, work: Callable[[], _T]) -> _T:
    """Do it here, or in a thread."""
    return await asyncio.to_thread(work) if off_loop else work()
