"""Meters over made-up trees and drivers: what is free, who has what, and that a sleeping GPU is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
from support.machines import GIB, MIB, NvidiaGpu, ScriptedNvml, amd_card, fdinfo, pci_device, write

from swapd.pool.meters import AmdMeter, HostMeter, ListMeter, NvmlMeter, Reading, cgroup_limit_bytes, cgroup_used_bytes

PCI = "0000:03:00.0"


def test_an_nvidia_gpu_tells_of_the_processes_asked_for(tmp_path: Path) -> None:
    nvml = ScriptedNvml(NvidiaGpu(f"0000{PCI}", free=20 * GIB, computing={7: GIB, 8: 2 * GIB}))
    meter = NvmlMeter(nvml, PCI, 24 * GIB, sys=tmp_path)
    assert meter.read([7, 99]) == Reading(20 * GIB, {7: GIB})


def test_one_whose_driver_does_not_tell_says_so(tmp_path: Path) -> None:
    nvml = ScriptedNvml(NvidiaGpu(f"0000{PCI}", computing={7: None}))
    assert NvmlMeter(nvml, PCI, 24 * GIB, sys=tmp_path).read([7]) == Reading(23 * GIB, None)


def test_a_sleeping_nvidia_gpu_is_free_and_its_driver_is_not_asked(tmp_path: Path) -> None:
    pci_device(tmp_path, PCI, power__runtime_status="suspended")
    nvml = ScriptedNvml(NvidiaGpu(f"0000{PCI}"))
    assert NvmlMeter(nvml, PCI, 24 * GIB, sys=tmp_path).read([7]) == Reading(24 * GIB, {})
    assert nvml.most_opened == 0


def test_a_driver_without_an_answer_gives_no_reading(tmp_path: Path) -> None:
    assert NvmlMeter(ScriptedNvml(driver=False), PCI, 24 * GIB, sys=tmp_path).read([]) is None


def test_an_amd_gpu_is_read_from_files(tmp_path: Path) -> None:
    amd_card(tmp_path / "sys", PCI, vram=16 * GIB, used=5 * GIB)
    fdinfo(tmp_path / "proc", 7, 3, drm_pdev=PCI, drm_client_id="1", drm_memory_vram="4 GiB")
    meter = AmdMeter(PCI, 16 * GIB, sys=tmp_path / "sys", proc=tmp_path / "proc")
    assert meter.read([7, 8]) == Reading(11 * GIB, {7: 4 * GIB})


def test_a_sleeping_amd_gpu_is_free(tmp_path: Path) -> None:
    amd_card(tmp_path, PCI, vram=16 * GIB, used=5 * GIB, status="suspended")
    assert AmdMeter(PCI, 16 * GIB, sys=tmp_path, proc=tmp_path).read([7]) == Reading(16 * GIB, {})


def test_an_amd_gpu_that_is_gone_gives_no_reading(tmp_path: Path) -> None:
    assert AmdMeter(PCI, 16 * GIB, sys=tmp_path, proc=tmp_path).read([]) is None


def test_other_gpus_are_read_from_the_engines_own_list(tmp_path: Path) -> None:
    fdinfo(tmp_path, 7, 3, drm_pdev=PCI, drm_client_id="1", drm_resident_vram0="1 GiB")
    meter = ListMeter("SYCL0", PCI, 16 * GIB, lambda: {"SYCL0": 9 * GIB}, sys=tmp_path, proc=tmp_path)
    assert meter.slow
    assert meter.read([7]) == Reading(9 * GIB, {7: GIB})


def test_one_without_an_address_does_not_tell_who_has_what(tmp_path: Path) -> None:
    meter = ListMeter("SYCL0", "", 16 * GIB, lambda: {"SYCL0": 9 * GIB}, sys=tmp_path, proc=tmp_path)
    assert meter.read([7]) == Reading(9 * GIB, None)


def test_a_helper_that_failed_gives_no_reading(tmp_path: Path) -> None:
    assert ListMeter("SYCL0", "", 16 * GIB, dict, sys=tmp_path, proc=tmp_path).read([7]) is None


def test_a_sleeping_gpu_costs_no_helper(tmp_path: Path) -> None:
    pci_device(tmp_path, PCI, power__runtime_status="suspended")

    def never() -> dict[str, int]:
        raise AssertionError("the helper was run")

    assert ListMeter("SYCL0", PCI, 16 * GIB, never, sys=tmp_path, proc=tmp_path).read([7]) == Reading(16 * GIB, {})


def test_ram_is_what_the_kernel_counts_as_available(tmp_path: Path) -> None:
    meter = HostMeter(cgroup=tmp_path)
    reading = meter.read([os.getpid(), 2**30])
    total, free = meter.sizes()
    assert total == psutil.virtual_memory().total
    assert 0 < free <= total
    assert set(reading.held_bytes or {}) == {os.getpid()}


def test_within_a_containers_limit_its_own_use_counts_less_cached_files(tmp_path: Path) -> None:
    stat = "anon 1\ninactive_file 209715200\nactive_file 104857600\nfile_mapped 5"
    write(tmp_path, {"memory.max": GIB, "memory.current": 700 * MIB, "memory.stat": stat})
    assert cgroup_limit_bytes(tmp_path) == GIB
    assert cgroup_used_bytes(tmp_path) == 400 * MIB
    assert HostMeter(cgroup=tmp_path).sizes() == (GIB, 624 * MIB)


def test_the_older_control_groups_have_other_names(tmp_path: Path) -> None:
    stat = "cache 5\ntotal_inactive_file 209715200\ntotal_active_file 104857600"
    write(
        tmp_path / "memory",
        {"memory.limit_in_bytes": GIB, "memory.usage_in_bytes": 700 * MIB, "memory.stat": stat},
    )
    assert HostMeter(cgroup=tmp_path).sizes() == (GIB, 624 * MIB)


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_limit_bytes(write(tmp_path / "two", {"memory.max": "max"})) is None
    assert cgroup_limit_bytes(write(tmp_path / "one", {"memory/memory.limit_in_bytes": 2**63 - 4096})) is None
    assert cgroup_used_bytes(tmp_path / "nowhere") == 0
