"""The machine's memories: what there is, how much of it swapd may take, how much is free.

Owns discovery and sampling. This version knows host memory only; the daemon itself must never open a GPU
context to look at one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from swapd.config.schema import Memory
from swapd.core.spec import RAM, DeviceSpec

CGROUP_LIMIT_FILES = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Device:
    """One memory, named as llama.cpp prints it."""

    name: str
    description: str
    total_bytes: int
    free_bytes: int


def discover() -> tuple[Device, ...]:
    """Every memory that workers can be placed in, now. Reads files only."""
    return (_host_memory(),)


def _host_memory() -> Device:
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return Device(RAM, f"host memory, {cores} cores", *_host_bytes())


def _host_bytes() -> tuple[int, int]:
    """Host memory in all and free, within the limit of this container or unit."""
    memory = psutil.virtual_memory()
    limit = cgroup_limit_bytes(CGROUP_LIMIT_FILES)
    total = memory.total if limit is None else min(memory.total, limit)
    return total, min(memory.available, total)


def cgroup_limit_bytes(files: Sequence[Path]) -> int | None:
    """The memory limit of this container or unit, in bytes, or None without one."""
    for file in files:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        # Version 1 says "no limit" with a number near 2**63.
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None


def budgets(memory: Memory, devices: Sequence[Device]) -> tuple[DeviceSpec, ...]:
    """How much of each device swapd may take, by the configuration.

    A size is taken as it is given; a share and the default `auto` leave the reserve alone.
    """
    found = []
    for device in devices:
        budget = memory.budget.get(device.name, memory.default)
        if budget.size_bytes is not None:
            size_bytes = budget.size_bytes
        else:
            share = 1.0 if budget.share is None else budget.share
            size_bytes = max(0, int(device.total_bytes * share) - memory.reserve_bytes)
        found.append(DeviceSpec(device.name, device.total_bytes, size_bytes))
    return tuple(found)


def free_bytes(name: str) -> int | None:
    """Free bytes of one device now, by its own account; None if it cannot be told."""
    return _host_bytes()[1] if name == RAM else None
