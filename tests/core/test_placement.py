"""Where a model goes: the order of preference, what the settings fix, the words for it, and the refusal with sums."""

from __future__ import annotations

import pytest

from swapd.core.placement import (
    MIB,
    describe,
    fits,
    good_enough,
    misfit,
    place,
    preferred,
    shortage,
    targets,
    usable_gpus,
)
from swapd.core.spec import DeviceSpec, LayerCosts, ModelSpec, Placement, Room, SplitMode

COSTS = LayerCosts((100,) * 10, (10,) * 10, host_bytes=50, compute_bytes=20)
"""Ten layers of 110 bytes on a GPU, 20 more on each GPU that computes."""
MOE = LayerCosts((100,) * 10, (10,) * 10, 50, 20, layer_expert_bytes=(*(80,) * 9, 0))
PLENTY = 1 << 40


def spec(costs: LayerCosts = COSTS, **settings: object) -> ModelSpec:
    return ModelSpec("m", "1", 2, costs, **settings)  # type: ignore[arg-type]


def placed(model: ModelSpec, shares: dict[str, str] | None = None, **free: int) -> Placement:
    found = place(model, Room({"RAM": PLENTY} | free, shares or {}))
    assert found is not None
    return found


def way(found: Placement) -> tuple[tuple[str, ...], tuple[int, ...], int]:
    return found.devices, found.tensor_split, found.n_cpu_moe


# -- the order of preference ---------------------------------------------------------------------------------------


def test_the_fullest_gpu_that_holds_it_is_taken() -> None:
    found = placed(spec(), CUDA0=5000, CUDA1=1120, CUDA2=1119)
    assert way(found) == (("CUDA1",), (10,), 0)
    assert found.device_bytes == {"CUDA1": 1120, "RAM": 50}
    assert found.left_bytes == 0


def test_else_it_is_split_over_the_fewest_in_proportion_to_what_is_free() -> None:
    assert way(placed(spec(), CUDA0=1100, CUDA1=420)) == (("CUDA0", "CUDA1"), (7, 3), 0)
    assert way(placed(spec(), CUDA0=1100, CUDA1=420, CUDA2=200)) == (("CUDA0", "CUDA2"), (9, 1), 0)
    assert way(placed(spec(), CUDA0=460, CUDA1=460, CUDA2=460)) == (("CUDA0", "CUDA1", "CUDA2"), (3, 4, 3), 0)


def test_of_several_pairs_the_fullest_that_holds_it_is_taken() -> None:
    assert way(placed(spec(), CUDA0=1000, CUDA1=600, CUDA2=600))[0] == ("CUDA1", "CUDA2")


def test_else_the_experts_of_as_few_blocks_as_need_be_stay_in_ram() -> None:
    found = placed(spec(MOE), CUDA0=880)
    assert way(found) == (("CUDA0",), (10,), 3)
    assert found.device_bytes == {"CUDA0": 880, "RAM": 50 + 20 + 240}
    assert found.left_bytes == 240


def test_a_split_is_preferred_to_experts_in_ram() -> None:
    assert way(placed(spec(MOE), CUDA0=880, CUDA1=880)) == (("CUDA0", "CUDA1"), (5, 5), 0)


def test_else_as_many_layers_as_fit_are_on_gpus() -> None:
    found = placed(spec(), CUDA0=130 + 329)
    assert (way(found), found.n_gpu_layers) == ((("CUDA0",), (3,), 0), 3)
    assert found.left_bytes == 770
    assert way(placed(spec(), CUDA0=350, CUDA1=240)) == (("CUDA0", "CUDA1"), (3, 2), 0)


def test_one_layer_less_does_without_the_copies_of_gpus_that_work_in_turn() -> None:
    costs = LayerCosts((100,) * 10, (10,) * 10, host_bytes=50, compute_bytes=20, gpu_pipeline_bytes=30)
    assert way(placed(spec(costs), CUDA0=600, CUDA1=600)) == (("CUDA0", "CUDA1"), (5, 5), 0)
    assert placed(spec(costs), CUDA0=590, CUDA1=590).n_gpu_layers == 9


def test_layers_without_their_experts_are_what_is_left_to_put_on_a_small_gpu() -> None:
    found = placed(spec(MOE), CUDA0=20 + 110 + 30 * 4)
    assert (way(found), found.n_gpu_layers) == ((("CUDA0",), (5,), 9), 5)


def test_at_last_it_is_in_ram() -> None:
    found = placed(spec(), CUDA0=129)
    assert way(found) == ((), (), 0)
    assert found.left_bytes == 1100
    assert found.why.startswith("on the CPU (no GPU has room for a layer), RAM")


def test_without_a_gpu_it_is_in_ram_and_nothing_is_amiss() -> None:
    assert placed(spec()).left_bytes == 0
    assert placed(spec(n_gpu_layers=7)).n_gpu_layers == 0


def test_when_not_even_ram_suffices_there_is_no_place() -> None:
    assert place(spec(), Room({"RAM": 1169, "CUDA0": 100})) is None
    assert place(spec(), Room({"RAM": 49, "CUDA0": PLENTY})) is None


# -- what the settings fix -----------------------------------------------------------------------------------------


def test_a_number_of_layers_by_hand_is_neither_raised_nor_lowered() -> None:
    model = spec(n_gpu_layers=4)
    assert way(placed(model, CUDA0=PLENTY)) == (("CUDA0",), (4,), 0)
    assert placed(model, CUDA0=PLENTY).left_bytes == 0
    assert way(placed(model, CUDA0=240, CUDA1=240)) == (("CUDA0", "CUDA1"), (2, 2), 0)
    assert place(model, Room({"RAM": PLENTY, "CUDA0": 459})) is None


def test_all_layers_by_hand_never_stay_in_ram_but_their_experts_may() -> None:
    assert place(spec(n_gpu_layers=10), Room({"RAM": PLENTY, "CUDA0": 1119})) is None
    assert way(placed(spec(MOE, n_gpu_layers=10), CUDA0=880)) == (("CUDA0",), (10,), 3)


def test_experts_by_hand_are_neither_more_nor_fewer() -> None:
    assert way(placed(spec(MOE, n_cpu_moe=2), CUDA0=PLENTY)) == (("CUDA0",), (10,), 2)
    assert placed(spec(MOE, n_cpu_moe=2), CUDA0=PLENTY).left_bytes == 0
    assert place(spec(MOE, n_cpu_moe=2, n_gpu_layers=10), Room({"RAM": PLENTY, "CUDA0": 959})) is None
    assert way(placed(spec(MOE, n_cpu_moe=0), CUDA0=500)) == (("CUDA0",), (4,), 0)


def test_only_the_devices_in_the_settings_are_used() -> None:
    assert way(placed(spec(devices=("CUDA1",)), CUDA0=PLENTY, CUDA1=PLENTY))[0] == ("CUDA1",)
    assert way(placed(spec(devices=("RAM",)), CUDA0=PLENTY)) == ((), (), 0)


def test_a_split_by_hand_is_kept_whatever_is_free() -> None:
    model = spec(tensor_split=(3.0, 1.0))
    assert way(placed(model, CUDA0=2000, CUDA1=2000)) == (("CUDA0", "CUDA1"), (8, 2), 0)
    assert way(placed(model, CUDA0=500, CUDA1=PLENTY)) == (("CUDA0", "CUDA1"), (4, 1), 0)
    assert (
        place(spec(tensor_split=(3.0, 1.0), n_gpu_layers=10), Room({"RAM": PLENTY, "CUDA0": 500, "CUDA1": PLENTY}))
        is None
    )


def test_a_split_by_hand_goes_by_the_settings_order_of_devices() -> None:
    model = spec(devices=("CUDA1", "CUDA0"), tensor_split=(3.0, 1.0))
    assert way(placed(model, CUDA0=2000, CUDA1=2000)) == (("CUDA1", "CUDA0"), (8, 2), 0)


def test_a_device_with_no_share_is_left_out() -> None:
    assert way(placed(spec(tensor_split=(0.0, 1.0)), CUDA0=2000, CUDA1=2000)) == (("CUDA1",), (10,), 0)


def test_experts_make_a_split_by_hand_fit() -> None:
    found = placed(spec(MOE, tensor_split=(1.0, 1.0), n_gpu_layers=10), CUDA0=410, CUDA1=PLENTY)
    assert way(found) == (("CUDA0", "CUDA1"), (5, 5), 2)


def test_without_a_split_mode_one_gpu_must_do() -> None:
    model = spec(split_mode=SplitMode.NONE)
    assert way(placed(model, CUDA0=900, CUDA1=1020)) == (("CUDA1",), (9,), 0)
    named = spec(split_mode=SplitMode.NONE, main_gpu=0)
    assert way(placed(named, CUDA0=900, CUDA1=PLENTY)) == (("CUDA0",), (8,), 0)


def test_rows_name_the_main_gpu_by_its_place_among_the_devices_used() -> None:
    model = spec(split_mode=SplitMode.ROW, main_gpu=2)
    found = placed(model, CUDA0=100, CUDA1=700, CUDA2=700)
    assert (found.devices, found.tensor_split, found.main_gpu) == (("CUDA1", "CUDA2"), (5, 5), 1)


def test_an_integrated_gpu_is_used_beside_no_other_or_when_it_is_named() -> None:
    shares = {"Vulkan1": "RAM"}
    assert usable_gpus(spec(), Room({"RAM": 1, "Vulkan0": 1, "Vulkan1": 1}, shares)) == ["Vulkan0"]
    assert usable_gpus(spec(devices=("Vulkan1",)), Room({"RAM": 1, "Vulkan0": 1, "Vulkan1": 1}, shares)) == ["Vulkan1"]
    assert usable_gpus(spec(), Room({"RAM": 1, "Vulkan1": 1}, shares)) == ["Vulkan1"]


def test_one_memory_under_two_names_is_counted_once() -> None:
    shares = {"MTL0": "RAM"}
    found = placed(spec(), shares, MTL0=1120, RAM=1170)
    assert found.device_bytes == {"MTL0": 1120, "RAM": 1170}
    assert place(spec(), Room({"MTL0": 1120, "RAM": 1169}, shares)) is None


def test_devices_are_counted_not_spelled() -> None:
    free = {f"CUDA{number}": 130 for number in range(12)}
    assert usable_gpus(spec(), Room(free)) == [f"CUDA{number}" for number in range(12)]


def test_with_many_gpus_the_fewest_are_those_with_the_most_room() -> None:
    free = {f"CUDA{number}": 200 + number for number in range(12)} | {"CUDA3": 600, "CUDA7": 600}
    assert way(placed(spec(), **free))[0] == ("CUDA3", "CUDA7")


# -- waiting for better --------------------------------------------------------------------------------------------


def test_a_model_that_could_be_whole_on_gpus_does_not_settle_for_less() -> None:
    whole, partly = placed(spec(), CUDA0=2000), placed(spec(), CUDA0=1000)
    assert good_enough(whole, whole, COSTS)
    assert not good_enough(partly, whole, COSTS)


def test_one_that_cannot_takes_what_is_nearly_as_good() -> None:
    best, nearly, little = (placed(spec(), CUDA0=size) for size in (1000, 900, 500))
    assert good_enough(nearly, best, COSTS)
    assert not good_enough(little, best, COSTS)


def test_room_is_made_on_each_set_of_gpus_that_could_hold_it() -> None:
    room = Room({"CUDA1": 1, "CUDA0": 1, "RAM": 1})
    assert targets(spec(), room) == [("CUDA0",), ("CUDA1",), ("CUDA0", "CUDA1")]
    assert targets(spec(split_mode=SplitMode.NONE), room) == [("CUDA0",), ("CUDA1",)]
    assert targets(spec(tensor_split=(1.0, 1.0)), room) == [("CUDA0", "CUDA1")]
    assert targets(spec(n_gpu_layers=0), room) == [("CUDA0", "CUDA1")]
    assert targets(spec(), Room({"RAM": 1})) == [()]
    many = Room({f"CUDA{number}": 1 for number in range(6)})
    assert [len(group) for group in targets(spec(), many)] == [1] * 6 + [6]


# -- words and sums ------------------------------------------------------------------------------------------------

LARGE = LayerCosts((300 * MIB, 200 * MIB), (0, 0), host_bytes=100 * MIB, compute_bytes=0)


@pytest.mark.parametrize(
    ("settings", "free_mib", "why"),
    [
        ({}, {}, "on the CPU, RAM 600 MiB"),
        ({"n_gpu_layers": 1}, {"CUDA0": 900}, "the last 1 of 2 layers on CUDA0, CUDA0 200 MiB and RAM 400 MiB"),
        ({}, {"CUDA0": 900}, "all layers on CUDA0, CUDA0 500 MiB and RAM 100 MiB"),
        (
            {},
            {"CUDA0": 900, "CUDA1": 600},
            "all layers on CUDA1 (the fullest GPU with room), CUDA1 500 MiB and RAM 100 MiB",
        ),
        (
            {},
            {"CUDA0": 300, "CUDA1": 300},
            "all layers on CUDA0 and CUDA1 (1 and 1; no GPU alone has room), "
            "CUDA0 300 MiB and CUDA1 200 MiB and RAM 100 MiB",
        ),
        (
            {"tensor_split": (1.0, 1.0)},
            {"CUDA0": 900, "CUDA1": 900},
            "all layers on CUDA0 and CUDA1 (1 and 1; tensor_split), CUDA0 300 MiB and CUDA1 200 MiB and RAM 100 MiB",
        ),
        (
            {},
            {"CUDA0": 299},
            "the last 1 of 2 layers (the GPUs have no room for more) on CUDA0, CUDA0 200 MiB and RAM 400 MiB",
        ),
    ],
)
def test_a_placement_says_in_words_what_goes_where_and_why(
    settings: dict[str, object], free_mib: dict[str, int], why: str
) -> None:
    free = {name: size_mib * MIB for name, size_mib in free_mib.items()}
    assert placed(spec(LARGE, **settings), **free).why == why


def test_experts_in_ram_are_said_in_words() -> None:
    said = placed(spec(MOE), CUDA0=880).why
    assert said.startswith("all layers on CUDA0, the experts of the first 3 blocks in RAM (the GPUs have no room for")


def test_what_is_preferred_does_not_ask_for_room() -> None:
    assert preferred(spec(), Room({"CUDA0": 1, "CUDA1": 1, "RAM": 1})).devices == ("CUDA0",)
    assert preferred(spec(n_gpu_layers=0), Room({"CUDA0": 1, "RAM": 1})).devices == ()


def test_a_size_that_fits_exactly_fits() -> None:
    assert fits({"RAM": 100}, {"RAM": 100})
    assert not fits({"RAM": 101}, {"RAM": 100})
    assert not fits({"CUDA7": 1}, {"RAM": 100})


def test_the_shortage_lists_only_devices_that_are_short() -> None:
    assert shortage({"CUDA0": 100, "RAM": 50}, {"CUDA0": 30, "RAM": 50}) == {"CUDA0": 70}
    assert shortage({"CUDA0": 100}, {"CUDA0": -20}) == {"CUDA0": 120}


def test_sizes_are_rounded_up_and_grouped() -> None:
    assert describe({"RAM": 1, "CUDA0": 5_120 * MIB}) == "CUDA0 5,120 MiB and RAM 1 MiB"
    assert describe({}) == "nothing"


def test_a_model_that_fits_somewhere_is_no_misfit() -> None:
    assert misfit(spec(), Room({"CUDA0": 10, "CUDA1": 1_200, "RAM": 10_000})) is None


def test_a_misfit_shows_the_sum_of_every_way_per_device() -> None:
    costs = LayerCosts((3000 * MIB,), (1000 * MIB,), host_bytes=100 * MIB, compute_bytes=50 * MIB)
    budgets = Room({"CUDA0": 2000 * MIB, "CUDA1": 4000 * MIB, "RAM": 3000 * MIB})
    assert misfit(spec(costs), budgets) == (
        "model 'm' can never fit: "
        "CUDA0 needs 4,050 MiB of a budget of 2,000 MiB, RAM needs 100 MiB of a budget of 3,000 MiB; or "
        "CUDA1 needs 4,050 MiB of a budget of 4,000 MiB, RAM needs 100 MiB of a budget of 3,000 MiB; or "
        "CUDA0 and CUDA1 needs 4,100 MiB of a budget of 6,000 MiB, RAM needs 100 MiB of a budget of 3,000 MiB; or "
        "RAM needs 4,150 MiB of a budget of 3,000 MiB. "
        "Lower its n_ctx or n_gpu_layers, quantize its cache (type_k, type_v), or raise memory.budget."
    )


def test_a_misfit_shows_only_the_ways_that_the_settings_allow() -> None:
    costs = LayerCosts((3000 * MIB,), (0,), 0, 0)
    budgets = Room({"CUDA0": 2000 * MIB, "CUDA1": 2000 * MIB, "RAM": 1000 * MIB})
    said = {
        "CPU": misfit(spec(costs, n_gpu_layers=0), budgets),
        "one": misfit(spec(costs, n_gpu_layers=1, split_mode=SplitMode.NONE), budgets),
        "hand": misfit(spec(costs, n_gpu_layers=1, tensor_split=(0.0, 1.0)), budgets),
    }
    counted = {name: (text or "").count(" needs ") for name, text in said.items()}
    assert counted == {"CPU": 1, "one": 4, "hand": 2}


def test_a_model_elsewhere_has_its_first_choice_there() -> None:
    assert preferred(spec(elsewhere=True), Room({"RAM": 1})).device_bytes == {}


def test_the_room_while_nothing_is_loaded_is_what_the_budgets_say() -> None:
    devices = [DeviceSpec("RAM", 900, 800), DeviceSpec("Vulkan0", 500, 400, shares="RAM")]
    room = Room.of_budgets(devices)
    assert room.free_bytes == {"RAM": 800, "Vulkan0": 400}
    assert room.shares == {"Vulkan0": "RAM"}


def test_rows_that_one_of_the_gpus_cannot_hold_are_not_cut_so() -> None:
    costs = LayerCosts((100, 100, 100, 100), (0, 90, 0, 0), host_bytes=0, compute_bytes=0)
    rows = ModelSpec("m", "1", 2, costs, split_mode=SplitMode.ROW)
    uneven = LayerCosts((10, 10, 10, 370), (0,) * 4, host_bytes=0, compute_bytes=0)
    assert place(rows, Room({"RAM": PLENTY, "CUDA0": 300, "CUDA1": 300})) is not None
    found = place(
        ModelSpec("m", "1", 2, uneven, split_mode=SplitMode.ROW), Room({"RAM": PLENTY, "CUDA0": 31, "CUDA1": 371})
    )
    assert found is not None
    assert len(found.devices) < 2, "each GPU would have its part of every layer, and the small one has no room for that"
