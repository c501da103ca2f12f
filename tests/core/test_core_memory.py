"""A GPU's bytes stay charged until the device is seen to have them back."""

from __future__ import annotations

from support.simulation import MIB, gpu
from support.simulation import ram as host
from support.stepper import Stepper, gpu_model, only

from swapd.core import events as ev
from swapd.core.devices import SAMPLE_EVERY_S, SETTLE_S
from swapd.core.effects import Answer, Launch, Sample, Stop, Tell
from swapd.core.spec import LayerCosts, ModelSpec


def sampled(stepper: Stepper, free_mib: int) -> list[Launch]:
    return only(Launch, stepper.post(ev.MemorySampled("CUDA0", free_mib * MIB)))


def swap_asked() -> Stepper:
    """`x` has left for `y`; its process is reaped, and the GPU has not shown its 800 MiB as free yet."""
    stepper = Stepper([gpu("CUDA0", 1000), host(1000)], gpu_model("x", 800), gpu_model("y", 800))
    stepper.load("x")
    effects = stepper.arrive("1", "y")
    assert only(Sample, effects) == [Sample("CUDA0")], "the return is measured against the time before the exit"
    sampled(stepper, 200)
    assert only(Launch, stepper.exit("x")) == []
    return stepper


def test_ram_is_free_when_the_process_is_reaped_and_gpu_memory_is_not() -> None:
    stepper = swap_asked()
    assert stepper.ledger.charged_bytes("RAM") == 0
    assert stepper.ledger.charged_bytes("CUDA0") == 800 * MIB


def test_the_next_model_is_launched_when_the_memory_is_seen_to_be_back() -> None:
    stepper = swap_asked()
    assert sampled(stepper, 200) == []
    assert sampled(stepper, 700) == [], "500 of 800 MiB are too little"
    assert [launch.model_id for launch in sampled(stepper, 850)] == ["y"]
    assert stepper.ledger.settling == []


def test_the_device_is_asked_again_and_again_while_memory_is_out() -> None:
    stepper = swap_asked()
    effects = stepper.wait(1.0)
    assert len(only(Sample, effects)) == int(1.0 / SAMPLE_EVERY_S)


def test_memory_that_never_comes_back_is_taken_as_free_after_a_while_and_that_is_said() -> None:
    stepper = swap_asked()
    assert only(Launch, stepper.wait(SETTLE_S - 0.1)) == []
    effects = stepper.wait(0.1)
    assert [tell.kind for tell in only(Tell, effects)] == ["memory_late", "loading"]
    assert len(only(Launch, effects)) == 1


def test_of_two_workers_that_leave_at_once_each_must_bring_back_its_own_memory() -> None:
    models = (gpu_model("x", 400), gpu_model("y", 400), gpu_model("z", 900))
    stepper = Stepper([gpu("CUDA0", 1000), host(1000)], *models)
    stepper.load("x")
    stepper.load("y")
    assert len(only(Stop, stepper.arrive("1", "z"))) == 2
    sampled(stepper, 200)
    stepper.exit("x")
    stepper.exit("y")
    assert sampled(stepper, 600) == []
    assert stepper.ledger.charged_bytes("CUDA0") == 400 * MIB, "the return of one is not counted for both"
    assert [launch.model_id for launch in sampled(stepper, 1000)] == ["z"]


def test_the_memory_of_both_may_be_seen_back_in_one_sample() -> None:
    models = (gpu_model("x", 400), gpu_model("y", 400), gpu_model("z", 900))
    stepper = Stepper([gpu("CUDA0", 1000), host(1000)], *models)
    stepper.load("x")
    stepper.load("y")
    stepper.arrive("1", "z")
    sampled(stepper, 200)
    stepper.exit("x")
    stepper.exit("y")
    assert len(sampled(stepper, 1000)) == 1


def test_a_device_that_was_never_sampled_waits_out_its_time() -> None:
    stepper = Stepper([gpu("CUDA0", 1000), host(1000)], gpu_model("x", 800), gpu_model("y", 800))
    stepper.load("x")
    stepper.arrive("1", "y")
    stepper.exit("x")
    assert sampled(stepper, 1000) == []
    assert len(only(Launch, stepper.wait(SETTLE_S))) == 1


def test_a_process_that_never_started_has_no_gpu_memory_to_bring_back() -> None:
    stepper = Stepper([gpu("CUDA0", 1000), host(1000)], gpu_model("x", 800))
    stepper.arrive("1", "x")
    stepper.exit("x", detail="exec: no such file")
    assert stepper.ledger.charged_bytes("CUDA0") == 0


def test_a_sample_of_an_unknown_device_is_ignored() -> None:
    stepper = Stepper([host(1000)], gpu_model("x", 100))
    assert stepper.post(ev.MemorySampled("CUDA9", 5)) == []


def test_a_reload_of_the_same_model_waits_for_its_own_memory() -> None:
    stepper = Stepper([gpu("CUDA0", 1000), host(1000)], gpu_model("x", 800))
    stepper.serve("1", "x")
    sampled(stepper, 200)
    stepper.arrive("2", "x")
    stepper.arrive("3", "x")
    assert only(Launch, stepper.exit("x")) == [], "a crash returns memory no sooner than a stop"
    assert [launch.model_id for launch in sampled(stepper, 1000)] == ["x"]


def integrated(*models: ModelSpec) -> Stepper:
    """A machine whose only GPU lives in RAM and has no meter, as discovery leaves it."""
    return Stepper([gpu("Vulkan0", 1000, shares="RAM"), host(1200)], *models)


def test_a_gpu_that_lives_in_ram_gives_back_with_the_process_as_ram_does() -> None:
    stepper = integrated(gpu_model("x", 800), gpu_model("y", 800))
    stepper.load("x")
    effects = stepper.arrive("1", "y")
    assert len(only(Stop, effects)) == 1
    assert only(Sample, effects) == [], "there is no return of its own to measure"
    effects = stepper.exit("x")
    assert [launch.model_id for launch in only(Launch, effects)] == ["y"]
    assert stepper.ledger.settling == []
    assert {name: stepper.ledger.charged_bytes(name) // MIB for name in ("Vulkan0", "RAM")} == {
        "Vulkan0": 800,
        "RAM": 810,
    }


def test_such_a_gpu_is_handed_over_as_soon_as_the_process_is_gone() -> None:
    stepper = integrated(gpu_model("x", 800))
    stepper.load("x")
    assert only(Answer, stepper.post(ev.PauseAsked("pause", "Vulkan0"))) == []
    assert only(Answer, stepper.exit("x")) == [Answer("pause", None)]


def test_it_still_lives_in_ram_when_it_is_no_longer_listed_while_a_worker_is_on_it() -> None:
    stepper = integrated(gpu_model("x", 800))
    stepper.load("x")
    stepper.post(ev.DevicesChanged((host(1200),)))
    stepper.exit("x")
    assert stepper.ledger.charged_bytes("Vulkan0") == 0


def test_of_a_machine_with_both_kinds_only_the_gpu_with_its_own_memory_is_waited_for() -> None:
    devices = [gpu("CUDA0", 500), gpu("Vulkan0", 1000, shares="RAM"), host(1200)]
    costs = LayerCosts((400 * MIB, 400 * MIB), (0, 0), host_bytes=10 * MIB, compute_bytes=0)
    both = ModelSpec("x", "1", 1, costs, devices=("CUDA0", "Vulkan0"), tensor_split=(1, 1))
    stepper = Stepper(devices, both)
    stepper.load("x")
    assert only(Sample, stepper.post(ev.UnloadAsked("unload", "x"))) == [Sample("CUDA0")]
    stepper.exit("x")
    assert {name: stepper.ledger.charged_bytes(name) // MIB for name in ("CUDA0", "Vulkan0", "RAM")} == {
        "CUDA0": 400,
        "Vulkan0": 0,
        "RAM": 0,
    }
