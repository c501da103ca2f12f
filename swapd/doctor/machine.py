"""Checks of the machine: the files of GPU drivers, Vulkan's list of drivers, limits, directories, ports.

Every check takes what it looks at as an argument, a root directory where it reads files. Must never change anything.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from swapd.config.address import TcpAddress, UnixAddress, parse_address
from swapd.doctor.findings import Finding, fail, ok, warn

NVIDIA, AMD = "NVIDIA's driver", "AMD's compute driver"
MIN_FILES = 4096
"""Open files: each request takes two connections, each worker a few."""
_GROUPS = "add swapd's user to the groups video and render (usermod -aG video,render USER), and log in again"

MayUse = Callable[[Path], bool]


def may_use(path: Path) -> bool:
    """Whether this user may read and write a device's file."""
    return os.access(path, os.R_OK | os.W_OK)


def gpu_files(root: Path, may: MayUse = may_use) -> Iterator[Finding]:
    """The files through which programs reach GPUs. What is not there is no GPU, and no finding."""
    nvidia = [root / "dev" / name for name in ("nvidiactl", "nvidia-uvm")]
    nvidia += sorted((root / "dev").glob("nvidia[0-9]*"))
    if (root / "proc/driver/nvidia").exists() or any(path.exists() for path in nvidia):
        missing = [path for path in nvidia[:2] if not path.exists()]
        if missing:
            names = " and ".join(f"/{path.relative_to(root)}" for path in missing)
            yield fail(NVIDIA, f"{names} is not there", "run nvidia-modprobe -u -c=0, or nvidia-smi once as root")
        else:
            yield _accessible(NVIDIA, root, nvidia, may)
    if (root / "dev/kfd").exists():
        yield _accessible(AMD, root, [root / "dev/kfd"], may)
    render = sorted((root / "dev/dri").glob("renderD*"))
    if render:
        yield _accessible("render nodes", root, render, may)


def _accessible(check: str, root: Path, paths: Sequence[Path], may: MayUse) -> Finding:
    closed = [f"/{path.relative_to(root)}" for path in paths if path.exists() and not may(path)]
    if closed:
        return fail(check, f"{', '.join(closed)} may not be used", _GROUPS)
    return ok(check, ", ".join(f"/{path.relative_to(root)}" for path in paths if path.exists()))


def vulkan_drivers(root: Path) -> Finding | None:
    """The drivers that Vulkan programs find; None where nothing could use one."""
    places = [root / "usr/share/vulkan/icd.d", root / "etc/vulkan/icd.d", root / "usr/local/share/vulkan/icd.d"]
    found = sorted(path.stem for place in places for path in place.glob("*.json"))
    if found:
        return ok("Vulkan drivers", ", ".join(found))
    if any((root / "dev/dri").glob("renderD*")):
        remedy = "install your distribution's mesa-vulkan-drivers, or NVIDIA's driver, if workers are to use Vulkan"
        return warn("Vulkan drivers", "there is none", remedy)
    return None


def open_files(hard: int) -> Finding:
    """`hard` is the most that this process may raise its limit of open files to, as the daemon does."""
    if 0 <= hard < MIN_FILES:
        remedy = f"raise it: LimitNOFILE={MIN_FILES} in the unit, or ulimit -Hn {MIN_FILES}"
        return warn("open files", f"at most {hard}", remedy)
    return ok("open files", f"at most {hard}" if hard >= 0 else "as many as there may be")


def private_directory(key: str, path: Path, uid: int) -> Finding:
    """A directory that the daemon keeps things in: it makes it itself if its parent lets it."""
    if not path.exists():
        parent = next(one for one in path.parents if one.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return ok(key, f"{path} will be made")
        return fail(key, f"{path} is not there, and {parent} lets nobody make it", f"set server.{key}, or make it")
    status = path.stat()
    if status.st_uid != uid:
        return warn(key, f"{path} belongs to another user (uid {status.st_uid})", "run doctor as the daemon's user")
    if status.st_mode & 0o077:
        return fail(key, f"{path} is open to others (mode {status.st_mode & 0o777:04o})", f"chmod 700 {path}")
    return ok(key, str(path))


def keys_file(path: Path) -> Finding:
    """The file of API keys: hashes, but still nobody else's to change."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return fail("API keys", f"{path}: {error.strerror}", "make one with `swapd key new NAME -o FILE`")
    if mode & 0o022:
        return fail("API keys", f"{path} can be written by others (mode {mode & 0o777:04o})", f"chmod 600 {path}")
    return ok("API keys", str(path))


def address(text: str) -> Finding:
    """Whether the daemon could listen there. Binds for a moment, and lets go."""
    check, parsed = "address", parse_address(text)
    if isinstance(parsed, UnixAddress):
        parent = parsed.path.parent
        if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
            return ok(check, f"{text} is free")
        return fail(check, f"{text}: no socket can be made in {parent}", "make the directory, or name another")
    assert isinstance(parsed, TcpAddress)
    family = socket.AF_INET6 if ":" in parsed.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((parsed.host, parsed.port))
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            taken = error.errno == errno.EADDRINUSE
            remedy = f"see who: ss -ltnp 'sport = :{parsed.port}'" if taken else "set server.listen to an own address"
            return fail(check, f"{text}: {why}", remedy)
    return ok(check, f"{text} is free")
