"""Models whose engine places itself: bytes on named devices, or all there is while they are not known."""

from __future__ import annotations

from support.simulation import MIB, gpu, model, ram
from support.stepper import Stepper, only

from swapd.core import events as ev
from swapd.core.effects import Launch, RefusalKind, Reject, Stop
from swapd.core.fixed import has_all, lay_fixed
from swapd.core.placement import misfit, place, targets
from swapd.core.spec import RAM, LayerCosts, ModelSpec, Room


def fixed(model_id: str, sizes_mib: dict[str, int | None], **settings: object) -> ModelSpec:
    sizes = {name: None if size is None else size * MIB for name, size in sizes_mib.items()}
    costs = LayerCosts((0,), (0,), host_bytes=sum(size or 0 for size in sizes.values()), compute_bytes=0)
    gpus = tuple(name for name in sizes if name != RAM)
    offload = None if gpus else 0
    return ModelSpec(model_id, "1", 2, costs, fixed=sizes, devices=gpus, n_gpu_layers=offload, **settings)  # type: ignore[arg-type]


def test_it_takes_what_it_takes_where_it_takes_it() -> None:
    spec = fixed("m", {"CUDA1": 300, RAM: 40})
    found = place(spec, Room({"CUDA0": 900 * MIB, "CUDA1": 300 * MIB, RAM: 100 * MIB}))
    assert found is not None
    assert found.device_bytes == {"CUDA1": 300 * MIB, RAM: 40 * MIB}
    assert (found.devices, found.n_gpu_layers) == (("CUDA1",), 0)
    assert found.why == "as its program has it, CUDA1 300 MiB and RAM 40 MiB"
    assert place(spec, Room({"CUDA0": 900 * MIB, "CUDA1": 299 * MIB, RAM: 100 * MIB})) is None


def test_what_it_has_of_an_integrated_gpu_counts_in_ram() -> None:
    room = Room({"Vulkan0": 500, RAM: 1000}, {"Vulkan0": RAM})
    assert lay_fixed({"Vulkan0": 300, RAM: 40}, room).device_bytes == {"Vulkan0": 300, RAM: 340}
    assert lay_fixed({"Vulkan0": None, RAM: None}, room).device_bytes == {"Vulkan0": 500, RAM: 1000}


def test_where_it_is_not_known_what_it_takes_it_is_given_all() -> None:
    spec = fixed("m", {"CUDA0": None, RAM: 40})
    found = place(spec, Room({"CUDA0": 900 * MIB, RAM: 100 * MIB}))
    assert found is not None
    assert found.device_bytes == {"CUDA0": 900 * MIB, RAM: 40 * MIB}
    assert found.whole == ("CUDA0",)
    assert "alone on CUDA0 until it is known what it takes" in found.why


def test_all_is_what_could_be_had_and_never_nothing() -> None:
    best = lay_fixed({"CUDA0": None}, Room({"CUDA0": 900}))
    assert has_all(best, best)
    assert not has_all(lay_fixed({"CUDA0": None}, Room({"CUDA0": 899})), best)
    nothing = lay_fixed({"CUDA0": None}, Room({"CUDA0": -5}))
    assert not has_all(nothing, nothing)


def test_room_for_it_is_made_on_its_own_devices_only() -> None:
    spec = fixed("m", {"CUDA1": 300, RAM: 40})
    assert targets(spec, Room({"CUDA0": 900, "CUDA1": 900, RAM: 900})) == [("CUDA1",)]


def test_one_that_never_fits_is_refused_with_the_sum() -> None:
    stepper = Stepper([gpu("CUDA0", 200), ram(1000)], fixed("m", {"CUDA0": 300, RAM: 40}))
    (reject,) = only(Reject, stepper.arrive("1", "m"))
    assert reject.refusal.kind is RefusalKind.DOES_NOT_FIT
    assert "CUDA0 needs 300 MiB of a budget of 200 MiB, RAM needs 40 MiB" in reject.refusal.message
    assert "say so in its memory" in reject.refusal.message
    assert misfit(fixed("n", {"CUDA0": None}), Room({"CUDA0": 1, RAM: 1})) is None


def test_others_leave_for_it_only_where_it_is_short() -> None:
    stepper = Stepper([gpu("CUDA0", 1000), ram(1000)], model("a", 600), fixed("m", {"CUDA0": 800, RAM: 500}))
    stepper.serve("1", "a", "bob")
    stepper.finish("1")
    stepper.wait(60)
    assert [stop.worker_id for stop in only(Stop, stepper.arrive("2", "m"))] == [1]
    (launch,) = only(Launch, stepper.exit("a"))
    assert launch.placement.device_bytes == {"CUDA0": 800 * MIB, RAM: 500 * MIB}


def test_an_unknown_one_loads_alone_and_what_was_learned_lets_others_in() -> None:
    small = model("a", 100)
    stepper = Stepper([ram(1000)], small, fixed("m", {RAM: None}))
    stepper.serve("1", "a", "bob")
    stepper.finish("1")
    stepper.wait(60)
    assert len(only(Stop, stepper.arrive("2", "m"))) == 1, "it would fit beside the other, as far as anyone knows"
    (launch,) = only(Launch, stepper.exit("a"))
    assert launch.placement.device_bytes == {RAM: 1000 * MIB}
    stepper.ready("m")
    stepper.finish("2")
    stepper.post(ev.ModelsChanged((small, fixed("m", {RAM: 300}))))
    stepper.wait(60)
    assert len(only(Stop, stepper.arrive("3", "a", "bob"))) == 1, "what is reserved for a worker stays so"
    stepper.exit("m")
    stepper.ready("a")
    stepper.finish("3")
    (launch,) = only(Launch, stepper.arrive("4", "m"))
    assert launch.placement.device_bytes == {RAM: 300 * MIB}


def test_a_load_that_runs_out_of_memory_has_failed_for_there_is_no_lower_way() -> None:
    stepper = Stepper([gpu("CUDA0", 1000), ram(1000)], fixed("m", {"CUDA0": None, RAM: 50}))
    stepper.arrive("1", "m")
    effects = stepper.exit("m", ev.ExitKind.OUT_OF_MEMORY)
    (reject,) = only(Reject, effects)
    assert reject.refusal.kind is RefusalKind.LOAD_FAILED
    assert only(Launch, effects) == []


def test_a_further_worker_of_it_needs_the_same_again() -> None:
    spec = fixed("m", {"CUDA0": 400, RAM: 40}, replicas=3)
    stepper = Stepper([gpu("CUDA0", 1000), ram(1000)], spec)
    stepper.serve("1", "m")
    stepper.arrive("2", "m", "bob")
    assert len(only(Launch, stepper.arrive("3", "m", "carol"))) == 1
    stepper.ready("m")
    stepper.arrive("4", "m")
    assert only(Launch, stepper.arrive("5", "m")) == []
