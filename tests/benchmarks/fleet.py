"""Servers with several models of which only some fit: swapd within a budget, llama-server's router with a count.

Owns their configurations, and the files of the models.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as llama
from benchmarks.servers import MODEL, Bench, Server, free_port, process

from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.settings import LlamaCppSettings

N_BATCH = 512
QUANTIZED = {"Q8_0": 7, "Q5_1": 9, "Q4_0": 2}
"""llama_ftype by name."""


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    path: Path
    n_ctx: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """Models of which `room` fit at once. `turns` are lines of swapd's configuration, or empty for its defaults."""

    models: tuple[Entry, ...]
    room: int
    n_parallel: int
    threads: int
    turns: str = ""

    def keys(self, entry: Entry) -> dict[str, object]:
        """The model's keys in swapd's configuration."""
        counts = {"n_ctx": entry.n_ctx, "n_parallel": self.n_parallel, "n_threads": self.threads, "n_batch": N_BATCH}
        return {"path": str(entry.path), **counts, "cache_ram": 0}

    def budget_bytes(self) -> int:
        """RAM for `room` of the models and a spare process, whichever they are, and not for one more."""
        sizes = sorted(_size_bytes(self.keys(entry)) for entry in self.models)
        least = sum(sizes[-self.room :]) + LlamaCppBackend.spare_bytes
        too_much = sum(sizes[: self.room + 1])
        assert least < too_much, "the models are too different in size"
        return (least + too_much) // 2


def _size_bytes(keys: dict[str, object]) -> int:
    settings = LlamaCppSettings(**{**keys, "path": Path(str(keys["path"]))})  # type: ignore[arg-type]
    return LlamaCppBackend().inspect(settings).footprint.total_bytes


def variants(directory: Path, count: int) -> list[Path]:
    """Files of the same model in `count` quantizations, in sizes between 85 and 145 MB."""
    made = [MODEL]
    for name, kind in list(QUANTIZED.items())[: count - 1]:
        path = directory / f"SmolLM2-135M-Instruct.{name}.gguf"
        params = llama.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = kind, True
        code = llama.llama_model_quantize(os.fsencode(MODEL), os.fsencode(path), ctypes.byref(params))
        assert code == 0, f"llama_model_quantize returned {code}"
        made.append(path)
    return made


@asynccontextmanager
async def fleets(bench: Bench, fleet: Fleet) -> AsyncIterator[list[Server]]:
    """swapd, and the router if the bench has a command."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(swapd_fleet(bench.directory, fleet))]
        if bench.command:
            found.append(await stack.enter_async_context(_router(bench.command, bench.directory, fleet)))
        yield found


@asynccontextmanager
async def swapd_fleet(directory: Path, fleet: Fleet) -> AsyncIterator[Server]:
    """Its log is `swapd.log` in the directory."""
    port, config = free_port(), directory / "swapd.yaml"
    models = "".join(f"  {entry.name}: {json.dumps(fleet.keys(entry))}\n" for entry in fleet.models)
    config.write_text(
        f"server: {{listen: 127.0.0.1:{port}, state_dir: {directory}/state, runtime_dir: {directory}/run}}\n"
        f"memory: {{budget: {{RAM: {fleet.budget_bytes()}}}}}\n"
        f"queue: {{max_waiting: 10000}}\n{fleet.turns}models:\n{models}"
    )
    argv = [sys.executable, "-m", "swapd", "serve", "--config", str(config)]
    async with process(*argv, port=port, log=directory / "swapd.log") as pid:
        yield Server("swapd", port, pid)


@asynccontextmanager
async def _router(command: Sequence[str], directory: Path, fleet: Fleet) -> AsyncIterator[Server]:
    port, presets = free_port(), directory / "models.ini"
    presets.write_text(
        "version = 1\n"
        + "".join(f"\n[{entry.name}]\nmodel = {entry.path}\nc = {entry.n_ctx}\n" for entry in fleet.models)
    )
    flags = ["-np", str(fleet.n_parallel), "-t", str(fleet.threads), "-b", str(N_BATCH), "-kvu", "--cache-ram", "0"]
    argv = [*command, "--models-preset", str(presets), "--models-max", str(fleet.room), *flags]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    async with process(*argv, port=port, log=directory / "router.log") as pid:
        yield Server("llama-server", port, pid)
