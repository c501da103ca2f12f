"""Which directories are chosen, and what makes one unusable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swapd.errors import StartupError
from swapd.system import directories

HOME = Path("/home/ada")
TEMPORARY = Path("/tmp")


@pytest.mark.parametrize(
    ("setting", "environ", "chosen"),
    [
        (Path("/srv/s"), {"STATE_DIRECTORY": "/var/lib/swapd"}, "/srv/s"),
        (None, {"STATE_DIRECTORY": "/var/lib/swapd:/var/lib/more", "XDG_STATE_HOME": "/x"}, "/var/lib/swapd"),
        (None, {"XDG_STATE_HOME": "/x"}, "/x/swapd"),
        (None, {"XDG_STATE_HOME": "relative"}, "/home/ada/.local/state/swapd"),
        (None, {"STATE_DIRECTORY": ""}, "/home/ada/.local/state/swapd"),
    ],
)
def test_the_state_directory_is_the_first_that_is_given(
    setting: Path | None, environ: dict[str, str], chosen: str
) -> None:
    assert directories.state_dir(setting, environ, HOME) == Path(chosen)


@pytest.mark.parametrize(
    ("setting", "environ", "chosen"),
    [
        (Path("/srv/r"), {"RUNTIME_DIRECTORY": "/run/swapd"}, "/srv/r"),
        (None, {"RUNTIME_DIRECTORY": "/run/swapd", "XDG_RUNTIME_DIR": "/run/user/7"}, "/run/swapd"),
        (None, {"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/swapd"),
        (None, {}, "/tmp/swapd-7"),
    ],
)
def test_the_runtime_directory_is_the_first_that_is_given(
    setting: Path | None, environ: dict[str, str], chosen: str
) -> None:
    assert directories.runtime_dir(setting, environ, TEMPORARY, 7) == Path(chosen)


def test_a_missing_directory_is_made_private_with_its_parents(tmp_path: Path) -> None:
    made = tmp_path / "a" / "b"
    directories.prepare_state_dir(made, os.getuid())
    assert made.stat().st_mode & 0o777 == 0o700
    directories.prepare_state_dir(made, os.getuid())


def test_a_directory_that_others_may_enter_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(StartupError, match=r"server\.state_dir: .*mode 0755.*chmod 700"):
        directories.prepare_state_dir(shared, os.getuid())
    assert shared.stat().st_mode & 0o777 == 0o755


def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="belongs to another user"):
        directories.prepare_runtime_dir(tmp_path, os.getuid() + 1)


def test_a_place_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match=r"server\.runtime_dir: cannot make .*File exists") as caught:
        directories.prepare_runtime_dir(tmp_path / "file" / "run", os.getuid())
    assert "\n" not in str(caught.value)


def test_a_runtime_directory_too_long_for_sockets_is_refused_before_it_is_made(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    with pytest.raises(StartupError, match="too long for Unix sockets"):
        directories.prepare_runtime_dir(long, os.getuid())
    assert not long.exists()
