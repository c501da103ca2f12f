"""Tells the service manager how the daemon is doing: systemd's sd_notify protocol, as datagrams.

Owns the messages and their wording. Without `NOTIFY_SOCKET` everything here does nothing. Must never raise:
a service manager that does not listen is no reason to stop serving.
Source: systemd's sd_notify(3) and sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, MutableMapping

MAX_STATUS_CHARACTERS = 512
SEND_TIMEOUT_S = 0.5
"""The receiver's queue may be full for a moment; READY is worth a short wait, and nothing a long one."""


class Notifier:
    """Sends to one address, or to nobody when the address is None."""

    def __init__(self, address: str | None) -> None:
        self._address = _socket_address(address)

    @classmethod
    def take_from(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Read and remove `NOTIFY_SOCKET`, so that no child process speaks for the daemon."""
        return cls(environ.pop("NOTIFY_SOCKET", None))

    def ready(self, status: str = "") -> None:
        """The daemon serves: after the start, and again at the end of a reload."""
        self._send("READY=1", *_status_line(status))

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(*_status_line(status))

    def reloading(self, monotonic_s: float) -> None:
        """A reload begins now, by CLOCK_MONOTONIC (Python's `time.monotonic` on Linux)."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={_microseconds(monotonic_s)}")

    def stopping(self, status: str = "") -> None:
        self._send("STOPPING=1", *_status_line(status))

    def watchdog(self) -> None:
        """The daemon makes progress. Due more often than `watchdog_interval_s` says."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, extend_s: float) -> None:
        """Starting, reloading or stopping may take this many seconds more, from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={_microseconds(extend_s)}")

    def _send(self, *fields: str) -> None:
        if self._address is None or not fields:
            return
        message = "\n".join(fields).encode("utf-8", "replace")
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(SEND_TIMEOUT_S)
            sender.sendto(message, self._address)


def watchdog_interval_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Seconds between pings, half of what the service manager allows; None when it does not watch this process."""
    watched_pid = environ.get("WATCHDOG_PID", str(pid))
    if watched_pid != str(pid):
        return None
    try:
        timeout_usec = int(environ["WATCHDOG_USEC"])
    except (KeyError, ValueError):
        return None
    return timeout_usec / 2_000_000 if timeout_usec > 0 else None


def _socket_address(address: str | None) -> str | None:
    """A path as it is, `@name` as Linux's abstract name, None for anything else."""
    if not address or "\0" in address:
        return None
    if address.startswith("@"):
        return "\0" + address[1:]
    return address if address.startswith("/") else None


def _status_line(status: str) -> tuple[str, ...]:
    """One STATUS field. A line break would begin a field of its own, so a model's name could forge one."""
    one_line = "".join(c if c.isprintable() else " " for c in status).strip()
    return (f"STATUS={one_line[:MAX_STATUS_CHARACTERS]}",) if one_line else ()


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
