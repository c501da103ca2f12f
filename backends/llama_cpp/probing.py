"""Describes the probe's process, and reads what it prints. Must never import llama_cpp: the process does that.

Owns the document the two ends share. The process itself is `backends.llama_cpp.probe`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from backends.base import DeviceMemory, LaunchSpec, Offload, ProbedDevice, ProbeError, ProbeResult, encode_path

BINDINGS = "llama-cpp-python"
MAX_OUTPUT_BYTES = 256 * 1024
"""A probe prints a few hundred bytes; whoever reads more than this may stop."""
TIMEOUT_S = 60
"""After so long a probe ends by itself: reading the vocabulary of a large model takes most of a second."""


class ModelAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="probe", tag="model"):
    """What one model would take."""

    devices: tuple[DeviceMemory, ...]
    output_bytes: int
    source: str


class DevicesAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="probe", tag="devices"):
    """What this build of llama.cpp can compute on, in its order."""

    devices: tuple[ProbedDevice, ...]


class FailureAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="probe", tag="failure"):
    """Why there is no answer."""

    reason: str


Answer = ModelAnswer | DevicesAnswer | FailureAnswer


def model_probe(settings: Any, offload: Offload, env: Mapping[str, str]) -> LaunchSpec:
    """The process that prints a `ModelAnswer`. `env` is its whole environment."""
    arguments = (
        "model",
        *("--settings", msgspec.json.encode(settings, enc_hook=encode_path).decode()),
        *("--offload", msgspec.json.encode(offload).decode()),
    )
    return _process(arguments, env)


def device_probe(env: Mapping[str, str]) -> LaunchSpec:
    """The process that prints a `DevicesAnswer`."""
    return _process(("devices",), env)


def _process(arguments: tuple[str, ...], env: Mapping[str, str]) -> LaunchSpec:
    return LaunchSpec((sys.executable, "-P", "-m", "backends.llama_cpp.probe", *arguments), env)


def probe_key(probe: LaunchSpec, files: tuple[Path, ...]) -> str | None:
    """Names the result: what was asked, of which files, of which bindings. None while a file is missing."""
    said: list[object] = [probe.argv, sorted(probe.env.items()), bindings_version()]
    for path in files:
        try:
            status = path.stat()
        except OSError:
            return None
        said.append((str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


def bindings_version() -> str:
    """As the package's metadata have it."""
    try:
        return metadata.version(BINDINGS)
    except metadata.PackageNotFoundError:
        return "none"


def bindings_installed() -> str:
    """Changes when the bindings' libraries are installed anew, perhaps in the same version."""
    try:
        return str(Path(str(metadata.distribution(BINDINGS).locate_file("llama_cpp/lib"))).stat().st_mtime_ns)
    except (metadata.PackageNotFoundError, OSError):
        return "none"


def read_model(output: bytes) -> ProbeResult:
    """Raises `ProbeError`."""
    answer = _decode(output)
    if not isinstance(answer, ModelAnswer):
        raise ProbeError("the probe answered another question")
    return ProbeResult(answer.devices, answer.output_bytes, answer.source)


def read_devices(output: bytes) -> tuple[ProbedDevice, ...]:
    """Raises `ProbeError`."""
    answer = _decode(output)
    if not isinstance(answer, DevicesAnswer):
        raise ProbeError("the probe answered another question")
    return answer.devices


def _decode(output: bytes) -> Answer:
    if not output.strip():
        raise ProbeError("the probe ended without an answer")
    try:
        answer: Answer = msgspec.json.decode(output, type=Answer)
    except (msgspec.MsgspecError, ValueError) as error:  # the latter for what is no UTF-8
        raise ProbeError(f"the probe's answer cannot be read: {error}") from None
    if isinstance(answer, FailureAnswer):
        raise ProbeError(answer.reason)
    return answer
