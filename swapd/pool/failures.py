"""What the end of a worker's process means: pure judgement of its exit code, its last words and its log.

Owns the signs of a want of memory. Must never touch a process.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backends import control
from swapd.core.events import ExitKind
from swapd.core.lifecycle import WorkerState
from swapd.core.spec import RAM

CPU_FAULTS = (-signal.SIGSEGV, -signal.SIGILL)
MAX_TAIL_CHARS = 1_000

# How llama.cpp (ggml-cuda.cu, ggml-vulkan-buffers.cpp, ggml-metal-device.m, ggml-alloc.c, ggml-backend.cpp,
# llama-kv-cache.cpp, llama-context.cpp), the C++ library, Python and the kernel say that there is no memory left.
_SHORT_OF_MEMORY = re.compile(
    r"out of memory|outofmemory|outofdevicememory|outofhostmemory|failed to allocate|unable to allocate"
    r"|memory allocation of size \d+ failed|insufficient memory|cannot allocate memory|bad_alloc|MemoryError",
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"mlock|pinned memory", re.IGNORECASE)
"""Allocations that llama.cpp does without when they fail."""
_DEVICE = re.compile(r"\b(?:CUDA|ROCm|MUSA|Vulkan|SYCL|Metal|MTL|OpenCL|CANN)\d+\b")
_CUDA_ORDINAL = re.compile(r"on device (\d+): cudaMalloc failed|current device: (\d+), in function")
_HOST = re.compile(r"\b(?:CPU|Host)\b|cpu_buffer|bad_alloc|MemoryError|mmap|outofhostmemory", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class End:
    """What follows from a worker's end."""

    kind: ExitKind
    detail: str
    """A sentence for people, with the worker's last output."""
    device: str | None = None
    """Where memory ran out, if that is known."""


def judge(
    model_id: str,
    returncode: int,
    phase: WorkerState,
    tail: Iterable[str],
    *,
    failure: control.Failed | None,
    stopped: bool,
) -> End:
    """Judge the end of a worker that had come to `phase`. `stopped`: the daemon had asked for it."""
    lines = [line for line in tail if line.strip()]
    if failure is not None and failure.kind is control.FailureKind.INVALID_MODEL:
        return End(ExitKind.INVALID_MODEL, f"model {model_id!r} failed to load: {failure.message}")
    if failure is not None:
        detail = f"model {model_id!r} failed to load: {failure.message}"
        lines.append(failure.message)
    else:
        doing = "serving" if phase is WorkerState.READY else "loading"
        detail = f"the worker of model {model_id!r} {_how_it_ended(returncode)} while {doing}"
        if returncode == -signal.SIGKILL and not stopped:
            detail += ", most likely by the kernel for want of RAM"
        if lines:
            detail += f"; its last output: {' | '.join(lines)[-MAX_TAIL_CHARS:]}"
    kind, device = _kind(returncode, phase, lines) if not stopped else (ExitKind.FAILED, None)
    return End(kind, detail, device)


def _kind(returncode: int, phase: WorkerState, lines: Sequence[str]) -> tuple[ExitKind, str | None]:
    """The kind of an end that nobody asked for, and where memory ran out if it did and that is known."""
    if returncode == -signal.SIGKILL:
        return ExitKind.OUT_OF_MEMORY, RAM
    if returncode != 0 and any(_is_short(line) for line in lines):
        return ExitKind.OUT_OF_MEMORY, _device(lines)
    if returncode in CPU_FAULTS and phase is WorkerState.LOADING:
        return ExitKind.CPU_FAULT, None
    return ExitKind.FAILED, None


def _is_short(line: str) -> bool:
    return bool(_SHORT_OF_MEMORY.search(line)) and not _HARMLESS.search(line)


def _device(lines: Sequence[str]) -> str | None:
    """The device that the newest line to name one names, among those that speak of memory or of where it was."""
    for line in reversed(lines):
        named = _DEVICE.search(line)
        if named and _is_short(line):
            return named[0]
        ordinal = _CUDA_ORDINAL.search(line)
        if ordinal:
            return f"CUDA{ordinal[1] or ordinal[2]}"
    if any(_HOST.search(line) for line in lines if _is_short(line)):
        return RAM
    return None


def _how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"was killed by {name}"
