"""What a worker really takes, as the kernel counts it."""

from __future__ import annotations

import psutil


def resident_bytes(pid: int | None) -> int | None:
    """Resident memory of a process in bytes, shared pages included, or None if it is gone."""
    if pid is None:
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
