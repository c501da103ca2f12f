"""Describes a llama-server to the daemon: what a model's file says and needs, and the guard that runs the binary.

Owns how llama-server makes its context, and what of its words means that it works. Never imports the bindings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import msgspec

from backends.address import UnixAddress
from backends.base import (
    Footprint,
    Inspection,
    InvalidModelError,
    LaunchOrder,
    LaunchSpec,
    Offload,
    ProbedDevice,
    ProbeError,
    Settings,
)
from backends.environment import worker_environment
from backends.footprint import ContextPlan, dimensions
from backends.gguf_model import all_files, check_is_model, check_settings, context, inspection, read_model, task_of
from backends.gguf_settings import Task
from backends.guard.plan import GuardPlan, guard_launch
from backends.llama_server import binary, flags
from backends.llama_server.settings import LlamaServerSettings
from backends.plain import PlainBackend

_ANY_PLACE = Offload(1, ("GPU",), (1.0,), 1)
"""Uses every flag that a placement may need."""

_OWN_VARIABLES = ("LLAMA_",)
"""Defaults of llama-server's flags and keys of its own: what is not on its command line is not to be said at all."""
_IS_CHILD = {"LLAMA_SERVER_ROUTER_PORT": "1"}
"""Has it print how far a load is, as it would for llama-server's own router (tools/server/README-dev.md)."""
_STOP_INPUT = "cmd_router_to_child:exit\n"
_LOADED_PART = r'^cmd_child_to_router:state:.*"loading".*"value": ?(?P<fraction>[\d.]+(?:[eE][+-]?\d+)?)'
_BEGAN = r"processing task|prompt processing"
BUFFERS = (
    r"(?P<name>\w+) +(?:DSV4 \w+ )?(?:model|KV|RS|state|compute|output|LoRA) buffer size = +(?P<mebibytes>[\d.]+) MiB"
)
"""llama-model.cpp, llama-context.cpp, llama-kv-cache*.cpp, llama-memory-recurrent.cpp, llama-adapter.cpp."""
_BUSY = r'"is_processing": ?true'
_DEVICE = re.compile(
    r"^\s+(?P<name>\w+): (?P<what>.*) \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\)\s*$", re.MULTILINE
)
_MIB = 1024 * 1024


class LlamaServerBackend(PlainBackend):
    """`backends.base.Backend` for a llama-server binary."""

    name: ClassVar[str] = "llama_server"
    settings_type: ClassVar[type[Settings]] = LlamaServerSettings
    has_portable_mode: ClassVar[bool] = True

    def inspect(self, settings: LlamaServerSettings) -> Inspection:
        """Read the header and judge it, and ask the binary for its flags if it was not asked before.

        Raises `InvalidModelError`.
        """
        task, plan, found = _read(settings)
        known = binary.known_flags(binary.require(settings.binary))
        flags.command_line(settings, plan, task, _ANY_PLACE, known)
        # The guard sees that it works, also before an answer begins: `stall_timeout` is bound enough.
        return replace(found, reports_usage=False, first_token_timeout_s=0.0)

    def files(self, settings: LlamaServerSettings) -> tuple[Path, ...]:
        """The model's files, and the binary: a new one may know other flags."""
        program = binary.find(settings.binary)
        return (*all_files(settings), *([program] if program is not None else []))

    def launch(self, settings: LlamaServerSettings, order: LaunchOrder) -> LaunchSpec:
        """The guard, with the binary as its charge. Raises `OSError` if a file has gone bad since its inspection."""
        try:
            task, plan, found = _read(settings)
            program = binary.require(settings.binary)
            known = binary.known_flags(program)
            portable = msgspec.structs.replace(settings, use_extra_bufts=False) if order.portable else settings
            cache_ram_bytes = found.footprint.cache_ram_bytes
            words = flags.command_line(portable, plan, task, order.offload, known, cache_ram_bytes=cache_ram_bytes)
        except InvalidModelError as error:
            raise OSError(str(error)) from error
        guard = GuardPlan(
            argv=(str(program), *words, *flags.serving(order.socket_path, order.model_id)),
            env=server_environment(os.environ, order.env),
            unix=UnixAddress(order.socket_path),
            slots=found.slots,
            n_ctx=found.n_ctx,
            stop_input=_STOP_INPUT,
            progress=(_LOADED_PART, _BEGAN),
            buffers=BUFFERS,
            watch="/slots",
            watch_while=_BUSY,
        )
        return guard_launch(guard, order.control_fd)

    def device_probe(self, env: Mapping[str, str]) -> LaunchSpec | None:
        """The binary on PATH, if there is one, asked for the devices it can use."""
        program = binary.find(None)
        if program is None:
            return None
        return LaunchSpec((str(program), "--list-devices"), server_environment(os.environ, env))

    def read_devices(self, output: bytes) -> tuple[ProbedDevice, ...]:
        """Its list says neither what kind a device is nor where. Raises `ProbeError`."""
        text = output.decode("utf-8", "replace")
        if "Available devices:" not in text:
            raise ProbeError("llama-server printed no list of devices")
        return tuple(
            ProbedDevice(one["name"], one["what"], "gpu", int(one["total"]) * _MIB, int(one["free"]) * _MIB)
            for one in _DEVICE.finditer(text)
        )


def server_environment(daemon: Mapping[str, str], model: Mapping[str, str]) -> dict[str, str]:
    """The binary's whole environment: a worker's, without anything that would set its flags."""
    env = worker_environment(daemon, model)
    return {name: value for name, value in env.items() if not name.startswith(_OWN_VARIABLES)} | _IS_CHILD


def _read(settings: LlamaServerSettings) -> tuple[Task, ContextPlan, Inspection]:
    """What the file and the settings say. Raises `InvalidModelError`."""
    header = read_model(settings)
    # The binary may be newer than the bindings: whether it knows the architecture is its own word, at the load.
    check_is_model(header, any_architecture=True)
    dims = dimensions(header)
    task = task_of(header, settings)
    check_settings(header, dims, settings)
    plan = context(
        header,
        settings,
        embeddings=task is not Task.GENERATE,
        n_seq_max=settings.n_parallel,
        n_outputs_max=settings.n_parallel,
    )
    found = inspection(header, dims, settings, task, plan, slots=plan.n_seq_max)
    if task is not Task.GENERATE:
        return task, plan, found
    needs: Footprint = found.footprint
    return (
        task,
        plan,
        replace(
            found, footprint=replace(needs, cache_ram_bytes=settings.cache_ram_bytes(needs.kv_bytes) // _MIB * _MIB)
        ),
    )
