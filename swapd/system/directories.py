"""Where the daemon keeps its state and its sockets, and the making of those directories.

Owns the order in which places are considered and the rule that both directories are private to the daemon's
user. Must never change the mode of a directory that it did not make.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from swapd.config.access import CREDENTIALS
from swapd.errors import StartupError

MAX_RUNTIME_DIR_BYTES = 72
"""A Unix socket's address holds 107 bytes (unix(7)); the rest is for the workers' own directory and socket names."""


def state_dir(setting: Path | None, environ: Mapping[str, str], home: Path) -> Path:
    """The configured place, else $STATE_DIRECTORY, else $XDG_STATE_HOME/swapd, else ~/.local/state/swapd."""
    if setting is not None:
        return setting
    given = _service_directory(environ, "STATE_DIRECTORY")
    if given is not None:
        return given
    return (_absolute(environ.get("XDG_STATE_HOME")) or home / ".local" / "state") / "swapd"


def runtime_dir(setting: Path | None, environ: Mapping[str, str], temporary: Path, uid: int) -> Path:
    """The configured place, else $RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/swapd, else `temporary`/swapd-UID."""
    if setting is not None:
        return setting
    given = _service_directory(environ, "RUNTIME_DIRECTORY")
    if given is not None:
        return given
    session_dir = _absolute(environ.get("XDG_RUNTIME_DIR"))
    return session_dir / "swapd" if session_dir is not None else temporary / f"swapd-{uid}"


def credential(path: Path, environ: Mapping[str, str]) -> Path:
    """A path with `$CREDENTIALS_DIRECTORY` filled in. Raises `StartupError` where no service manager has set it."""
    if not str(path).startswith(CREDENTIALS):
        return path
    given = _service_directory(environ, "CREDENTIALS_DIRECTORY")
    if given is None:
        raise StartupError(
            f"server.keys: {path} needs a unit with LoadCredential={path.name}:FILE; "
            "outside of systemd write the file's path"
        )
    return given / path.name


def prepare_state_dir(path: Path, uid: int) -> None:
    """Make the directory, or check that the one there is usable. Raises `StartupError` with the remedy."""
    _prepare(path, uid, "server.state_dir")


def prepare_runtime_dir(path: Path, uid: int) -> None:
    """As `prepare_state_dir`, and the path must leave room for the workers' socket names."""
    if len(os.fsencode(path)) > MAX_RUNTIME_DIR_BYTES:
        raise StartupError(
            f"server.runtime_dir: {path} is longer than {MAX_RUNTIME_DIR_BYTES} bytes, "
            "too long for Unix sockets in it; choose a shorter one"
        )
    _prepare(path, uid, "server.runtime_dir")


def _prepare(path: Path, uid: int, key: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        link, target = path.lstat(), path.stat()
    except OSError as error:
        raise StartupError(f"{key}: cannot make {path}: {error.strerror}; choose another place") from error
    if link.st_uid not in (uid, 0) or target.st_uid != uid:
        raise StartupError(f"{key}: {path} belongs to another user; choose another place")
    if target.st_mode & 0o077:
        raise StartupError(
            f"{key}: {path} is open to other users (mode {target.st_mode & 0o777:04o}); "
            "run chmod 700 on it, or choose a directory that only swapd uses"
        )
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StartupError(f"{key}: {path} is not writable; choose another place")


def _service_directory(environ: Mapping[str, str], name: str) -> Path | None:
    """systemd lists several directories with colons between; the first is ours."""
    return _absolute(environ.get(name, "").partition(":")[0])


def _absolute(value: str | None) -> Path | None:
    """The XDG specification says that relative paths are to be ignored."""
    path = Path(value) if value else None
    return path if path is not None and path.is_absolute() else None
