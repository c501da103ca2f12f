"""The systemd units say what operation depends on."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from swapd.config.schema import Server

UNITS = Path(__file__).resolve().parents[2] / "systemd"

MAX_EXPOSURE_TENTHS = 20
"""Of 100: what systemd calls OK ends at 49."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")

Unit = dict[str, dict[str, list[str]]]


def read_unit(name: str) -> Unit:
    """Sections, keys and values; a key may repeat. Anything that is not a key, a section or a comment fails."""
    sections: Unit = {}
    section: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = sections[line.strip("[]")] = defaultdict(list)
            continue
        key, separator, value = line.partition("=")
        assert separator, f"{name}: {line!r} is no key=value"
        assert key.isalnum(), f"{name}: {line!r} has a space around the ="
        section[key].append(value)
    return sections


def verifiable(name: str) -> str:
    """A unit whose program exists: systemd looks for it."""
    return (UNITS / name).read_text().replace("/opt/swapd/bin/swapd", "/bin/true")


def verify(*paths: Path) -> str:
    """What systemd has to say. It exits with 0 whatever it finds: its words are what counts."""
    return subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False).stderr


def test_the_daemon_reports_readiness_and_is_watched() -> None:
    service = read_unit("swapd.service")["Service"]
    assert service["Type"] == ["notify"]
    assert service["NotifyAccess"] == ["main"]
    assert float(service["WatchdogSec"][0]) >= 10
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_a_stop_drains_before_anything_is_killed() -> None:
    service = read_unit("swapd.service")["Service"]
    assert service["KillMode"] == ["mixed"]
    assert float(service["TimeoutStopSec"][0]) >= Server().drain_s + 30


def test_a_crash_restarts_the_daemon_and_a_worker_out_of_memory_does_not_end_it() -> None:
    unit = read_unit("swapd.service")
    assert unit["Service"]["Restart"] == ["on-failure"]
    assert unit["Service"]["OOMPolicy"] == ["continue"]
    assert int(unit["Unit"]["StartLimitBurst"][0]) > 1


def test_the_service_owns_private_directories() -> None:
    service = read_unit("swapd.service")["Service"]
    for kind in ("State", "Runtime"):
        assert service[f"{kind}Directory"] == ["swapd"]
        assert service[f"{kind}DirectoryMode"] == ["0700"]
    assert service["DynamicUser"] == ["yes"]


def test_gpus_stay_reachable_while_other_devices_do_not() -> None:
    service = read_unit("swapd.service")["Service"]
    assert service["DevicePolicy"] == ["closed"]
    assert "PrivateDevices" not in service
    allowed = {value.split()[0] for value in service["DeviceAllow"]}
    assert {"char-nvidia", "char-nvidia-frontend", "char-nvidia-uvm", "char-drm", "char-kfd"} <= allowed
    assert "pid" not in service["ProcSubset"]


def test_the_socket_listens_where_the_daemon_would() -> None:
    socket_unit = read_unit("swapd.socket")
    assert tuple(socket_unit["Socket"]["ListenStream"]) == Server().listen
    assert socket_unit["Install"]["WantedBy"] == ["sockets.target"]


@needs_systemd
def test_the_service_is_hardly_exposed() -> None:
    asked = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MAX_EXPOSURE_TENTHS}"]
    judged = subprocess.run([*asked, UNITS / "swapd.service"], capture_output=True, text=True, check=False)
    print(judged.stdout.strip().splitlines()[-1])
    assert judged.returncode == 0, judged.stdout


@needs_systemd
def test_the_drop_in_for_reloads_is_what_newer_systemds_know(tmp_path: Path) -> None:
    (tmp_path / "swapd.service").write_text(verifiable("swapd.service"))
    shutil.copytree(UNITS / "swapd.service.d", tmp_path / "swapd.service.d")
    assert read_unit("swapd.service.d/notify-reload.conf") == {
        "Service": {"Type": ["notify-reload"], "ExecReload": [""]}
    }
    complaints = verify(tmp_path / "swapd.service").splitlines()
    version = int(
        subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=False).stdout.split()[1]
    )
    if version >= 253:
        assert complaints == []
    else:
        # All that an older one has to say is that it does not know the type.
        assert len(complaints) == 1
        assert complaints[0].endswith("Failed to parse service type, ignoring: notify-reload")


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    (tmp_path / "swapd.service").write_text(verifiable("swapd.service"))
    shutil.copy(UNITS / "swapd.socket", tmp_path)
    assert verify(tmp_path / "swapd.service", tmp_path / "swapd.socket") == ""
