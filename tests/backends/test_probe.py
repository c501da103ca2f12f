"""The probe: a real process that asks llama.cpp, what it prints, and what of that is believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.gguf_files import Shape, smollm2_path, write_model
from support.lora_files import write_lora
from support.mmproj_files import write_llava
from support.model_zoo import ZOO

from backends.base import DeviceMemory, Footprint, Offload, ProbedDevice, ProbeError, ProbeResult
from backends.gguf_settings import Lora
from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.probe import BREAKDOWN, from_log, with_additions
from backends.llama_cpp.probing import TIMEOUT_S
from backends.llama_cpp.settings import LlamaCppSettings

BACKEND = LlamaCppBackend()
MIB = 1024 * 1024
LOG = """load_tensors: layer   0 assigned to device CPU, is_swa = 0
load_tensors: layer   1 assigned to device CUDA0, is_swa = 0
load_tensors: layer   2 assigned to device CUDA0, is_swa = 0
sched_reserve:      CUDA0 compute buffer size =    10.00 MiB
sched_reserve:  CUDA_Host compute buffer size =     1.50 MiB
sched_reserve:        CPU compute buffer size =     0.25 MiB
"""
FOOTPRINT = Footprint(
    layer_weights_bytes=(100, 200, 300),
    layer_kv_bytes=(10, 20, 0),
    host_weights_bytes=1000,
    compute_bytes=0,
    output_bytes=0,
    process_bytes=0,
    tied_output_bytes=1000,
)


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: bytes
    stderr: bytes


def run(argv: tuple[str, ...], env: Any) -> Ended:
    ended = subprocess.run(argv, env=dict(env), capture_output=True, timeout=TIMEOUT_S + 30, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def probe(settings: LlamaCppSettings, offload: Offload | None = None) -> Ended:
    spec = BACKEND.probe(settings, offload or Offload(n_gpu_layers=0), {})
    return run(spec.argv, spec.env)


def answer(settings: LlamaCppSettings) -> ProbeResult:
    ended = probe(settings)
    assert ended.returncode == 0, ended.stderr
    return BACKEND.read_probe(ended.stdout)


@pytest.mark.parametrize("keys", [{}, {"n_ctx": 32768, "n_parallel": 2, "type_k": "q8_0", "type_v": "q8_0"}])
def test_the_real_model_takes_what_the_formulas_say(keys: dict[str, Any]) -> None:
    settings = LlamaCppSettings(path=smollm2_path(), use_extra_bufts=False, **keys)
    ours, theirs = BACKEND.inspect(settings).footprint, answer(settings)
    assert theirs.source == BREAKDOWN
    (ram,) = theirs.devices
    assert (ram.name, ram.model_bytes, ram.context_bytes) == ("RAM", ours.weights_bytes, ours.kv_bytes)
    assert ram.compute_bytes == pytest.approx(ours.compute_bytes, rel=0.01)
    assert theirs.output_bytes == ours.output_bytes


def test_recurrent_states_are_part_of_the_context(tmp_path: Path) -> None:
    settings = LlamaCppSettings(path=ZOO["granite_hybrid"]().write(tmp_path / "hybrid.gguf"))
    (ram,) = answer(settings).devices
    assert ram.context_bytes == BACKEND.inspect(settings).footprint.kv_bytes


def test_adapters_are_added_to_what_llama_cpp_says(tmp_path: Path) -> None:
    shape = Shape()
    base, adapter = write_model(tmp_path / "base.gguf", shape), write_lora(tmp_path / "a.gguf", shape)
    plain = LlamaCppSettings(path=base)
    adapted = LlamaCppSettings(path=base, lora=(Lora(path=adapter),))
    (without,), (with_one,) = (answer(settings).devices for settings in (plain, adapted))
    ours = BACKEND.inspect(adapted).footprint.weights_bytes - BACKEND.inspect(plain).footprint.weights_bytes
    assert with_one.model_bytes - without.model_bytes == ours > 0


@pytest.mark.parametrize("offload", [True, False])
def test_a_projector_is_added_to_what_llama_cpp_says(tmp_path: Path, offload: bool) -> None:
    base, projector = write_model(tmp_path / "base.gguf", Shape()), write_llava(tmp_path / "mmproj.gguf")
    plain = LlamaCppSettings(path=base)
    seeing = LlamaCppSettings(path=base, mmproj=projector, mmproj_offload=offload)
    (without,), (with_one,) = (answer(settings).devices for settings in (plain, seeing))
    ours = BACKEND.inspect(seeing).footprint.weights_bytes - BACKEND.inspect(plain).footprint.weights_bytes
    assert with_one.model_bytes - without.model_bytes == ours > 0
    assert (with_one.context_bytes, with_one.compute_bytes) == (without.context_bytes, without.compute_bytes)


def test_a_projector_lies_where_the_output_layer_does_unless_it_stays_in_ram(tmp_path: Path) -> None:
    base, projector = write_model(tmp_path / "base.gguf", Shape()), write_llava(tmp_path / "mmproj.gguf")
    bare = BACKEND.inspect(LlamaCppSettings(path=base)).footprint
    last = len(bare.layer_weights_bytes) - 1
    log = f"load_tensors: layer {last} assigned to device CUDA0, is_swa = 0\n"
    devices = (DeviceMemory("RAM", 100, 0, 10), DeviceMemory("CUDA0", 200, 0, 10))
    for offload, grown in ((True, "CUDA0"), (False, "RAM")):
        full = BACKEND.inspect(LlamaCppSettings(path=base, mmproj=projector, mmproj_offload=offload)).footprint
        found = {one.name: one.model_bytes for one in with_additions(devices, bare, full, log)}
        more = full.weights_bytes - bare.weights_bytes
        assert found == {"RAM": 100, "CUDA0": 200} | {grown: {"RAM": 100, "CUDA0": 200}[grown] + more}


def test_a_file_that_is_no_model_is_answered_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "note.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 100)
    ended = probe(LlamaCppSettings(path=path))
    assert ended.returncode == 1
    with pytest.raises(ProbeError, match=r"note\.gguf"):
        BACKEND.read_probe(ended.stdout)


def incomplete(directory: Path) -> Path:
    """A model without a tensor that it needs."""
    model = ZOO["llama"](2)
    model.tensors = [tensor for tensor in model.tensors if tensor[0] != "blk.1.attn_k.weight"]
    return model.write(directory / "incomplete.gguf")


def contradictory(directory: Path) -> Path:
    """A model that chooses more experts than it has, which llama.cpp takes for a mistake of its own and aborts."""
    model = ZOO["qwen3moe"](2)
    model.experts_used(128, 200, 768)
    return model.write(directory / "contradictory.gguf")


def test_a_model_that_llama_cpp_refuses_is_answered_in_its_words(tmp_path: Path) -> None:
    ended = probe(LlamaCppSettings(path=incomplete(tmp_path)))
    assert ended.returncode == 1
    with pytest.raises(ProbeError, match=r"llama\.cpp cannot load it: .*'blk\.1\.attn_k\.weight' not found"):
        BACKEND.read_probe(ended.stdout)


def test_a_model_that_llama_cpp_dies_of_leaves_no_answer_and_no_core_file(tmp_path: Path) -> None:
    spec = BACKEND.probe(LlamaCppSettings(path=contradictory(tmp_path)), Offload(n_gpu_layers=0), {})
    ended = subprocess.run(spec.argv, env=dict(spec.env), capture_output=True, timeout=90, cwd=tmp_path, check=False)
    assert ended.returncode == -signal.SIGABRT
    assert sorted(file.name for file in tmp_path.iterdir()) == ["contradictory.gguf"]
    with pytest.raises(ProbeError, match="ended without an answer"):
        BACKEND.read_probe(ended.stdout)


def test_what_libraries_print_does_not_get_into_the_answer() -> None:
    ended = probe(LlamaCppSettings(path=smollm2_path()))
    assert ended.stdout.count(b"\n") == 1
    assert json.loads(ended.stdout)["probe"] == "model"


def test_arguments_that_cannot_be_read_are_no_answer() -> None:
    argv = (sys.executable, "-m", "backends.llama_cpp.probe", "model", "--settings", "{}", "--offload", "{}")
    ended = run(argv, os.environ)
    assert ended.returncode == 2
    assert ended.stdout == b""


def test_the_devices_of_this_build_are_listed() -> None:
    spec = BACKEND.device_probe({})
    devices = BACKEND.read_devices(run(spec.argv, spec.env).stdout)
    assert "CPU" in {device.name for device in devices}
    (cpu,) = (device for device in devices if device.name == "CPU")
    assert cpu.kind == "cpu"
    assert 0 < cpu.free_bytes <= cpu.total_bytes


def test_answers_survive_the_way_and_others_are_refused() -> None:
    device = b'{"name":"Vulkan0","description":"A","kind":"gpu","total_bytes":2,"free_bytes":1}'
    good = b'{"probe":"devices","devices":[' + device + b"]}"
    assert BACKEND.read_devices(good) == (ProbedDevice("Vulkan0", "A", "gpu", 2, 1),)
    with pytest.raises(ProbeError, match="another question"):
        BACKEND.read_probe(good)
    for bad in (b"", b"\n", b"{", good.replace(b"Vulkan0", b"\xff"), good.replace(b":2", b':"2"'), good * 2):
        with pytest.raises(ProbeError):
            BACKEND.read_devices(bad)
    with pytest.raises(ProbeError, match="no such thing"):
        BACKEND.read_probe(b'{"probe":"failure","reason":"no such thing"}')


def test_a_results_name_changes_with_everything_it_depends_on(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf")
    settings, offload = LlamaCppSettings(path=path), Offload(n_gpu_layers=0)
    first = BACKEND.probe_key(settings, offload, {})
    assert first is not None
    assert BACKEND.probe_key(settings, offload, {}) == first
    others = {
        BACKEND.probe_key(LlamaCppSettings(path=path, n_ctx=4096), offload, {}),
        BACKEND.probe_key(settings, replace(offload, n_gpu_layers=1), {}),
        BACKEND.probe_key(settings, offload, {"CUDA_VISIBLE_DEVICES": "1"}),
    }
    os.utime(path, ns=(1, 1))
    others.add(BACKEND.probe_key(settings, offload, {}))
    assert len(others | {first}) == 5
    path.unlink()
    assert BACKEND.probe_key(settings, offload, {}) is None


def test_the_log_says_where_layers_are_and_what_graphs_take() -> None:
    assert from_log(FOOTPRINT, LOG) == (
        DeviceMemory("RAM", 1000 + 100, 10, round(1.75 * MIB)),
        DeviceMemory("CUDA0", 200 + 300 + 1000, 20, 10 * MIB),
    )


def test_without_a_log_everything_is_in_ram() -> None:
    assert from_log(FOOTPRINT, "") == (DeviceMemory("RAM", 1600, 30, 0),)


def test_an_adapters_matrices_go_where_their_layers_are() -> None:
    full = replace(FOOTPRINT, layer_weights_bytes=(101, 202, 300), host_weights_bytes=1004, compute_bytes=8)
    before = from_log(FOOTPRINT, LOG)
    ram, gpu = with_additions(before, FOOTPRINT, full, LOG)
    assert (ram.model_bytes - before[0].model_bytes, gpu.model_bytes - before[1].model_bytes) == (1 + 4, 2)
    assert (ram.compute_bytes - before[0].compute_bytes, gpu.compute_bytes - before[1].compute_bytes) == (8, 8)
