"""What a machine has, joined from the engine's list, NVIDIA's driver and the kernel's files; and budgets of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.machines import GIB, MIB, NvidiaGpu, ScriptedNvml
from support.scripted_backend import ScriptedBackend

from backends.base import LaunchSpec, ProbedDevice, ProbeError
from backends.llama_cpp.backend import LlamaCppBackend
from swapd.config.schema import Budget, Memory
from swapd.core.placement import place
from swapd.core.spec import RAM, DeviceSpec, LayerCosts, ModelSpec, Room
from swapd.pool import nvml
from swapd.pool.devices import Device, Machine, Sight, budgets, discover, join, list_devices, may_have_gpu
from swapd.pool.meters import AmdMeter, HostMeter, ListMeter, NvmlMeter
from swapd.pool.sysfs import Card

TWO_NVIDIA = ScriptedNvml(NvidiaGpu("00000000:01:00.0"), NvidiaGpu("00000000:02:00.0", free=5 * GIB))


def listed(name: str, kind: str = "gpu", pci: str = "", description: str = "a GPU", gib: int = 16) -> ProbedDevice:
    return ProbedDevice(name, description, kind, gib * GIB, (gib - 1) * GIB, pci)


def seen(
    *found: ProbedDevice, driver: ScriptedNvml | None = None, cards: tuple[Card, ...] = (), asked: bool = True
) -> Machine:
    module = driver or ScriptedNvml(driver=False)
    return join(Sight(found if asked else None, nvml.cards(module), cards), module, dict)


def test_nvidias_gpus_have_the_engines_names_and_the_drivers_figures() -> None:
    """The engine counts the fastest first, the driver by address."""
    machine = seen(
        listed("CUDA0", pci="0000:02:00.0"),
        listed("CUDA1", pci="0000:01:00.0"),
        listed("CPU", "cpu"),
        driver=TWO_NVIDIA,
    )
    assert machine.devices == (
        Device("CUDA0", "a GPU", 24 * GIB, 5 * GIB),
        Device("CUDA1", "a GPU", 24 * GIB, 23 * GIB),
    )
    assert machine.meters == {
        "CUDA0": NvmlMeter(TWO_NVIDIA, "0000:02:00.0", 24 * GIB),
        "CUDA1": NvmlMeter(TWO_NVIDIA, "0000:01:00.0", 24 * GIB),
    }


def test_an_amd_gpu_is_metered_by_the_kernel() -> None:
    card = Card("0000:03:00.0", "AMD", 20 * GIB, 32 * GIB)
    machine = seen(listed("ROCm0", pci=card.pci), cards=(card,))
    assert machine.devices == (Device("ROCm0", "a GPU", 20 * GIB, 15 * GIB),)
    assert machine.meters == {"ROCm0": AmdMeter(card.pci, 20 * GIB)}


def test_a_gpu_whose_driver_says_nothing_is_metered_by_the_engines_list() -> None:
    card = Card("0000:03:00.0", "Intel", 8 * GIB)
    meter = seen(listed("SYCL0", pci=card.pci), cards=(card,)).meters["SYCL0"]
    assert isinstance(meter, ListMeter)
    assert (meter.name, meter.pci, meter.total_bytes) == ("SYCL0", card.pci, 16 * GIB)


def test_one_gpu_under_two_backends_names_is_one() -> None:
    machine = seen(listed("CUDA0", pci="0000:01:00.0"), listed("Vulkan0", pci="0000:01:00.0"), driver=TWO_NVIDIA)
    assert [device.name for device in machine.devices] == ["CUDA0"]


def test_gpus_without_an_address_are_all_taken() -> None:
    assert len(seen(listed("SYCL0"), listed("SYCL1")).devices) == 2


@pytest.mark.parametrize(
    "found",
    [
        listed("Vulkan0", "igpu", description="Intel(R) Iris(R) Xe Graphics"),
        listed("MTL0", "gpu", description="Apple M3 Max"),
        listed("Vulkan0", "gpu", description="llvmpipe (LLVM 15.0.6, 256 bits)"),
    ],
    ids=lambda found: found.description,
)
def test_a_gpu_that_lives_in_ram_shares_it_and_needs_no_meter_of_its_own(found: ProbedDevice) -> None:
    machine = seen(found)
    (device,) = machine.devices
    assert device.shares == RAM
    assert machine.meters == {}


def test_a_large_apu_shares_ram_or_lives_in_what_the_firmware_cut_out_for_it() -> None:
    apu = listed("Vulkan0", "igpu", pci="0000:c5:00.0", description="Radeon 8060S", gib=96)
    small = Card("0000:c5:00.0", "AMD", 512 * MIB, 62 * GIB)
    large = Card("0000:c5:00.0", "AMD", 96 * GIB, 16 * GIB)
    assert seen(apu, cards=(small,)).devices[0].shares == RAM
    assert seen(apu, cards=(large,)).devices == (Device("Vulkan0", "Radeon 8060S", 96 * GIB, 95 * GIB),)


def test_a_gpu_that_the_engine_does_not_list_is_remarked_on() -> None:
    cards = (Card("0000:09:00.0", "AMD", 16 * GIB, 8 * GIB), Card("0000:c5:00.0", "AMD", 512 * MIB, 62 * GIB))
    machine = seen(listed("CUDA0", pci="0000:01:00.0"), driver=TWO_NVIDIA, cards=cards)
    assert machine.remarks == (
        "NVIDIA GeForce RTX 3090 at 0000:02:00.0 is not used: "
        "llama.cpp does not list it (no backend for it, or it is hidden)",
        "a GPU by AMD at 0000:09:00.0 is not used: llama.cpp does not list it (no backend for it, or it is hidden)",
    )


def test_without_the_engines_word_like_gpus_of_nvidia_are_counted_by_address() -> None:
    machine = seen(driver=TWO_NVIDIA, asked=False)
    assert [(device.name, device.free_bytes) for device in machine.devices] == [("CUDA0", 23 * GIB), ("CUDA1", 5 * GIB)]


def test_but_which_of_different_ones_is_the_first_nobody_knows() -> None:
    driver = ScriptedNvml(NvidiaGpu("00000000:01:00.0"), NvidiaGpu("00000000:02:00.0", name="NVIDIA L4"))
    machine = seen(driver=driver, asked=False)
    assert machine.devices == ()
    assert len(machine.remarks) == 2


# -- whole machines, as the helper process prints them ----------------------------------------------------------------

CPU = {"name": "CPU", "description": "AMD Ryzen 9", "kind": "cpu", "total_bytes": 64 * GIB, "free_bytes": 60 * GIB}


def printed(*devices: dict[str, object]) -> tuple[ProbedDevice, ...]:
    """Through the embedded backend's own reading of what its helper prints."""
    document = json.dumps({"probe": "devices", "devices": [*devices, CPU]})
    return LlamaCppBackend().read_devices(document.encode())


def gpu(name: str, description: str, gib: int, pci: str = "", kind: str = "gpu") -> dict[str, object]:
    sizes = {"total_bytes": gib * GIB, "free_bytes": gib * GIB}
    return {"name": name, "description": description, "kind": kind, "pci": pci, **sizes}


def test_a_rig_of_two_cards_and_a_build_for_cuda_and_vulkan() -> None:
    machine = seen(
        *printed(
            gpu("CUDA0", "NVIDIA GeForce RTX 4090", 24, "0000:02:00.0"),
            gpu("CUDA1", "NVIDIA GeForce GTX 1080", 8, "0000:01:00.0"),
            gpu("Vulkan0", "NVIDIA GeForce RTX 4090", 24, "0000:02:00.0"),
            gpu("Vulkan1", "NVIDIA GeForce GTX 1080", 8, "0000:01:00.0"),
            gpu("Vulkan2", "AMD Radeon Graphics (RADV RAPHAEL)", 32, "0000:0d:00.0", "igpu"),
        ),
        driver=TWO_NVIDIA,
        cards=(Card("0000:0d:00.0", "AMD", 512 * MIB, 31 * GIB),),
    )
    assert [(device.name, device.shares) for device in machine.devices] == [
        ("CUDA0", None), ("CUDA1", None), ("Vulkan2", RAM),
    ]  # fmt: skip
    assert machine.remarks == ()


def test_an_apple_machine_has_one_memory_under_two_names() -> None:
    machine = seen(*printed(gpu("MTL0", "Apple M3 Max", 48)))
    assert machine.devices == (Device("MTL0", "Apple M3 Max", 48 * GIB, 48 * GIB, shares=RAM),)
    (spec, host) = budgets(Memory(reserve_bytes=0), Machine((*machine.devices, Device(RAM, "", 64 * GIB, 60 * GIB))))
    room = Room.of_budgets((spec, host))
    costs = LayerCosts((GIB,) * 60, (0,) * 60, host_bytes=0, compute_bytes=0)
    assert place(ModelSpec("m", "", 1, costs, n_gpu_layers=60), room) is None, "the GPU may take 48 of the 64"
    found = place(ModelSpec("m", "", 1, costs), room)
    assert found is not None
    assert found.device_bytes == {"MTL0": 48 * GIB, RAM: 60 * GIB}


def test_a_strix_halo_with_most_of_its_memory_as_ram() -> None:
    apu = gpu("ROCm0", "AMD Radeon Graphics", 62, "0000:c5:00.0", "igpu")
    twin = gpu("Vulkan0", "AMD Radeon Graphics (RADV GFX1151)", 62, "0000:c5:00.0", "igpu")
    machine = seen(*printed(apu, twin), cards=(Card("0000:c5:00.0", "AMD", 512 * MIB, 62 * GIB),))
    assert [(device.name, device.shares) for device in machine.devices] == [("ROCm0", RAM)]


def test_an_intel_card_beside_its_processors_graphics() -> None:
    machine = seen(
        *printed(
            gpu("SYCL0", "Intel(R) Arc(TM) B580 Graphics", 12, "0000:03:00.0"),
            gpu("SYCL1", "Intel(R) UHD Graphics 770", 30, "0000:00:02.0", "igpu"),
        ),
        cards=(Card("0000:00:02.0", "Intel", 0), Card("0000:03:00.0", "Intel", 12 * GIB)),
    )
    assert [(device.name, device.shares) for device in machine.devices] == [("SYCL0", None), ("SYCL1", RAM)]
    assert list(machine.meters) == ["SYCL0"]


# -- the engine's list -----------------------------------------------------------------------------------------------


class Listing(ScriptedBackend):
    """A backend whose device probe is a real process that prints a document, or fails to."""

    def __init__(self, program: str) -> None:
        self.program = program

    def device_probe(self, env: Mapping[str, str]) -> LaunchSpec:
        return LaunchSpec((sys.executable, "-c", self.program), {})

    def read_devices(self, output: bytes) -> tuple[ProbedDevice, ...]:
        try:
            return tuple(ProbedDevice(**one) for one in json.loads(output))
        except ValueError as error:
            raise ProbeError("it printed no list") from error


def printing(*devices: ProbedDevice) -> Listing:
    keys = ("name", "description", "kind", "total_bytes", "free_bytes", "pci")
    return Listing(f"print({json.dumps([{key: getattr(one, key) for key in keys} for one in devices])!r})")


def test_several_engines_lists_are_one_in_which_the_first_counts() -> None:
    backends = {"a": printing(listed("CUDA0", gib=8)), "b": printing(listed("CUDA0", gib=99), listed("X0"))}
    found, remarks = list_devices(backends)
    assert found is not None
    assert [(device.name, device.total_bytes) for device in found] == [("CUDA0", 8 * GIB), ("X0", 16 * GIB)]
    assert remarks == ()


def test_an_engine_that_cannot_be_asked_is_remarked_on() -> None:
    found, remarks = list_devices({"a": Listing("raise SystemExit(3)")})
    assert found is None
    assert remarks == ("the devices of the backend scripted could not be listed: it printed no list",)


def test_engines_without_a_probe_have_no_list() -> None:
    assert list_devices({"a": ScriptedBackend()}) == (None, ())


@pytest.mark.parametrize("file", ["dev/nvidiactl", "dev/kfd", "dev/dri/renderD128", "dev/dxg"])
def test_a_device_file_hints_at_a_gpu(tmp_path: Path, file: str) -> None:
    assert not may_have_gpu(tmp_path, {}, "linux")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    assert may_have_gpu(tmp_path, {}, "linux")


def test_a_mac_has_one_and_a_vulkan_device_may_be_asked_for_by_hand(tmp_path: Path) -> None:
    assert may_have_gpu(tmp_path, {}, "darwin")
    assert may_have_gpu(tmp_path, {"GGML_VK_VISIBLE_DEVICES": "0"}, "linux")


def test_this_machine_has_ram_at_least() -> None:
    machine = discover({})
    assert machine.devices[-1].name == RAM
    assert isinstance(machine.meters[RAM], HostMeter)
    assert 0 < machine.free_now()[RAM].free_bytes <= machine.devices[-1].total_bytes


# -- budgets ---------------------------------------------------------------------------------------------------------


def specs(memory: Memory) -> dict[str, DeviceSpec]:
    gpu, host = Device("CUDA0", "", 24 * GIB, 0), Device(RAM, "", 64 * GIB, 0)
    shared = Device("Vulkan0", "", 48 * GIB, 0, shares=RAM)
    meters = {"CUDA0": NvmlMeter(TWO_NVIDIA, "0000:01:00.0", 24 * GIB), RAM: HostMeter()}
    return {spec.name: spec for spec in budgets(memory, Machine((gpu, shared, host), meters))}


def test_auto_is_all_but_the_reserve() -> None:
    found = specs(Memory(reserve_bytes=GIB))
    assert (found["CUDA0"].budget_bytes, found["CUDA0"].reserve_bytes) == (23 * GIB, GIB)
    assert found[RAM].budget_bytes == 63 * GIB


def test_a_share_is_that_share_less_the_reserve() -> None:
    found = specs(Memory(budget={"CUDA0": Budget(share=0.5)}, reserve_bytes=GIB))
    assert found["CUDA0"].budget_bytes == 11 * GIB


def test_a_size_is_taken_as_given_and_reserves_nothing() -> None:
    found = specs(Memory(budget={"CUDA0": Budget(size_bytes=24 * GIB)}, reserve_bytes=GIB))
    assert (found["CUDA0"].budget_bytes, found["CUDA0"].reserve_bytes) == (24 * GIB, 0)


def test_a_device_of_its_own_default_keeps_off() -> None:
    found = specs(Memory(default=Budget(size_bytes=0), budget={RAM: Budget(share=1.0)}, reserve_bytes=0))
    assert (found["CUDA0"].budget_bytes, found[RAM].budget_bytes) == (0, 64 * GIB)


def test_the_core_hears_which_memory_is_shared_and_which_can_be_read() -> None:
    found = specs(Memory())
    assert (found["CUDA0"].metered, found["CUDA0"].shares) == (True, None)
    assert (found["Vulkan0"].metered, found["Vulkan0"].shares) == (False, RAM)
