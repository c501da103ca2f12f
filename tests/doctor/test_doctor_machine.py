"""Checks of a machine, on machines made of files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from swapd.doctor import machine
from swapd.doctor.findings import Finding


def files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def grades(found: list[Finding]) -> dict[str, str]:
    return {one.check: one.grade for one in found}


def test_a_machine_without_gpus_has_nothing_to_find(tmp_path: Path) -> None:
    assert list(machine.gpu_files(tmp_path)) == []
    assert machine.vulkan_drivers(tmp_path) is None


def test_a_gpus_files_must_be_there_and_be_ours_to_use(tmp_path: Path) -> None:
    files(tmp_path, "dev/nvidiactl", "dev/nvidia0", "dev/kfd", "dev/dri/renderD128")
    (missing, *_) = machine.gpu_files(tmp_path)
    assert (missing.grade, missing.said) == ("fail", "/dev/nvidia-uvm is not there")
    assert "nvidia-modprobe" in missing.remedy
    files(tmp_path, "dev/nvidia-uvm")
    assert set(grades(list(machine.gpu_files(tmp_path))).values()) == {"ok"}
    closed = list(machine.gpu_files(tmp_path, may=lambda path: path.name not in ("kfd", "renderD128")))
    assert grades(closed) == {machine.NVIDIA: "ok", machine.AMD: "fail", "render nodes": "fail"}
    assert closed[1].said == "/dev/kfd may not be used"
    assert "video and render" in closed[1].remedy


def test_a_render_node_without_a_vulkan_driver_is_worth_a_word(tmp_path: Path) -> None:
    files(tmp_path, "dev/dri/renderD128")
    found = machine.vulkan_drivers(tmp_path)
    assert found is not None
    assert found.grade == "warn"
    files(tmp_path, "usr/share/vulkan/icd.d/radeon_icd.x86_64.json")
    found = machine.vulkan_drivers(tmp_path)
    assert found is not None
    assert (found.grade, found.said) == ("ok", "radeon_icd.x86_64")


def test_directories_are_the_daemons_own(tmp_path: Path) -> None:
    uid = os.getuid()
    state = tmp_path / "a" / "state"
    assert machine.private_directory("state_dir", state, uid).said == f"{state} will be made"
    state.mkdir(parents=True, mode=0o755)
    opened = machine.private_directory("state_dir", state, uid)
    assert (opened.grade, opened.remedy) == ("fail", f"chmod 700 {state}")
    state.chmod(0o700)
    assert machine.private_directory("state_dir", state, uid).grade == "ok"
    assert machine.private_directory("state_dir", state, uid + 1).grade == "warn"


def test_a_file_of_keys_is_nobody_elses_to_write(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert machine.keys_file(keys).grade == "fail"
    keys.touch(mode=0o600)
    assert machine.keys_file(keys).grade == "ok"
    keys.chmod(0o666)
    assert machine.keys_file(keys).remedy == f"chmod 600 {keys}"


def test_an_address_is_free_or_taken_or_not_ours(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        taken = machine.address(f"127.0.0.1:{port}")
    assert taken.grade == "fail"
    assert f"sport = :{port}" in taken.remedy
    assert machine.address(f"127.0.0.1:{port}").grade == "ok"
    assert machine.address("192.0.2.1:80").remedy == "set server.listen to an own address"
    assert machine.address(f"unix:{tmp_path / 'swapd.sock'}").grade == "ok"
    assert machine.address(f"unix:{tmp_path / 'none' / 'swapd.sock'}").grade == "fail"


def test_few_open_files_are_worth_a_word() -> None:
    assert machine.open_files(1024).grade == "warn"
    assert machine.open_files(machine.MIN_FILES).grade == "ok"
    assert machine.open_files(-1).grade == "ok"
