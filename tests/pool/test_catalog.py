"""From a model's settings and file to what the core schedules, and from a placement to what the worker is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gguf_files import Shape, write_model

from backends.base import Capabilities, Offload
from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.settings import LlamaCppSettings
from swapd.config.schema import Config, Model, Server
from swapd.core.placement import place
from swapd.core.spec import RAM, Placement, Room, SplitMode
from swapd.pool.catalog import Entry, capabilities, inspect, offload, spare_sizes, unmapped_bytes

TWO_GPUS = ("CUDA0", "CUDA1", "RAM")


def inspected(directory: Path, machine: tuple[str, ...], **keys: object) -> Entry:
    path = directory / "tiny.gguf"
    if not path.exists():
        write_model(path, Shape())
    settings = LlamaCppSettings(**{"path": path, **keys})  # type: ignore[arg-type]
    return inspect(Model(id="m", settings=settings), Config(), LlamaCppBackend(), machine)


def test_settings_that_say_nothing_leave_everything_to_placement(tmp_path: Path) -> None:
    spec = inspected(tmp_path, TWO_GPUS).spec
    assert (spec.n_gpu_layers, spec.n_cpu_moe, spec.main_gpu) == (None, None, None)
    assert (spec.devices, spec.tensor_split, spec.split_mode) == ((), (), SplitMode.LAYER)


def test_what_a_model_can_do_is_named() -> None:
    assert capabilities(Capabilities(tools=True)) == ("chat", "completions", "tools")
    assert capabilities(Capabilities(chat=False, completions=False, rerank=True)) == ("rerank",)


def test_what_is_set_by_hand_reaches_the_core(tmp_path: Path) -> None:
    keys = {"n_gpu_layers": 1, "n_cpu_moe": 0, "main_gpu": 1, "tensor_split": (3.0, 1.0), "split_mode": "row"}
    spec = inspected(tmp_path, TWO_GPUS, devices=("CUDA1", "CUDA0"), **keys).spec
    assert (spec.n_gpu_layers, spec.n_cpu_moe, spec.main_gpu) == (1, 0, 1)
    assert (spec.devices, spec.tensor_split, spec.split_mode) == (("CUDA1", "CUDA0"), (3.0, 1.0), SplitMode.ROW)


@pytest.mark.parametrize(
    ("keys", "verdict"),
    [
        ({"devices": ("CUDA7",)}, "asks for CUDA7 (devices); this machine has CUDA0, CUDA1, RAM"),
        ({"tensor_split": (1.0, 1.0, 1.0)}, "has 3 shares in tensor_split; this machine has CUDA0, CUDA1, RAM"),
        ({"tensor_split": (1.0, 1.0), "devices": ("CUDA0",)}, "has 2 shares in tensor_split"),
        ({"tensor_split": (0.0, 0.0)}, "has only zeros in tensor_split"),
        ({"main_gpu": 2}, "asks for main_gpu 2, counted from 0; this machine has CUDA0, CUDA1, RAM"),
    ],
)
def test_gpus_that_are_not_there_are_a_verdict_that_names_what_is(
    tmp_path: Path, keys: dict[str, object], verdict: str
) -> None:
    spec = inspected(tmp_path, TWO_GPUS, **keys).spec
    assert spec.costs is None
    assert spec.verdict is not None
    assert verdict in spec.verdict


def test_a_variable_that_gives_gpus_other_names_in_the_worker_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny.gguf", Shape())
    settings = LlamaCppSettings(path=tmp_path / "tiny.gguf")
    model = Model(id="m", settings=settings, env={"CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "2"})
    verdict = inspect(model, Config(), LlamaCppBackend(), TWO_GPUS).spec.verdict
    assert verdict is not None
    assert "sets CUDA_VISIBLE_DEVICES in env" in verdict
    assert inspect(model, Config(), LlamaCppBackend(), ("RAM",)).spec.verdict is None


def test_without_any_gpu_it_does_not_matter_how_they_should_be_used(tmp_path: Path) -> None:
    entry = inspected(tmp_path, ("RAM",), tensor_split=(1.0, 1.0), main_gpu=3)
    assert entry.spec.verdict is None


def test_the_worker_is_told_the_layers_that_were_reserved_on_each_device() -> None:
    placement = Placement({}, 7, ("CUDA0", "CUDA1"), "", tensor_split=(5, 2), n_cpu_moe=3, main_gpu=1)
    assert offload(placement) == Offload(7, ("CUDA0", "CUDA1"), (5.0, 2.0), n_cpu_moe=3, main_gpu=1)
    assert offload(Placement({}, 0, (), "")) == Offload()


def test_models_over_one_file_share_what_they_map_of_it_under_whatever_name(tmp_path: Path) -> None:
    one = inspected(tmp_path, ("RAM",), n_ctx=512).spec
    other = inspected(tmp_path, ("RAM",), n_ctx=1024, n_parallel=2).spec
    (tmp_path / "link.gguf").symlink_to(tmp_path / "tiny.gguf")
    linked = inspected(tmp_path, ("RAM",), path=tmp_path / "link.gguf").spec
    assert one.mapped_files is not None
    assert one.mapped_files == other.mapped_files == linked.mapped_files
    assert one.launch_key != other.launch_key
    (tmp_path / "copy").mkdir()
    assert inspected(tmp_path / "copy", ("RAM",)).spec.mapped_files != one.mapped_files


@pytest.mark.parametrize("keys", [{"use_mmap": False}, {"override_tensor": ("ffn_up=CPU",)}])
def test_what_is_read_or_chosen_by_patterns_is_not_taken_for_shared(tmp_path: Path, keys: dict[str, object]) -> None:
    assert inspected(tmp_path, ("RAM",), **keys).spec.mapped_files is None


@pytest.mark.parametrize("repacks", [False, True])
def test_pages_of_the_file_are_no_memory_beside_it(tmp_path: Path, repacks: bool) -> None:
    entry = inspected(tmp_path, (RAM,), use_extra_bufts=repacks, use_mmap=True)
    assert entry.inspection is not None
    placement = place(entry.spec, Room({RAM: 2**40}))
    assert placement is not None
    taken_bytes = placement.device_bytes[RAM]
    mapped_bytes = entry.inspection.footprint.weights_bytes if entry.inspection.maps_weights else 0
    assert unmapped_bytes(entry, placement) == taken_bytes - mapped_bytes
    unmapped = inspected(tmp_path, (RAM,), use_mmap=False)
    assert unmapped_bytes(unmapped, placement) == taken_bytes


def test_there_is_a_spare_of_backends_that_are_in_use_unless_it_is_switched_off(tmp_path: Path) -> None:
    model, backends = inspected(tmp_path, (RAM,)).model, {"llama_cpp": LlamaCppBackend()}
    assert spare_sizes(Config(), backends) == {}
    assert spare_sizes(Config(models={"m": model}), backends) == {"llama_cpp": LlamaCppBackend.spare_bytes}
    assert spare_sizes(Config(models={"m": model}, server=Server(warm_spare=False)), backends) == {}


def test_a_model_with_an_environment_is_never_made_of_a_spare(tmp_path: Path) -> None:
    entry = inspected(tmp_path, (RAM,))
    assert entry.spec.spare == "llama_cpp"
    model = Model(id="m", settings=entry.model.settings, env={"OMP_NUM_THREADS": "2"})
    assert inspect(model, Config(), LlamaCppBackend(), (RAM,)).spec.spare is None
