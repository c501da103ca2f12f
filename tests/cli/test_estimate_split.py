"""How an estimate divides a footprint between a GPU and RAM."""

from __future__ import annotations

from backends.base import Capabilities, Footprint, Inspection
from swapd.core.spec import ModelSpec, Room
from swapd.estimate import Estimate, estimate
from swapd.pool.catalog import layer_costs

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
    return estimate(spec, inspection, Room(budgets))


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
