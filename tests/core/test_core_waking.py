"""A machine that slept, GPUs that are gone: who leaves, who waits, and that nobody is moved to RAM without a word."""

from __future__ import annotations

from dataclasses import replace

from support.simulation import MIB, gpu, model, ram
from support.stepper import Stepper, gpu_model, only

from swapd.core import events as ev
from swapd.core.effects import Effect, Launch, RefusalKind, Reject, ReportDeparture, Sample, Stop, Tell
from swapd.core.room import why_waiting
from swapd.core.waking import DOUBT_S, is_doubtful

ALL = frozenset({"CUDA0", "CUDA1", "RAM"})


def two_gpus(*models: object) -> Stepper:
    return Stepper([gpu("CUDA0", 1000), gpu("CUDA1", 500), ram(2000)], *models)  # type: ignore[arg-type]


def find(stepper: Stepper, *present: str, slept_s: float = 0.0) -> list[Effect]:
    return stepper.post(ev.DevicesFound(frozenset(present) or ALL, slept_s))


def told(effects: list[Effect]) -> list[str]:
    return [tell.kind for tell in only(Tell, effects)]


def test_after_a_sleep_idle_workers_on_gpus_leave_and_are_loaded_anew_when_they_are_wanted() -> None:
    stepper = two_gpus(gpu_model("x", 800), model("cpu", 200))
    stepper.load("x")
    stepper.load("cpu")
    effects = find(stepper, slept_s=3600.0)
    assert told(effects) == ["machine_slept", "unloading"]
    assert stepper.states() == {"x": ["stopping"], "cpu": ["ready"]}
    assert only(ReportDeparture, stepper.exit("x")) == [ReportDeparture("x", "machine_slept", evicted=False)]
    assert len(only(Launch, stepper.arrive("1", "x") + stepper.wait(20.0))) == 1


def test_after_a_sleep_a_busy_worker_goes_on_and_is_held_to_its_deadlines() -> None:
    stepper = two_gpus(gpu_model("x", 800, stall_timeout_s=30.0))
    stepper.serve("1", "x")
    assert only(Stop, find(stepper, slept_s=3600.0)) == []
    assert stepper.states() == {"x": ["ready"]}
    (stuck,) = only(Stop, stepper.wait(30.0))
    assert stuck.grace_s == 0.0


def test_looking_without_a_sleep_sends_nobody_away() -> None:
    stepper = two_gpus(gpu_model("x", 800))
    stepper.load("x")
    assert find(stepper) == []


def test_a_pinned_worker_is_replaced_after_a_sleep() -> None:
    stepper = two_gpus(gpu_model("x", 800, pin=True))
    stepper.ready("x")
    find(stepper, slept_s=60.0)
    stepper.exit("x")
    assert len(only(Launch, stepper.wait(20.0))) + len(stepper.states().get("x", [])) >= 1


def test_what_needs_a_lost_gpu_waits_for_it_and_is_never_put_into_ram() -> None:
    stepper = two_gpus(gpu_model("x", 800, host_mib=10))
    stepper.load("x")
    effects = find(stepper, "CUDA1", "RAM")
    assert told(effects) == ["device_lost", "unloading"]
    assert only(ReportDeparture, stepper.exit("x")) == [ReportDeparture("x", "device_lost", evicted=False)]
    effects = stepper.arrive("1", "x") + stepper.wait(300.0)
    assert only(Launch, effects) == []
    assert only(Reject, effects) == []
    said = why_waiting(stepper.ledger, stepper.model("x"), stepper.now_s)
    assert said == "waits for CUDA0, which this machine does not find any more"
    assert told(find(stepper, "CUDA1", "RAM")) == []
    back = find(stepper)
    assert "device_found" in told(back)
    assert only(Launch, back + stepper.wait(20.0))[0].placement.devices == ("CUDA0",)


def test_who_has_waited_too_long_for_a_lost_gpu_is_told_of_it() -> None:
    stepper = two_gpus(gpu_model("x", 800, queue_timeout_s=60.0))
    find(stepper, "CUDA1", "RAM")
    (rejected,) = only(Reject, stepper.arrive("1", "x") + stepper.wait(60.0))
    assert rejected.refusal.kind is RefusalKind.QUEUE_TIMEOUT
    assert "CUDA0, which this machine does not find any more" in rejected.refusal.message


def test_another_gpu_that_holds_them_takes_the_models_of_a_lost_one() -> None:
    stepper = two_gpus(gpu_model("x", 400))
    find(stepper, "CUDA1", "RAM")
    assert only(Launch, stepper.arrive("1", "x") + stepper.wait(20.0))[0].placement.devices == ("CUDA1",)


def test_a_busy_worker_on_a_lost_gpu_has_a_drains_time_to_end() -> None:
    stepper = two_gpus(gpu_model("x", 800, drain_s=20.0))
    stepper.serve("1", "x")
    assert only(Stop, find(stepper, "CUDA1", "RAM")) == []
    assert stepper.states() == {"x": ["draining"]}
    # Looked for again and again meanwhile, it is told of once.
    assert told(find(stepper, "CUDA1", "RAM")) == []
    assert len(only(Stop, stepper.wait(20.0))) == 1


def test_a_gpu_that_does_not_answer_while_workers_are_on_it_is_doubted() -> None:
    stepper = Stepper([replace(gpu("CUDA0", 1000), metered=True), ram(2000)], gpu_model("x", 800))
    stepper.arrive("1", "x")
    stepper.post(ev.MemorySampled("CUDA0", 1000 * MIB))
    stepper.ready("x")
    stepper.post(ev.MemorySampled("CUDA0", 200 * MIB))
    assert only(Sample, stepper.wait(6.0)) != []
    assert not is_doubtful(stepper.ledger, stepper.now_s)
    stepper.wait(DOUBT_S)
    assert is_doubtful(stepper.ledger, stepper.now_s)
    stepper.post(ev.MemorySampled("CUDA0", 200 * MIB))
    assert not is_doubtful(stepper.ledger, stepper.now_s)
