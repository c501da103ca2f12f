"""GPUs in trees of files as the kernel makes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.machines import GIB, MIB, amd_card, fdinfo, pci_device, write

from swapd.pool.sysfs import (
    PROC,
    Card,
    amd_used_bytes,
    anonymous_bytes,
    arc_bytes,
    cards,
    held_bytes,
    is_asleep,
)

PCI = "0000:03:00.0"


def test_cards_are_the_display_devices_in_the_order_of_their_addresses(tmp_path: Path) -> None:
    amd_card(tmp_path, "0000:0c:00.0", vram=512 * MIB, gtt=48 * GIB)
    amd_card(tmp_path, PCI, vram=24 * GIB, gtt=32 * GIB)
    pci_device(tmp_path, "0000:00:1f.0", **{"class": "0x060100"}, vendor="0x8086")
    pci_device(tmp_path, "0000:01:00.0", **{"class": "0x030200"}, vendor="0x10de")
    assert cards(tmp_path) == (
        Card("0000:01:00.0", "NVIDIA", 0),
        Card(PCI, "AMD", 24 * GIB, 32 * GIB),
        Card("0000:0c:00.0", "AMD", 512 * MIB, 48 * GIB),
    )


def test_an_intel_cards_memory_is_that_of_its_tiles(tmp_path: Path) -> None:
    tiles = {"tile0__physical_vram_size_bytes": 8 * GIB, "tile1__physical_vram_size_bytes": 8 * GIB}
    pci_device(tmp_path, PCI, **{"class": "0x038000"}, vendor="0x8086", **tiles)
    assert cards(tmp_path) == (Card(PCI, "Intel", 16 * GIB),)


def test_a_machine_without_a_bus_has_no_cards(tmp_path: Path) -> None:
    assert cards(tmp_path) == ()


@pytest.mark.parametrize(("status", "asleep"), [("suspended", True), ("active", False), ("resuming", False)])
def test_a_card_that_is_powered_down_sleeps(tmp_path: Path, status: str, asleep: bool) -> None:
    amd_card(tmp_path, PCI, vram=GIB, status=status)
    assert is_asleep(tmp_path, PCI) is asleep


def test_a_card_nobody_knows_of_is_awake(tmp_path: Path) -> None:
    assert not is_asleep(tmp_path, PCI)


def test_what_is_used_of_an_amd_card(tmp_path: Path) -> None:
    amd_card(tmp_path, PCI, vram=GIB, used=300 * MIB)
    assert amd_used_bytes(tmp_path, PCI) == 300 * MIB
    assert amd_used_bytes(tmp_path, "0000:09:00.0") is None


@pytest.mark.parametrize(
    ("keys", "size"),
    [
        ({"drm_memory_vram": "2048 KiB", "drm_memory_gtt": "9 MiB"}, 2 * MIB),
        ({"drm_memory_vram": "2048 KiB", "drm_resident_vram": "2048 KiB"}, 2 * MIB),
        ({"drm_resident_vram0": "3 MiB", "drm_total_vram0": "7 MiB", "drm_resident_gtt": "1 MiB"}, 3 * MIB),
        ({"drm_resident_local0": "5 GiB"}, 5 * GIB),
        ({"drm_memory_vram": "0"}, 0),
    ],
)
def test_what_a_process_holds_by_each_drivers_words(tmp_path: Path, keys: dict[str, str], size: int) -> None:
    fdinfo(tmp_path, 42, 7, drm_driver="some", drm_pdev=PCI, drm_client_id="3", **keys)
    assert held_bytes(tmp_path, 42, PCI) == size


def test_files_of_one_client_count_once_and_those_of_several_add_up(tmp_path: Path) -> None:
    for number, client in ((3, "1"), (4, "1"), (5, "2")):
        fdinfo(tmp_path, 42, number, drm_pdev=PCI, drm_client_id=client, drm_memory_vram="1 MiB")
    fdinfo(tmp_path, 42, 6, drm_pdev="0000:09:00.0", drm_client_id="9", drm_memory_vram="64 MiB")
    fdinfo(tmp_path, 42, 8)
    assert held_bytes(tmp_path, 42, PCI) == 2 * MIB


def test_a_process_that_has_not_opened_the_gpu_or_is_gone_holds_nothing_that_is_known(tmp_path: Path) -> None:
    fdinfo(tmp_path, 42, 3)
    assert held_bytes(tmp_path, 42, PCI) is None
    assert held_bytes(tmp_path, 43, PCI) is None


def test_a_process_has_what_no_file_backs(tmp_path: Path) -> None:
    write(tmp_path, {"42/status": "Name:\tpython\nRssAnon:\t  2048 kB\nRssFile:\t 9000 kB\nRssShmem:\t 1024 kB"})
    assert anonymous_bytes(tmp_path, 42) == 3 * MIB
    assert anonymous_bytes(tmp_path, 43) is None


def test_of_this_very_process_the_kernel_tells() -> None:
    size = anonymous_bytes(PROC, os.getpid())
    assert size is not None
    assert MIB < size < 64 * GIB


def test_what_zfs_caches_beyond_its_minimum_is_not_lost(tmp_path: Path) -> None:
    text = "13 1 0x01 147 39984 1 2\nname type data\nc_min 4 1073741824\nsize 4 5368709120"
    assert arc_bytes(write(tmp_path, {"spl/kstat/zfs/arcstats": text})) == 4 * GIB
    assert arc_bytes(tmp_path / "nowhere") == 0
