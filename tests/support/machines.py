"""Made-up machines: sysfs and proc trees, a scripted NVML, a meter whose figures a test sets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

from swapd.pool.meters import Reading

MIB = 1024 * 1024
GIB = 1024 * MIB


def write(root: Path, files: Mapping[str, str | int]) -> Path:
    """Files by their path below a root, each ended by a newline as the kernel's are."""
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


def pci_device(root: Path, address: str, **files: str | int) -> Path:
    """One device on the bus; a double underscore stands for a slash."""
    name = f"bus/pci/devices/{address}"
    return write(root, {f"{name}/{file.replace('__', '/')}": text for file, text in files.items()})


def amd_card(root: Path, address: str, *, vram: int, used: int = 0, gtt: int = 0, status: str = "active") -> Path:
    return pci_device(
        root,
        address,
        **{"class": "0x030000"},
        vendor="0x1002",
        mem_info_vram_total=vram,
        mem_info_vram_used=used,
        mem_info_gtt_total=gtt,
        power__runtime_status=status,
    )


def fdinfo(root: Path, pid: int, number: int, **keys: str) -> Path:
    lines = ["pos:\t0", "flags:\t02100002", *(f"{key.replace('_', '-')}:\t{text}" for key, text in keys.items())]
    return write(root, {f"{pid}/fdinfo/{number}": "\n".join(lines)})


@dataclass
class NvidiaGpu:
    """One GPU of the scripted driver. A process's memory is None where the driver does not tell."""

    bus_id: str
    name: str = "NVIDIA GeForce RTX 3090"
    total: int = 24 * GIB
    free: int = 23 * GIB
    computing: dict[int, int | None] = field(default_factory=dict)
    drawing: dict[int, int | None] = field(default_factory=dict)
    lost: bool = False


class ScriptedNvml:
    """What is used of the module `pynvml`, with its habits: bytes or texts, long addresses, None for unknown."""

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: NvidiaGpu, driver: bool = True) -> None:
        self.gpus = gpus
        self.driver = driver
        self.opened = 0
        self.most_opened = 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.opened += 1
        self.most_opened = max(self.most_opened, self.opened)

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> NvidiaGpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByPciBusId(self, address: bytes) -> NvidiaGpu:
        for gpu in self.gpus:
            if gpu.bus_id.lower().endswith(address.decode()):
                return gpu
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetName(self, handle: NvidiaGpu) -> str:
        return handle.name

    def nvmlDeviceGetPciInfo(self, handle: NvidiaGpu) -> SimpleNamespace:
        return SimpleNamespace(busId=handle.bus_id.encode())

    def nvmlDeviceGetMemoryInfo(self, handle: NvidiaGpu) -> SimpleNamespace:
        if handle.lost:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(total=handle.total, free=handle.free, used=handle.total - handle.free)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: NvidiaGpu) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in handle.computing.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: NvidiaGpu) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in handle.drawing.items()]


@dataclass
class ScriptedMeter:
    """Shows what a test says, and counts how often it is asked."""

    slow: ClassVar[bool] = False
    free_mib: int | None
    """Without the daemon's own processes; None gives no answer."""
    each_mib: int = 0
    """What each of those takes."""
    tells_who: bool = False
    readings: int = 0

    def read(self, pids: Collection[int]) -> Reading | None:
        self.readings += 1
        if self.free_mib is None:
            return None
        held = dict.fromkeys(pids, self.each_mib * MIB) if self.tells_who else None
        return Reading((self.free_mib - self.each_mib * len(pids)) * MIB, held)
