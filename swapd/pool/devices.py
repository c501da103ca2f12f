"""The machine's memories: what there is, by llama.cpp's names, and how much of it swapd may take.

Owns the join of three views: the engine's own list (from a helper process), NVIDIA's driver, the kernel's files. The
daemon itself never opens a GPU to look at one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pynvml

from backends.base import Backend, ProbedDevice, ProbeError
from swapd.config.schema import Memory
from swapd.core.spec import RAM, DeviceSpec
from swapd.pool import nvml, sysfs
from swapd.pool.meters import AmdMeter, HostMeter, ListMeter, Meter, NvmlMeter
from swapd.pool.probes import run_probe

DEVICE_PROBE_TIMEOUT_S = 30.0
_GPU_FILES = ("dev/nvidiactl", "dev/kfd", "dev/dri", "dev/dxg")
_VK_VISIBLE = "GGML_VK_VISIBLE_DEVICES"
"""ggml-vulkan.cpp: with it a device that is no GPU (llvmpipe) counts as one."""


@dataclass(frozen=True, slots=True)
class Device:
    """One memory, named as llama.cpp prints it."""

    name: str
    description: str
    total_bytes: int
    free_bytes: int
    shares: str | None = None
    """The memory that it is carved out of."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Every memory that workers can be placed in, and how to read each."""

    devices: tuple[Device, ...]
    meters: Mapping[str, Meter] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    """Sentences about GPUs that are there and cannot be used."""

    def free_now(self) -> dict[str, Device]:
        """The devices by name, RAM with what is free of it at this moment; GPUs as they were found."""
        found = {device.name: device for device in self.devices}
        meter = self.meters.get(RAM)
        if isinstance(meter, HostMeter):
            found[RAM] = replace(found[RAM], free_bytes=meter.sizes()[1])
        return found


@dataclass(frozen=True, slots=True)
class Sight:
    """The three views of a machine's GPUs. `listed` is None when the engine could not be asked."""

    listed: tuple[ProbedDevice, ...] | None
    nvidia: tuple[nvml.NvidiaCard, ...]
    cards: tuple[sysfs.Card, ...]
    remarks: tuple[str, ...] = ()


def discover(backends: Mapping[str, Backend]) -> Machine:
    """This machine, now. Runs a helper process if anything hints at a GPU. Blocks."""
    sight = Sight((), nvml.cards(pynvml), sysfs.cards(sysfs.SYS))
    if sight.nvidia or may_have_gpu(Path("/"), os.environ, sys.platform):
        listed, remarks = list_devices(backends)
        sight = replace(sight, listed=listed, remarks=remarks)
    gpus = join(sight, pynvml, partial(_free_by_name, backends))
    host = HostMeter()
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    ram = Device(RAM, f"host memory, {cores} cores", *host.sizes())
    return Machine((*gpus.devices, ram), {**gpus.meters, RAM: host}, gpus.remarks)


def may_have_gpu(root: Path, environ: Mapping[str, str], platform: str) -> bool:
    """Whether anything hints at a GPU that llama.cpp could use: else there is no need to ask it."""
    return platform == "darwin" or bool(environ.get(_VK_VISIBLE)) or any((root / file).exists() for file in _GPU_FILES)


def list_devices(backends: Mapping[str, Backend]) -> tuple[tuple[ProbedDevice, ...] | None, tuple[str, ...]]:
    """The engines' own lists, of which the first to name a device counts, and remarks; None if none could be asked."""
    found: dict[str, ProbedDevice] = {}
    asked, remarks = False, []
    for backend in backends.values():
        probe = backend.device_probe({})
        if probe is None:
            continue
        try:
            listed = backend.read_devices(run_probe(probe, DEVICE_PROBE_TIMEOUT_S))
        except ProbeError as error:
            remarks.append(f"the devices of the backend {backend.name} could not be listed: {error}")
            continue
        asked = True
        for device in listed:
            found.setdefault(device.name, device)
    return (tuple(found.values()) if asked else None), tuple(remarks)


def _free_by_name(backends: Mapping[str, Backend]) -> Mapping[str, int]:
    return {device.name: device.free_bytes for device in list_devices(backends)[0] or ()}


def join(sight: Sight, nvml_module: Any, free_by_name: Callable[[], Mapping[str, int]]) -> Machine:
    """The GPUs of three views, each once, with the best meter there is for it. Pure."""
    if sight.listed is None:
        return _by_driver(sight, nvml_module)
    devices: list[Device] = []
    meters: dict[str, Meter] = {}
    seen: set[str] = set()
    by_pci = {card.pci: card for card in sight.cards}
    nvidia = {card.pci: card for card in sight.nvidia}
    for listed in sight.listed:
        if listed.kind not in ("gpu", "igpu") or (listed.pci and listed.pci in seen):
            continue  # One GPU under a second backend's name is the same memory, as in llama.cpp's own list.
        seen.add(listed.pci)
        card = by_pci.get(listed.pci)
        if is_unified(listed, card):
            devices.append(_device(listed, listed.total_bytes, shares=RAM))
        elif listed.pci in nvidia:
            total = nvidia[listed.pci].total_bytes
            devices.append(_device(listed, total, free_bytes=nvidia[listed.pci].free_bytes))
            meters[listed.name] = NvmlMeter(nvml_module, listed.pci, total)
        elif card is not None and card.vendor == "AMD" and card.vram_bytes:
            devices.append(_device(listed, card.vram_bytes))
            meters[listed.name] = AmdMeter(listed.pci, card.vram_bytes)
        else:
            total = listed.total_bytes or (card.vram_bytes if card is not None else 0)
            devices.append(_device(listed, total))
            meters[listed.name] = ListMeter(listed.name, listed.pci, total, free_by_name)
    return Machine(tuple(devices), meters, (*sight.remarks, *_unusable(sight, seen)))


def is_unified(listed: ProbedDevice, card: sysfs.Card | None) -> bool:
    """Whether a GPU's memory is the host's.

    Integrated ones, and Apple's, which llama.cpp lists like any other; and a GPU in software. Not one for which the
    firmware has cut so much out of RAM that this is what it is meant to live in.
    """
    if listed.description.startswith("Apple") or "llvmpipe" in listed.description:
        return True
    return listed.kind == "igpu" and not (card is not None and card.vram_bytes > card.gtt_bytes)


def _device(listed: ProbedDevice, total: int, *, free_bytes: int | None = None, shares: str | None = None) -> Device:
    free = listed.free_bytes if free_bytes is None else free_bytes
    return Device(listed.name, listed.description, total, min(free, total), shares)


def _by_driver(sight: Sight, nvml_module: Any) -> Machine:
    """Without the engine's word: NVIDIA's GPUs if they are all alike. Of different ones the fastest is CUDA0, and which
    that is only CUDA knows."""
    alike = len({card.description for card in sight.nvidia}) == 1
    cards = sorted(sight.nvidia, key=lambda one: one.pci) if alike else []
    devices, meters = [], {}
    for index, card in enumerate(cards):
        name = f"CUDA{index}"
        devices.append(Device(name, card.description, card.total_bytes, card.free_bytes))
        meters[name] = NvmlMeter(nvml_module, card.pci, card.total_bytes)
    return Machine(tuple(devices), meters, (*sight.remarks, *_unusable(sight, {card.pci for card in cards})))


def _unusable(sight: Sight, seen: set[str]) -> Iterable[str]:
    """GPUs with a memory of their own that no engine lists."""
    named = {card.pci: card.description for card in sight.nvidia}
    for card in sight.cards:
        if card.pci not in named and card.vram_bytes > card.gtt_bytes:
            named[card.pci] = f"a GPU by {card.vendor}"
    for pci, description in named.items():
        if pci not in seen:
            yield f"{description} at {pci} is not used: llama.cpp does not list it (no backend for it, or it is hidden)"


def budgets(memory: Memory, machine: Machine) -> tuple[DeviceSpec, ...]:
    """How much of each device swapd may take, by the configuration.

    A size is taken as it is given; a share and the default `auto` leave the reserve alone.
    """
    found = []
    for device in machine.devices:
        budget = memory.budget.get(device.name, memory.default)
        reserve = 0 if budget.size_bytes is not None else memory.reserve_bytes
        if budget.size_bytes is not None:
            size_bytes = budget.size_bytes
        else:
            share = 1.0 if budget.share is None else budget.share
            size_bytes = max(0, int(device.total_bytes * share) - reserve)
        meter = machine.meters.get(device.name)
        found.append(
            DeviceSpec(
                device.name,
                device.total_bytes,
                size_bytes,
                device.shares,
                reserve,
                metered=meter is not None,
                slow_meter=meter is not None and meter.slow,
            )
        )
    return tuple(found)
