"""How an estimate divides a footprint between a GPU and RAM, and how far budgets reach."""

from __future__ import annotations

from dataclasses import replace

from backends.base import Capabilities, DeviceMemory, Footprint, Inspection, ProbeResult
from swapd.core.spec import ModelSpec, Room
from swapd.estimate import Estimate, Limits, estimate, limits, with_engine, with_measured
from swapd.pool.catalog import layer_costs
from swapd.pool.measure import Surplus, corrected

FOOTPRINT = Footprint(
    layer_weights_bytes=(100, 200, 300),
    layer_kv_bytes=(10, 20, 0),
    host_weights_bytes=50,
    compute_bytes=7,
    output_bytes=3,
    process_bytes=4,
    tied_output_bytes=1,
)


def estimated(n_gpu_layers: int | None, budgets: dict[str, int]) -> Estimate:
    inspection = Inspection(
        footprint=FOOTPRINT, slots=1, capabilities=Capabilities(), n_ctx=512, n_gpu_layers=n_gpu_layers
    )
    spec = ModelSpec("m", "", 1, layer_costs(FOOTPRINT), n_gpu_layers=n_gpu_layers)
    return estimate(spec, inspection, Room(budgets))[0]


def parts(one: Estimate) -> dict[str, tuple[int, int, int, int, int]]:
    return {
        device.name: (
            device.weights_bytes, device.kv_bytes, device.compute_bytes, device.other_bytes, device.total_bytes
        )
        for device in one.devices
    }  # fmt: skip


def test_without_a_gpu_everything_is_in_ram() -> None:
    one = estimated(None, {"RAM": 1000})
    assert parts(one) == {"RAM": (650, 30, 7, 7, 694)}
    assert one.fits
    assert one.total_bytes == FOOTPRINT.total_bytes


def test_all_layers_on_a_gpu_leave_the_embedding_and_the_process_in_ram() -> None:
    assert parts(estimated(None, {"RAM": 1000, "CUDA0": 1000})) == {
        "RAM": (50, 0, 0, 7, 57),
        "CUDA0": (601, 30, 7, 0, 638),
    }


def test_some_layers_on_a_gpu_are_the_last_ones_and_both_sides_compute() -> None:
    assert parts(estimated(2, {"RAM": 1000, "CUDA0": 1000})) == {
        "RAM": (150, 10, 7, 7, 174),
        "CUDA0": (501, 20, 7, 0, 528),
    }


def test_a_model_that_cannot_fit_says_so_and_still_shows_its_parts() -> None:
    one = estimated(None, {"RAM": 100})
    assert not one.fits
    assert "can never fit" in one.fit
    assert parts(one)["RAM"][-1] == 694


def test_the_engines_figures_stand_beside_the_formulas() -> None:
    found = ProbeResult(
        (DeviceMemory("RAM", 60, 0, 2), DeviceMemory("CUDA0", 600, 31, 8), DeviceMemory("CUDA1", 0, 0, 0)), 3, "a probe"
    )
    one = with_engine(estimated(None, {"RAM": 1000, "CUDA0": 1000}), found)
    ram, gpu = one.devices
    assert ram.engine is not None
    assert gpu.engine is not None
    assert (ram.engine.weights_bytes, ram.engine.compute_bytes, ram.engine.total_bytes) == (60, 2, 62 + 7)
    assert (gpu.engine.kv_bytes, gpu.engine.total_bytes) == (31, 639)
    assert (gpu.total_bytes, one.engine) == (638, "a probe")


def test_what_the_engine_puts_elsewhere_is_shown_too() -> None:
    found = ProbeResult((DeviceMemory("RAM", 650, 30, 7), DeviceMemory("CUDA1", 5, 0, 0)), 3, "a probe")
    _, other = with_engine(estimated(None, {"RAM": 1000}), found).devices
    assert other.name == "CUDA1"
    assert (other.total_bytes, other.budget_bytes) == (0, 0)
    assert other.engine is not None
    assert other.engine.total_bytes == 5


def test_what_was_learned_is_added_and_shown_apart() -> None:
    costs = layer_costs(FOOTPRINT)
    spec = ModelSpec("m", "", 1, corrected(costs, Surplus(host_bytes=5)), n_gpu_layers=0)
    inspection = Inspection(footprint=FOOTPRINT, slots=1, capabilities=Capabilities(), n_ctx=512)
    one, _ = estimate(spec, inspection, Room({"RAM": 1000}), costs)
    assert parts(one) == {"RAM": (650, 30, 7, 7, 699)}
    assert one.devices[0].correction_bytes == 5
    assert one.total_bytes == 699
    assert not estimate(spec, inspection, Room({"RAM": 698}), costs)[0].fits


def test_what_was_measured_stands_beside_them_on_whatever_device_it_was() -> None:
    one = with_measured(estimated(None, {"RAM": 1000}), {"RAM": 640, "CUDA1": 300})
    assert [(device.name, device.measured_bytes, device.total_bytes) for device in one.devices] == [
        ("RAM", 640, 694),
        ("CUDA1", 300, 0),
    ]
    assert [device.measured_bytes for device in with_measured(estimated(None, {"RAM": 1000}), {}).devices] == [None]


def model_with(n_ctx: int) -> ModelSpec | None:
    """A byte of cache per token in each of two layers."""
    costs = layer_costs(replace(FOOTPRINT, layer_kv_bytes=(n_ctx, n_ctx, 0)))
    return ModelSpec("m", "", 1, costs) if n_ctx <= 4096 else None


def reached(budgets: dict[str, int], most_n_ctx: int = 4096) -> Limits:
    spec = model_with(256)
    assert spec is not None
    return limits(spec, Room(budgets), model_with, most_n_ctx)


def test_the_largest_context_is_found_to_the_step() -> None:
    others = FOOTPRINT.total_bytes - FOOTPRINT.kv_bytes
    assert reached({"RAM": others + 2 * 1024}).n_ctx == 1024
    assert reached({"RAM": others + 2 * 1024 - 1}).n_ctx == 768
    assert reached({"RAM": others}).n_ctx == 0
    assert reached({"RAM": 1 << 40}).n_ctx == 4096
    assert reached({"RAM": 1 << 40}, 600).n_ctx == 512
    assert reached({"RAM": 1 << 40}, 8192).n_ctx == 4096, "no more than the model can have"


def test_without_gpus_there_are_no_limits_of_gpus() -> None:
    assert reached({"RAM": 1 << 40}).n_ctx_on_gpus is None
    assert reached({"RAM": 1 << 40}).n_gpu_layers is None


def test_with_gpus_a_context_beside_every_layer_is_told_apart() -> None:
    found = reached({"RAM": 1 << 40, "CUDA0": 601 + 7 + 2 * 512})
    assert found == Limits(n_ctx=4096, n_ctx_on_gpus=512, n_gpu_layers=3)
    assert reached({"RAM": 1 << 40, "CUDA0": 310}).n_gpu_layers == 1
    assert reached({"RAM": 1 << 40, "CUDA0": 300}) == Limits(n_ctx=4096, n_ctx_on_gpus=0, n_gpu_layers=0)
