"""GPUs as the kernel shows them to anybody: files below /sys and /proc, none of which opens or wakes a GPU.

Owns the names of those files. Roots are arguments, so that tests can write trees of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SYS, PROC = Path("/sys"), Path("/proc")

_DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380")
"""PCI classes: VGA controller, 3D controller, other display controller."""
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_HELD = re.compile(r"drm-(?:resident|memory)-(?:vram|local)\d*:\s*(\d+)\s*(KiB|MiB|GiB)?", re.ASCII)
"""drm-usage-stats.rst of the kernel: amdgpu says drm-memory-vram, xe drm-resident-vram0, i915 drm-resident-local0."""


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU on the PCI bus. Sizes are bytes; 0 is what the driver does not tell."""

    pci: str
    """Domain, bus, device and function, as 0000:03:00.0."""
    vendor: str
    vram_bytes: int
    """Memory of its own, or what the firmware has cut out of RAM for it."""
    gtt_bytes: int = 0
    """RAM that it may use beside."""


def cards(sys: Path) -> tuple[Card, ...]:
    """Every GPU on the bus, in the order of their addresses."""
    found = []
    for device in sorted((sys / "bus/pci/devices").glob("*:*:*.*")):
        if _text(device / "class").startswith(_DISPLAY_CLASSES):
            vendor = _text(device / "vendor")
            found.append(
                Card(
                    device.name,
                    _VENDORS.get(vendor, vendor),
                    _number(device / "mem_info_vram_total") or _intel_vram_bytes(device),
                    _number(device / "mem_info_gtt_total"),
                )
            )
    return tuple(found)


def _intel_vram_bytes(device: Path) -> int:
    return sum(_number(file) for file in device.glob("tile*/physical_vram_size_bytes"))


def is_asleep(sys: Path, pci: str) -> bool:
    """Whether the GPU is powered down. Whoever computes on it would keep it awake; asking its driver would wake it."""
    return _text(sys / "bus/pci/devices" / pci / "power/runtime_status") == "suspended"


def amd_used_bytes(sys: Path, pci: str) -> int | None:
    """What all programs together have of an AMD card's own memory; None if the driver does not tell."""
    file = sys / "bus/pci/devices" / pci / "mem_info_vram_used"
    return _number(file) if file.exists() else None


def held_bytes(proc: Path, pid: int, pci: str) -> int | None:
    """What one process has of one GPU's memory, by the kernel's account of its open files. None if it has none open.

    Two files of one client tell of the same memory.
    """
    by_client: dict[str, int] = {}
    for text in _fdinfo(proc, pid):
        facts = dict(re.findall(r"^(drm-pdev|drm-client-id):\s*(\S+)$", text, re.MULTILINE))
        if facts.get("drm-pdev") == pci:
            sizes = [int(number) * _UNITS[unit] for number, unit in _HELD.findall(text)]
            # amdgpu of some kernels says the same under both names.
            by_client[facts.get("drm-client-id", "")] = max(sizes, default=0)
    return sum(by_client.values()) if by_client else None


def _fdinfo(proc: Path, pid: int) -> Iterator[str]:
    try:
        files = list((proc / str(pid) / "fdinfo").iterdir())
    except OSError:
        return
    for file in files:
        text = _text(file)
        if "drm-pdev" in text:
            yield text


def anonymous_bytes(proc: Path, pid: int) -> int | None:
    """Memory of a process that no file backs: what the kernel cannot take back by itself. None once it is gone."""
    status = _text(proc / str(pid) / "status")
    sizes = re.findall(r"^Rss(?:Anon|Shmem):\s*(\d+) kB$", status, re.MULTILINE)
    return sum(int(size) * 1024 for size in sizes) if sizes else None


def arc_bytes(proc: Path) -> int:
    """What ZFS caches beyond its minimum: used by the kernel's count, but given back when it is wanted."""
    facts = dict(re.findall(r"^(size|c_min)\s+\d+\s+(\d+)$", _text(proc / "spl/kstat/zfs/arcstats"), re.MULTILINE))
    return max(0, int(facts.get("size", 0)) - int(facts.get("c_min", 0)))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> int:
    text = _text(file)
    return int(text) if text.isdigit() else 0


def family(proc: Path, pid: int) -> list[int]:
    """A process and all that descend from it, as far as the kernel lists children."""
    found, new = [], [pid]
    while new:
        one = new.pop()
        found.append(one)
        with suppress(OSError):
            for children in (proc / str(one)).glob("task/*/children"):
                new += [int(child) for child in children.read_text().split()]
    return found
