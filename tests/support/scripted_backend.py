"""The backend `scripted`: describes `scripted_worker` to the daemon. Its "model files" are text files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import msgspec

from backends.address import TcpAddress
from backends.base import (
    Capabilities,
    DeviceMemory,
    Footprint,
    Inspection,
    InvalidModelError,
    LaunchOrder,
    LaunchSpec,
    Offload,
    ProbedDevice,
    ProbeError,
    ProbeResult,
    Settings,
    encode_path,
)

MIB = 1024 * 1024
WORKER = Path(__file__).with_name("scripted_worker.py")


class ScriptedSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    path: Path
    memory_mib: int = 100
    n_parallel: int = 4
    layers: int = 1
    gpu: bool = False
    """Whether layers may be on GPUs; each is an equal part of the memory."""
    gpu_room_layers: int = -1
    """With more layers than this on GPUs the worker runs out of memory; -1 never does."""
    probed_gpu_mib: int = 0
    """What a probe says of each GPU; 0 has none, less than that a broken one."""
    load_s: float = 0.0
    failure: str = ""
    """exit, invalid, segv, kill, hang or nonsense."""
    fail_while_exists: str = ""
    """The failure happens only while this file exists."""
    ignore_sigterm: bool = False
    grandchild: bool = False
    chatter_lines: int = 0
    port: int = 0
    """Listen there instead of on a socket."""
    reports: bool = True
    """False: a foreign server, which says nothing on the control channel once it is ready."""
    first_token_timeout: float = 600.0
    abilities: tuple[str, ...] = ()
    """Beside chats and completions, by the names of `Capabilities`."""


class ScriptedBackend:
    name: ClassVar[str] = "scripted"
    settings_type: ClassVar[type[Settings]] = ScriptedSettings
    has_portable_mode: ClassVar[bool] = True
    spare_bytes: ClassVar[int] = 0

    def inspect(self, settings: ScriptedSettings) -> Inspection:
        try:
            text = settings.path.read_text()
        except OSError as error:
            raise InvalidModelError(f"{settings.path}: {error.strerror}") from error
        if not text.startswith("model"):
            raise InvalidModelError(f"{settings.path}: this is no model file")
        size_bytes = settings.memory_mib * MIB
        layer = size_bytes // settings.layers
        footprint = Footprint((layer // 2,) * settings.layers, (layer - layer // 2,) * settings.layers, 0, 0, 0, 0)
        n_gpu_layers = None if settings.gpu else 0
        return Inspection(
            footprint,
            settings.n_parallel,
            Capabilities(**dict.fromkeys(settings.abilities, True)),
            n_ctx=4096,
            n_gpu_layers=n_gpu_layers,
            reports_usage=settings.reports,
            first_token_timeout_s=settings.first_token_timeout,
        )

    def files(self, settings: ScriptedSettings) -> tuple[Path, ...]:
        return (settings.path,)

    def launch(self, settings: ScriptedSettings, order: LaunchOrder) -> LaunchSpec:
        argv = [
            sys.executable,
            "-S",
            str(WORKER),
            "--socket",
            str(order.socket_path),
            "--control-fd",
            str(order.control_fd),
            "--settings",
            msgspec.json.encode(settings, enc_hook=encode_path).decode(),
            "--offload",
            msgspec.json.encode(order.offload).decode(),
        ]
        if order.portable:
            argv.append("--portable")
        address = TcpAddress("127.0.0.1", settings.port) if settings.port else None
        return LaunchSpec(tuple(argv), {"PATH": "/usr/bin:/bin", **order.env}, address)

    def spare(self, control_fd: int) -> LaunchSpec:
        return LaunchSpec((sys.executable, "-S", str(WORKER), "--spare", str(control_fd)), {"PATH": "/usr/bin:/bin"})

    def engine_version(self) -> str:
        return "1"

    def probe(self, settings: ScriptedSettings, offload: Offload, env: Mapping[str, str]) -> LaunchSpec | None:
        if not settings.probed_gpu_mib:
            return None
        said = "nonsense" if settings.probed_gpu_mib < 0 else f"{settings.probed_gpu_mib} {' '.join(offload.devices)}"
        return LaunchSpec((sys.executable, "-S", "-c", f"print({said!r})"), {})

    def probe_key(self, settings: ScriptedSettings, offload: Offload, env: Mapping[str, str]) -> str | None:
        return f"{settings.probed_gpu_mib} {offload}" if settings.probed_gpu_mib else None

    def read_probe(self, output: bytes) -> ProbeResult:
        try:
            size, *devices = output.decode().split()
            found = tuple(DeviceMemory(name, int(size) * MIB, 0, 0) for name in devices)
        except ValueError as error:
            raise ProbeError("the scripted probe printed nonsense") from error
        return ProbeResult(found, output_bytes=0, source="a script")

    def device_probe(self, env: Mapping[str, str]) -> None:
        return None

    def read_devices(self, output: bytes) -> tuple[ProbedDevice, ...]:
        raise ProbeError("the scripted backend has no probe")


class SparedBackend(ScriptedBackend):
    """The same with spares. Tests make them stale or broken by its fields."""

    spare_bytes: ClassVar[int] = 20 * MIB

    def __init__(self) -> None:
        self.version = "1"
        self.broken: str | None = None

    def spare(self, control_fd: int) -> LaunchSpec:
        if self.broken is not None:
            return LaunchSpec((sys.executable, "-S", "-c", self.broken), {})
        return super().spare(control_fd)

    def engine_version(self) -> str:
        return self.version
