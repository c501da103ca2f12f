"""Memory that other programs hold: read before a load, it shrinks what is placed, and sends idle models away."""

from __future__ import annotations

from dataclasses import replace

from support.simulation import MIB, gpu, metered, ram
from support.stepper import Stepper, gpu_model, only

from swapd.core import events as ev
from swapd.core.devices import GUARD_EVERY_S, SETTLE_S
from swapd.core.effects import Launch, Reject, Sample, Stop, Tell
from swapd.core.records import SAMPLE_PATIENCE_S, WATCH_EVERY_S
from swapd.core.room import why_waiting
from swapd.core.spec import DeviceSpec, ModelSpec


def machine(*models: ModelSpec, gpu_mib: int = 1000, reserve_mib: int = 0) -> Stepper:
    return Stepper([metered("CUDA0", gpu_mib, reserve_mib=reserve_mib), ram(1000)], *models)


def sampled(stepper: Stepper, free_mib: int, held_mib: dict[str, int] | None = None) -> list:
    """What CUDA0 shows. `held_mib` is what the driver says that each model's worker has."""
    held = None
    if held_mib is not None:
        held = {stepper.worker(model_id).id: size_mib * MIB for model_id, size_mib in held_mib.items()}
    return stepper.post(ev.MemorySampled("CUDA0", free_mib * MIB, held))


def loaded(stepper: Stepper, model_id: str, free_before_mib: int) -> None:
    stepper.post(ev.LoadAsked(f"load-{model_id}", model_id))
    sampled(stepper, free_before_mib)
    stepper.ready(model_id)


def test_a_device_is_asked_before_anything_is_loaded_on_it() -> None:
    stepper = machine(gpu_model("x", 400))
    effects = stepper.arrive("1", "x")
    assert only(Sample, effects) == [Sample("CUDA0")]
    assert only(Launch, effects) == []
    assert [launch.model_id for launch in only(Launch, sampled(stepper, 1000))] == ["x"]


def test_a_fresh_sample_is_good_for_the_next_load() -> None:
    stepper = machine(gpu_model("x", 400), gpu_model("y", 400))
    stepper.arrive("1", "x")
    sampled(stepper, 1000)
    stepper.wait(WATCH_EVERY_S)
    assert [launch.model_id for launch in only(Launch, stepper.arrive("2", "y"))] == ["y"]


def test_an_old_one_is_not() -> None:
    stepper = machine(gpu_model("x", 400), gpu_model("y", 400))
    stepper.arrive("1", "x")
    sampled(stepper, 1000)
    stepper.wait(WATCH_EVERY_S + 0.1)
    effects = stepper.arrive("2", "y")
    assert (len(only(Launch, effects)), len(only(Sample, effects))) == (0, 1)


def test_a_device_that_does_not_answer_is_not_waited_for_long() -> None:
    stepper = machine(gpu_model("x", 400))
    stepper.arrive("1", "x")
    assert only(Launch, stepper.wait(SAMPLE_PATIENCE_S - 0.1)) == []
    assert len(only(Launch, stepper.wait(WATCH_EVERY_S))) == 1


def test_an_idle_gpu_sleeps() -> None:
    stepper = machine(gpu_model("x", 400), gpu_model("cpu", 400, n_gpu_layers=0))
    assert only(Sample, stepper.wait(3600.0)) == []
    assert only(Sample, stepper.arrive("1", "cpu")) == [], "it is nobody's who stays in RAM"


def test_a_gpu_with_workers_on_it_is_watched() -> None:
    stepper = machine(gpu_model("x", 400))
    loaded(stepper, "x", 1000)
    assert len(only(Sample, stepper.wait(60.0))) == int(60.0 / GUARD_EVERY_S)


def test_what_others_hold_is_not_placed_on() -> None:
    stepper = machine(gpu_model("x", 400, n_gpu_layers=1))
    stepper.arrive("1", "x")
    assert only(Launch, sampled(stepper, 399)) == []
    assert len(only(Launch, sampled(stepper, 400))) == 1


def test_a_reserve_is_left_beside_what_others_hold() -> None:
    stepper = machine(gpu_model("x", 400, n_gpu_layers=1), reserve_mib=100)
    stepper.arrive("1", "x")
    assert only(Launch, sampled(stepper, 499)) == []
    assert len(only(Launch, sampled(stepper, 500))) == 1


def test_a_model_waits_until_others_leave_and_is_not_refused() -> None:
    stepper = machine(gpu_model("x", 400, n_gpu_layers=1))
    effects = stepper.arrive("1", "x") + sampled(stepper, 100)
    assert only(Reject, effects) == []
    said = why_waiting(stepper.ledger, stepper.model("x"), stepper.now_s)
    assert said == "waits for memory that other programs hold: CUDA0 900 MiB"
    effects = stepper.wait(60.0)
    assert len(only(Sample, effects)) == int(60.0 / WATCH_EVERY_S), "the device is watched meanwhile"
    assert len(only(Launch, sampled(stepper, 900))) == 1


def test_a_request_that_waited_for_others_in_vain_is_told_so() -> None:
    stepper = machine(gpu_model("x", 400, n_gpu_layers=1, queue_timeout_s=30.0))
    stepper.arrive("1", "x")
    sampled(stepper, 100)
    (reject,) = only(Reject, stepper.wait(30.0))
    assert reject.refusal.message == (
        "the request waited 30 s (queue.timeout) for model 'x', "
        "which waits for memory that other programs hold: CUDA0 900 MiB"
    )


def test_a_model_whose_layers_are_left_open_takes_what_others_leave() -> None:
    stepper = machine(gpu_model("x", 400))
    stepper.arrive("1", "x")
    (launch,) = only(Launch, sampled(stepper, 100))
    assert launch.placement.devices == ()


def test_our_own_workers_are_not_others() -> None:
    stepper = machine(gpu_model("x", 400), gpu_model("y", 400))
    loaded(stepper, "x", 900)
    sampled(stepper, 500, {"x": 400})
    assert stepper.ledger.devices["CUDA0"].others_bytes == 100 * MIB
    assert len(only(Launch, stepper.arrive("1", "y"))) == 1


def test_nor_is_memory_on_its_way_back() -> None:
    stepper = machine(gpu_model("x", 800), gpu_model("y", 800))
    loaded(stepper, "x", 1000)
    sampled(stepper, 200, {"x": 800})
    stepper.arrive("1", "y")
    stepper.exit("x")
    sampled(stepper, 300, {})
    assert stepper.ledger.devices["CUDA0"].others_bytes == 0
    assert [launch.model_id for launch in only(Launch, sampled(stepper, 1000, {}))] == ["y"]


def test_what_a_worker_takes_beyond_its_reservation_is_lost_to_others() -> None:
    stepper = machine(gpu_model("x", 400), gpu_model("y", 500))
    loaded(stepper, "x", 1000)
    sampled(stepper, 450, {"x": 550})
    assert stepper.ledger.devices["CUDA0"].others_bytes == 150 * MIB
    assert only(Launch, stepper.arrive("1", "y")) == []


def test_a_worker_that_still_loads_has_only_what_it_has() -> None:
    stepper = machine(gpu_model("x", 400))
    stepper.arrive("1", "x")
    sampled(stepper, 1000)
    sampled(stepper, 850, {"x": 100})
    assert stepper.ledger.devices["CUDA0"].others_bytes == 50 * MIB


def test_where_the_driver_does_not_tell_nothing_is_learned_during_a_load() -> None:
    stepper = machine(gpu_model("x", 400))
    stepper.arrive("1", "x")
    sampled(stepper, 900)
    sampled(stepper, 700)
    assert stepper.ledger.devices["CUDA0"].others_bytes == 100 * MIB
    stepper.ready("x")
    sampled(stepper, 300)
    assert stepper.ledger.devices["CUDA0"].others_bytes == 300 * MIB


def test_idle_models_leave_when_others_need_more_than_half_the_reserve() -> None:
    stepper = machine(gpu_model("x", 400), gpu_model("y", 400), reserve_mib=100)
    loaded(stepper, "x", 1000)
    loaded(stepper, "y", 600)
    assert only(Stop, sampled(stepper, 50, {"x": 400, "y": 400})) == []
    effects = sampled(stepper, 49, {"x": 400, "y": 400})
    assert [stop.worker_id for stop in only(Stop, effects)] == [stepper.worker("x").id]
    (tell,) = [tell for tell in only(Tell, effects) if tell.kind == "unloading"]
    assert tell.message == ("'x' leaves: other programs hold 151 MiB of CUDA0, 1 MiB more than there is to spare")


def test_busy_and_pinned_models_stay_whatever_others_need() -> None:
    stepper = machine(gpu_model("busy", 300), gpu_model("pinned", 300, pin=True), gpu_model("idle", 300))
    sampled(stepper, 1000)
    stepper.ready("pinned")
    stepper.arrive("1", "busy")
    stepper.ready("busy")
    loaded(stepper, "idle", 400)
    held = {"busy": 300, "pinned": 300, "idle": 300}
    effects = sampled(stepper, 0, held | {"idle": 0})
    assert [stop.worker_id for stop in only(Stop, effects)] == [stepper.worker("idle").id]
    assert only(Stop, stepper.wait(60.0)) == []
    assert stepper.states() == {"busy": ["ready"], "pinned": ["ready"], "idle": ["stopping"]}


def test_all_idle_ones_leave_when_even_they_are_too_little() -> None:
    stepper = machine(gpu_model("x", 100), gpu_model("y", 800))
    loaded(stepper, "x", 1000)
    stepper.arrive("1", "y")
    stepper.ready("y")
    effects = sampled(stepper, 0, {"x": 0, "y": 500})
    assert [stop.worker_id for stop in only(Stop, effects)] == [stepper.worker("x").id]


def test_pressure_on_one_gpu_leaves_the_others_alone() -> None:
    devices = [metered("CUDA0", 500), gpu("CUDA1", 500), ram(1000)]
    x, y = gpu_model("x", 400, devices=("CUDA0",)), gpu_model("y", 400, devices=("CUDA1",))
    stepper = Stepper(devices, x, y)
    loaded(stepper, "x", 500)
    stepper.load("y")
    sampled(stepper, 0, {"x": 300})
    assert stepper.states() == {"x": ["stopping"], "y": ["ready"]}


def test_on_one_memory_under_two_names_the_gpus_part_is_not_taken_for_others() -> None:
    shared = DeviceSpec("Vulkan0", 800 * MIB, 800 * MIB, shares="RAM")
    stepper = Stepper([shared, metered("RAM", 1000)], gpu_model("x", 400))
    stepper.arrive("1", "x")
    stepper.post(ev.MemorySampled("RAM", 900 * MIB, {}))
    stepper.ready("x")
    # 100 are the others', 400 the GPU's, 10 the process's own, of which the kernel counts 5 as its.
    stepper.post(ev.MemorySampled("RAM", 495 * MIB, {stepper.worker("x").id: 5 * MIB}))
    assert stepper.ledger.devices["RAM"].others_bytes == 100 * MIB
    assert stepper.ledger.charged_bytes("RAM") == 410 * MIB


def test_a_budget_by_size_counts_what_others_hold_only_where_it_must() -> None:
    spec = DeviceSpec("CUDA0", 1000 * MIB, 500 * MIB, metered=True)
    stepper = Stepper([spec, ram(1000)], gpu_model("x", 450), gpu_model("y", 450))
    stepper.arrive("1", "x")
    assert len(only(Launch, sampled(stepper, 500))) == 1
    assert stepper.ledger.devices["CUDA0"].limit_bytes == 500 * MIB
    stepper.arrive("2", "y")
    assert stepper.states() == {"x": ["launching"]}


def gone(stepper: Stepper, model_id: str) -> list:
    """The model's worker ends without having been seen with its memory."""
    return stepper.exit(model_id, detail="it broke")


def test_a_load_that_failed_between_two_samples_leaves_nothing_to_wait_for() -> None:
    """Compared with the time before, no more is free than was; but what others hold is known."""
    stepper = machine(gpu_model("x", 800), gpu_model("y", 800))
    stepper.arrive("1", "x")
    sampled(stepper, 900)
    stepper.post(ev.WorkerStarted(stepper.worker("x").id))
    gone(stepper, "x")
    assert stepper.ledger.charged_bytes("CUDA0") == 800 * MIB
    sampled(stepper, 150, {})
    assert stepper.ledger.charged_bytes("CUDA0") == 800 * MIB, "most of it is still out"
    sampled(stepper, 900, {})
    assert stepper.ledger.charged_bytes("CUDA0") == 0
    assert stepper.ledger.devices["CUDA0"].others_bytes == 100 * MIB


def test_of_several_on_their_way_back_the_largest_is_waited_for_longest() -> None:
    models = [gpu_model("x", 500), gpu_model("y", 200), gpu_model("z", 200)]
    stepper = machine(*models)
    loaded(stepper, "x", 1000)
    for name in ("y", "z"):
        stepper.load(name)
    for name in "xyz":
        gone(stepper, name)
    sampled(stepper, 500, {})
    assert [entry.size_bytes // MIB for entry in stepper.ledger.settling] == [500]
    sampled(stepper, 890, {})
    assert stepper.ledger.settling == []


def test_a_worker_that_loads_meanwhile_is_not_taken_for_memory_that_came_back() -> None:
    stepper = machine(gpu_model("x", 500), gpu_model("y", 400))
    loaded(stepper, "x", 1000)
    stepper.load("y")
    gone(stepper, "x")
    stepper.arrive("1", "y")
    sampled(stepper, 100)
    assert stepper.ledger.charged_bytes("CUDA0") == 900 * MIB


def test_memory_that_others_take_as_it_comes_back_is_waited_for_in_vain() -> None:
    stepper = machine(gpu_model("x", 800))
    loaded(stepper, "x", 1000)
    gone(stepper, "x")
    sampled(stepper, 400, {})
    assert stepper.ledger.charged_bytes("CUDA0") == 800 * MIB
    stepper.wait(SETTLE_S)
    sampled(stepper, 400, {})
    assert stepper.ledger.charged_bytes("CUDA0") == 0
    assert stepper.ledger.devices["CUDA0"].others_bytes == 600 * MIB


def test_a_driver_that_counts_processes_outside_a_container_names_none() -> None:
    """Then each worker is taken to have what was reserved for it, and is not counted as others as well."""
    stepper = machine(gpu_model("x", 400))
    loaded(stepper, "x", 1000)
    sampled(stepper, 500, {})
    assert stepper.ledger.devices["CUDA0"].others_bytes == 100 * MIB


def test_a_costly_meter_is_read_before_a_load_and_not_while_workers_merely_sit_there() -> None:
    spec = replace(metered("SYCL0", 1000), slow_meter=True)
    stepper = Stepper([spec, ram(1000)], gpu_model("x", 400), gpu_model("y", 400))
    assert only(Sample, stepper.arrive("1", "x")) == [Sample("SYCL0")]
    stepper.post(ev.MemorySampled("SYCL0", 1000 * MIB))
    stepper.ready("x")
    stepper.wait(WATCH_EVERY_S + 1.0)
    effects = stepper.arrive("2", "y")
    assert len(only(Launch, effects)) == 1, "a sample is good for longer"
    stepper.ready("y")
    stepper.finish("1")
    stepper.finish("2")
    assert only(Sample, stepper.wait(600.0)) == []
