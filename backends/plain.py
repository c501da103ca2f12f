"""What most backends are without: spare processes, probes, devices of their own, servers elsewhere.

Owns those answers of `backends.base.Backend`; a backend that has one of them says so itself. Holds no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from backends.base import LaunchSpec, Offload, Peer, ProbedDevice, ProbeError, ProbeResult


class PlainBackend:
    """Base of backends; what is only asked of others raises `NotImplementedError`."""

    has_portable_mode: ClassVar[bool] = False
    spare_bytes: ClassVar[int] = 0

    def peer(self, settings: Any) -> Peer:
        raise NotImplementedError

    def spare(self, control_fd: int) -> LaunchSpec:
        raise NotImplementedError

    def engine_version(self) -> str:
        raise NotImplementedError

    def probe(self, settings: Any, offload: Offload, env: Mapping[str, str]) -> LaunchSpec | None:
        return None

    def probe_key(self, settings: Any, offload: Offload, env: Mapping[str, str]) -> str | None:
        return None

    def read_probe(self, output: bytes) -> ProbeResult:
        raise ProbeError("this backend has no probe")

    def device_probe(self, env: Mapping[str, str]) -> LaunchSpec | None:
        return None

    def read_devices(self, output: bytes) -> tuple[ProbedDevice, ...]:
        raise ProbeError("this backend has no list of devices")
