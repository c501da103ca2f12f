"""NVIDIA's driver through NVML, opened for each question and closed again: held open it would keep a GPU awake.

The module `pynvml` is an argument: tests bring a scripted one. Must never open a CUDA context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NvidiaCard:
    pci: str
    description: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class NvidiaMemory:
    free_bytes: int
    by_pid: Mapping[int, int] | None
    """Of each process with a context there; None where the driver does not tell, as in WSL."""


def cards(nvml: Any) -> tuple[NvidiaCard, ...]:
    """Every NVIDIA GPU that answers, in the order of NVML; none without a driver."""
    try:
        with _opened(nvml):
            cards = [_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return ()
    return tuple(card for card in cards if card is not None)


def _card(nvml: Any, index: int) -> NvidiaCard | None:
    """None for one that has fallen off the bus: the others are there nevertheless."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        pci = _address(nvml.nvmlDeviceGetPciInfo(handle).busId)
        return NvidiaCard(pci, _text(nvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free))
    except nvml.NVMLError:
        return None


def read(nvml: Any, pci: str) -> NvidiaMemory | None:
    """How much of one GPU is free, and who has the rest; None if the driver does not answer."""
    try:
        with _opened(nvml):
            handle = nvml.nvmlDeviceGetHandleByPciBusId(pci.encode())
            return NvidiaMemory(int(nvml.nvmlDeviceGetMemoryInfo(handle).free), _by_pid(nvml, handle))
    except nvml.NVMLError:
        return None


def _by_pid(nvml: Any, handle: Any) -> Mapping[int, int] | None:
    sizes: dict[int, int] = {}
    for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        try:
            processes = ask(handle)
        except nvml.NVMLError:
            return None
        for process in processes:
            if process.usedGpuMemory is None:
                return None
            # A process that computes and draws is in both lists with the same figure.
            sizes[process.pid] = max(sizes.get(process.pid, 0), int(process.usedGpuMemory))
    return sizes


@contextmanager
def _opened(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _address(bus_id: bytes | str) -> str:
    """As the kernel writes it: NVML has eight digits of domain, and capitals."""
    domain, _, rest = _text(bus_id).lower().partition(":")
    return f"{domain[-4:]:0>4}:{rest}"


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
