"""Where the command line looks for the configuration and for the daemon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from swapd.pool.learned import FILE_NAME
from swapd.system.directories import state_dir

CONFIG_HELP = "the configuration; else $SWAPD_CONFIG, else /etc/swapd/config.yaml, else ~/.config/swapd/config.yaml"

SYSTEM_CONFIG = Path("/etc/swapd/config.yaml")
SYSTEM_STATE = Path("/var/lib/swapd")
"""Where systemd/swapd.service keeps its state."""


def config_path(
    given: Path | None, environ: Mapping[str, str], home: Path, exists: Callable[[Path], bool]
) -> Path | None:
    """The configuration to read, or None when none is named and none is in a usual place.

    A path that was named is returned whether it exists or not: reading it then says what is wrong.
    """
    if given is not None:
        return given
    named = environ.get("SWAPD_CONFIG")
    if named:
        return Path(named)
    config_home = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    usual: Sequence[Path] = (SYSTEM_CONFIG, config_home / "swapd" / "config.yaml")
    return next((path for path in usual if exists(path)), None)


def learned_file(setting: Path | None, environ: Mapping[str, str], home: Path, exists: Callable[[Path], bool]) -> Path:
    """Where the daemon of this configuration keeps what it learned: in its own state directory, else the service's."""
    own = state_dir(setting, environ, home) / FILE_NAME
    systems = SYSTEM_STATE / FILE_NAME
    return systems if setting is None and not exists(own) and exists(systems) else own
