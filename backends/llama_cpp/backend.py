"""Describes the embedded llama.cpp worker to the daemon: what a model's file says and needs, and what to run.

Owns the verdicts that need no process: no model file, an unknown architecture, settings the file contradicts. Must
never import llama_cpp, aiohttp or numpy, and reads nothing but GGUF headers. Where the worker decides from the same
facts (embeddings, sequences, context), the rules here are those of `backends.llama_cpp.engine.params`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import msgspec

from backends.architectures import RECURRENT
from backends.base import (
    Inspection,
    LaunchOrder,
    LaunchSpec,
    Offload,
    ProbedDevice,
    ProbeResult,
    Settings,
    encode_path,
)
from backends.environment import worker_environment
from backends.footprint import ContextPlan, Dimensions, dimensions
from backends.gguf import GgufHeader
from backends.gguf_model import (
    all_files,
    check_is_model,
    check_settings,
    context,
    inspection,
    read_model,
    task_of,
)
from backends.gguf_settings import Task
from backends.llama_cpp import probing
from backends.llama_cpp.program import PROGRAM, SPARE_FLAG
from backends.llama_cpp.settings import LlamaCppSettings

SPARE_BYTES = 48 * 1024 * 1024
"""RAM of a worker that waits for its model."""


class LlamaCppBackend:
    """`backends.base.Backend` for the embedded worker."""

    name: ClassVar[str] = "llama_cpp"
    settings_type: ClassVar[type[Settings]] = LlamaCppSettings
    has_portable_mode: ClassVar[bool] = True
    spare_bytes: ClassVar[int] = SPARE_BYTES

    def inspect(self, settings: LlamaCppSettings) -> Inspection:
        """Read the header and judge it. Blocks on file reads only. Raises `InvalidModelError`."""
        header = read_model(settings)
        check_is_model(header)
        dims = dimensions(header)
        task = task_of(header, settings)
        check_settings(header, dims, settings)
        plan = context_plan(header, dims, settings, embeddings=task is not Task.GENERATE)
        found = inspection(header, dims, settings, task, plan, slots=settings.n_parallel)
        if task is not Task.GENERATE:
            return found
        needs = found.footprint
        return replace(found, footprint=replace(needs, cache_ram_bytes=settings.cache_ram_bytes(needs.kv_bytes)))

    def files(self, settings: LlamaCppSettings) -> tuple[Path, ...]:
        """The model's files, by name alone."""
        return all_files(settings)

    def launch(self, settings: LlamaCppSettings, order: LaunchOrder) -> LaunchSpec:
        """The worker program with its settings on the command line."""
        argv = [
            *PROGRAM,
            *("--socket", str(order.socket_path)),
            *("--control-fd", str(order.control_fd)),
            f"--model-id={order.model_id}",  # in one word: a name may begin with a dash
            *("--settings", msgspec.json.encode(settings, enc_hook=encode_path).decode()),
            *("--offload", msgspec.json.encode(order.offload).decode()),
        ]
        if order.portable:
            argv.append("--portable")
        if order.proven:
            argv.append("--proven")
        return LaunchSpec(tuple(argv), worker_environment(os.environ, order.env))

    def spare(self, control_fd: int) -> LaunchSpec:
        """The worker program, which imports its libraries and waits."""
        return LaunchSpec((*PROGRAM, SPARE_FLAG, str(control_fd)), worker_environment(os.environ, {}))

    def engine_version(self) -> str:
        """The bindings' version, and when their libraries were installed."""
        return probing.bindings_version() + probing.bindings_installed()

    def probe(self, settings: LlamaCppSettings, offload: Offload, env: Mapping[str, str]) -> LaunchSpec:
        """The process that prints what llama.cpp itself says, adapters added by the formulas."""
        return probing.model_probe(settings, offload, worker_environment(os.environ, env))

    def probe_key(self, settings: LlamaCppSettings, offload: Offload, env: Mapping[str, str]) -> str | None:
        """By files, settings, placement, environment and version of the bindings."""
        return probing.probe_key(self.probe(settings, offload, env), self.files(settings))

    def read_probe(self, output: bytes) -> ProbeResult:
        """Decode what a probe has printed. Raises `ProbeError`."""
        return probing.read_model(output)

    def device_probe(self, env: Mapping[str, str]) -> LaunchSpec:
        """The process that prints llama.cpp's devices."""
        return probing.device_probe(worker_environment(os.environ, env))

    def read_devices(self, output: bytes) -> tuple[ProbedDevice, ...]:
        """Decode what a device probe has printed. Raises `ProbeError`."""
        return probing.read_devices(output)


def context_plan(header: GgufHeader, dims: Dimensions, settings: LlamaCppSettings, *, embeddings: bool) -> ContextPlan:
    """How the worker will make its context."""
    recurrent = header.architecture in RECURRENT
    wants_prefixes = settings.prefix_slots not in ("auto", 0)
    sliding_window = dims.window > 0 and not recurrent
    keeps_prefixes = not (recurrent or sliding_window) or (sliding_window and wants_prefixes)
    n_seq_max = settings.n_seq_max if keeps_prefixes else settings.n_parallel
    return context(
        header,
        settings,
        embeddings=embeddings,
        n_seq_max=n_seq_max,
        n_outputs_max=n_seq_max + (settings.draft_rows if keeps_prefixes else 0),
        swa_full=sliding_window and wants_prefixes,
    )
