"""Meters: how much of one memory is free, and what each of some processes has of it.

A meter is read in a thread, since drivers may take their time. It must never open a GPU in the daemon's own process,
nor wake one that sleeps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import psutil

from swapd.pool import nvml, sysfs


@dataclass(frozen=True, slots=True)
class Reading:
    free_bytes: int
    held_bytes: Mapping[int, int] | None
    """By process id, of the processes asked for that have some; None where it cannot be told."""


class Meter(Protocol):
    slow: ClassVar[bool]
    """Whether a reading costs a process."""

    def read(self, pids: Collection[int]) -> Reading | None:
        """None if there is no answer. Blocks."""
        ...


@dataclass(frozen=True, slots=True)
class HostMeter:
    """RAM, within the limit of this container or unit. A process has what no file backs: mapped weights are cache."""

    slow: ClassVar[bool] = False
    cgroup: Path = sysfs.SYS / "fs/cgroup"
    proc: Path = sysfs.PROC

    def read(self, pids: Collection[int]) -> Reading:
        held = {pid: sysfs.anonymous_bytes(self.proc, pid) for pid in pids}
        return Reading(self.sizes()[1], {pid: size for pid, size in held.items() if size is not None})

    def sizes(self) -> tuple[int, int]:
        """Total and free."""
        memory = psutil.virtual_memory()
        total, free = memory.total, min(memory.total, memory.available + sysfs.arc_bytes(self.proc))
        limit = cgroup_limit_bytes(self.cgroup)
        if limit is None or limit >= total:
            return total, free
        return limit, max(0, min(free, limit - cgroup_used_bytes(self.cgroup)))


def cgroup_limit_bytes(cgroup: Path) -> int | None:
    """The memory limit of this container, in bytes, or None without one."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _text(cgroup / name)
        # Version 1 says "no limit" with a number near 2**63.
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None


def cgroup_used_bytes(cgroup: Path) -> int:
    """What this container's processes have, less the files that are cached for them."""
    for used, stat, kinds in (
        ("memory.current", "memory.stat", ("inactive_file", "active_file")),
        ("memory/memory.usage_in_bytes", "memory/memory.stat", ("total_inactive_file", "total_active_file")),
    ):
        text = _text(cgroup / used)
        if text.isdigit():
            facts = dict(line.split(" ", 1) for line in _text(cgroup / stat).splitlines() if " " in line)
            return max(0, int(text) - sum(int(facts.get(kind, 0)) for kind in kinds))
    return 0


@dataclass(frozen=True, slots=True)
class NvmlMeter:
    """An NVIDIA GPU."""

    slow: ClassVar[bool] = False
    nvml: Any
    pci: str
    total_bytes: int
    sys: Path = sysfs.SYS

    def read(self, pids: Collection[int]) -> Reading | None:
        if sysfs.is_asleep(self.sys, self.pci):
            return Reading(self.total_bytes, {})
        memory = nvml.read(self.nvml, self.pci)
        if memory is None:
            return None
        if memory.by_pid is None:
            return Reading(memory.free_bytes, None)
        return Reading(memory.free_bytes, {pid: memory.by_pid[pid] for pid in pids if pid in memory.by_pid})


@dataclass(frozen=True, slots=True)
class AmdMeter:
    """An AMD GPU with memory of its own."""

    slow: ClassVar[bool] = False
    pci: str
    total_bytes: int
    sys: Path = sysfs.SYS
    proc: Path = sysfs.PROC

    def read(self, pids: Collection[int]) -> Reading | None:
        if sysfs.is_asleep(self.sys, self.pci):
            return Reading(self.total_bytes, {})
        used = sysfs.amd_used_bytes(self.sys, self.pci)
        if used is None:
            return None
        return Reading(max(0, self.total_bytes - used), _held(self.proc, self.pci, pids))


@dataclass(frozen=True, slots=True)
class ListMeter:
    """A GPU whose driver tells nobody who has not opened it: a helper process lists the engine's devices."""

    slow: ClassVar[bool] = True
    name: str
    pci: str
    total_bytes: int
    free_by_name: Callable[[], Mapping[str, int]]
    """Runs the helper; empty if it fails."""
    sys: Path = sysfs.SYS
    proc: Path = sysfs.PROC

    def read(self, pids: Collection[int]) -> Reading | None:
        if self.pci and sysfs.is_asleep(self.sys, self.pci):
            return Reading(self.total_bytes, {})
        free_bytes = self.free_by_name().get(self.name)
        if free_bytes is None:
            return None
        return Reading(free_bytes, _held(self.proc, self.pci, pids) if self.pci else None)


def _held(proc: Path, pci: str, pids: Collection[int]) -> Mapping[int, int]:
    held = {pid: sysfs.held_bytes(proc, pid, pci) for pid in pids}
    return {pid: size for pid, size in held.items() if size is not None}


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
