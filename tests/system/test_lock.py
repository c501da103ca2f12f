"""The state directory's lock, between real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swapd.errors import StartupError
from swapd.system import lock

HOLDER = """
import os, sys
from pathlib import Path
from swapd.system import lock
with lock.hold(Path(sys.argv[1]), os.getpid()):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(directory: Path) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    return holder


def test_a_second_daemon_is_told_the_firsts_pid(tmp_path: Path) -> None:
    with start_holder(tmp_path) as holder:
        with pytest.raises(StartupError, match=rf"pid {holder.pid}\) already uses {tmp_path}"), lock.hold(tmp_path, 1):
            pass
        holder.communicate()


def test_a_killed_holder_leaves_the_directory_free(tmp_path: Path) -> None:
    with start_holder(tmp_path) as holder:
        holder.kill()
        holder.communicate()
    with lock.hold(tmp_path, 4711):
        assert (tmp_path / lock.NAME).read_text() == "4711\n"


def test_the_lock_is_free_again_after_the_body_and_its_file_is_private(tmp_path: Path) -> None:
    for pid in (100_000, 7):
        with lock.hold(tmp_path, pid):
            assert (tmp_path / lock.NAME).read_text() == f"{pid}\n"
    assert (tmp_path / lock.NAME).stat().st_mode & 0o777 == 0o600


def test_a_missing_directory_is_a_startup_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot open"), lock.hold(tmp_path / "absent", os.getpid()):
        pass


def test_a_symbolic_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("keep me")
    (tmp_path / lock.NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(StartupError, match="cannot open"), lock.hold(tmp_path, 1):
        pass
    assert (tmp_path / "victim").read_text() == "keep me"
