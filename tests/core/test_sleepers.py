"""Workers of programs that can sleep: when they do, what stays charged, and how their models come back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from support.simulation import MIB, gpu, ram
from support.stepper import Stepper, only

from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.admission import expected_wait_s
from swapd.core.lifecycle import WorkerState
from swapd.core.sleepers import MAX_FAILURES
from swapd.core.spec import RAM, DeviceSpec, LayerCosts, ModelSpec
from swapd.core.turns import start_s

KEPT = {RAM: 700, "CUDA0": 50}


def sleepy(name: str, gpu_mib: int = 800, *, kept: dict[str, int] = KEPT, **policy: Any) -> ModelSpec:
    """It takes 100 MiB of RAM while it is awake, more while it sleeps."""
    fixed = {"CUDA0": gpu_mib * MIB, RAM: 100 * MIB}
    costs = LayerCosts((0,), (0,), host_bytes=sum(fixed.values()), compute_bytes=0)
    asleep = {device: size * MIB for device, size in kept.items()}
    key = str(policy.pop("launch_key", "1"))
    return ModelSpec(name, key, 2, costs, fixed=fixed, devices=("CUDA0",), asleep_bytes=asleep, turn_s=0.0, **policy)


def machine(*models: ModelSpec, gpu_mib: int = 1000, ram_mib: int = 2000) -> Stepper:
    return Stepper([gpu("CUDA0", gpu_mib), ram(ram_mib)], *models)


def evicted(stepper: Stepper, name: str, by: str) -> ef.Stop:
    """A model is up, another one wants its place: how it is told to go."""
    stepper.load(name)
    (stop,) = only(ef.Stop, stepper.arrive(f"for-{by}", by))
    return stop


def charged_mib(stepper: Stepper) -> tuple[int, int]:
    return stepper.ledger.charged_bytes("CUDA0") // MIB, stepper.ram_mib()


def back(stepper: Stepper, free_mib: int) -> list[ef.Effect]:
    """The GPU shows so much as free."""
    return stepper.post(ev.MemorySampled("CUDA0", free_mib * MIB))


def asleep(stepper: Stepper) -> None:
    """Model a sleeps, and b has its place."""
    stop = evicted(stepper, "a", "b")
    stepper.post(ev.WorkerAsleep(stop.worker_id))
    stepper.wait(11.0)
    stepper.ready("b")
    stepper.finish("for-b")


def test_it_sleeps_for_another_and_keeps_what_was_reserved_before_it_was_told_to() -> None:
    stepper = machine(sleepy("a"), sleepy("b"))
    stop = evicted(stepper, "a", "b")
    assert stop.sleep
    assert charged_mib(stepper) == (800, 700)
    back(stepper, 200)
    effects = stepper.post(ev.WorkerAsleep(stop.worker_id))
    assert [(one.reason, one.evicted) for one in only(ef.ReportDeparture, effects)] == [("idle", True)]
    assert stepper.states() == {}
    assert charged_mib(stepper) == (800, 700), "the GPU has not shown its memory yet"
    (launch,) = only(ef.Launch, back(stepper, 950))
    assert (launch.model_id, launch.sleeper) == ("b", None)
    assert charged_mib(stepper) == (50 + 800, 700 + 100)


def test_it_wakes_where_it_was_and_is_charged_for_both_until_it_is_awake() -> None:
    stepper = machine(sleepy("a"), sleepy("b"))
    asleep(stepper)
    (stop,) = only(ef.Stop, stepper.arrive("again", "a"))
    assert stop.sleep
    stepper.post(ev.WorkerAsleep(stop.worker_id))
    (launch,) = only(ef.Launch, stepper.wait(11.0))
    assert (launch.model_id, launch.sleeper) == ("a", 1)
    assert charged_mib(stepper) == (800 + 50, 700 + 700), "what a kept in RAM is not given back yet"
    effects = stepper.ready("a", load_s=0.7)
    assert [one.outcome for one in only(ef.ReportLoad, effects)] == ["woken"]
    assert charged_mib(stepper) == (800 + 50, 100 + 700)
    assert stepper.model("a").loads == 1
    assert "again" in stepper.ledger.running


def test_it_ends_where_what_it_keeps_would_be_in_the_way() -> None:
    for kept, ram_mib in ((KEPT, 750), ({RAM: 100, "CUDA0": 300}, 2000)):
        stepper = machine(sleepy("a", kept=kept), sleepy("b"), ram_mib=ram_mib)
        assert not evicted(stepper, "a", "b").sleep
        assert stepper.ledger.sleepers == {}


def test_only_making_room_has_it_sleep() -> None:
    stepper = machine(sleepy("a", idle_unload_s=5.0), sleepy("b"))
    stepper.load("a")
    (stop,) = only(ef.Stop, stepper.wait(6.0))
    assert not stop.sleep
    stepper.exit("a")
    stepper.wait(11.0)
    stepper.load("a")
    (stop,) = only(ef.Stop, stepper.post(ev.UnloadAsked("x", "a")))
    assert not stop.sleep


def test_one_that_does_not_fall_asleep_is_gone_and_after_some_times_is_not_asked_to() -> None:
    stepper = machine(sleepy("a"), sleepy("b"))
    for _ in range(MAX_FAILURES):
        assert evicted(stepper, "a", "b").sleep
        stepper.exit("a")
        stepper.cancel("for-b")
        stepper.wait(11.0)
        assert stepper.states() == {}
        assert charged_mib(stepper) == (0, 0)
    assert not evicted(stepper, "a", "b").sleep


def test_one_that_does_not_wake_is_loaded_afresh_for_those_who_wait() -> None:
    stepper = machine(sleepy("a"), sleepy("b"))
    asleep(stepper)
    stepper.post(ev.UnloadAsked("x", "b"))
    stepper.exit("b")
    stepper.wait(11.0)
    (launch,) = only(ef.Launch, stepper.arrive("again", "a"))
    assert launch.sleeper == 1
    effects = stepper.exit("a", ev.ExitKind.FAILED, "it did not wake")
    assert "wake_failed" in [one.kind for one in only(ef.Tell, effects)]
    assert only(ef.Reject, effects) == []
    (launch,) = only(ef.Launch, [*effects, *stepper.wait(11.0)])
    assert (launch.model_id, launch.sleeper) == ("a", None)
    stepper.ready("a")
    assert "again" in stepper.ledger.running


def test_a_sleeper_ends_for_a_model_that_is_short_of_what_it_keeps() -> None:
    wide = ModelSpec("c", "1", 2, LayerCosts((1300 * MIB,), (0,), host_bytes=0, compute_bytes=0), n_gpu_layers=0)
    stepper = machine(sleepy("a"), sleepy("b"), wide)
    asleep(stepper)
    effects = stepper.arrive("big", "c")
    assert [one.sleeper_id for one in only(ef.StopSleeper, effects)] == [1]
    assert stepper.states() == {"b": ["ready"]}, "nobody awake has to leave for it"
    (launch,) = only(ef.Launch, stepper.post(ev.SleeperExited(1, "it ended")))
    assert launch.model_id == "c"


def test_a_sleeper_that_dies_is_told_of_and_its_gpu_memory_is_waited_for() -> None:
    stepper = machine(sleepy("a"), sleepy("b"))
    asleep(stepper)
    effects = stepper.post(ev.SleeperExited(1, "killed"))
    assert [one.message for one in only(ef.Tell, effects)] == ["killed"]
    assert charged_mib(stepper) == (800 + 50, 100)
    stepper.wait(11.0)
    assert charged_mib(stepper) == (800, 100)


def test_a_sleeper_ends_with_its_settings_its_device_its_time_and_at_the_shutdown() -> None:
    def changed(stepper: Stepper) -> list[ef.Effect]:
        return stepper.post(ev.ModelsChanged((sleepy("a", launch_key="2"), sleepy("b"))))

    def removed(stepper: Stepper) -> list[ef.Effect]:
        return stepper.post(ev.ModelsChanged((sleepy("b"),)))

    def paused(stepper: Stepper) -> list[ef.Effect]:
        return stepper.post(ev.PauseAsked("p", "CUDA0"))

    def shut_down(stepper: Stepper) -> list[ef.Effect]:
        return stepper.post(ev.ShutdownAsked())

    def unloaded(stepper: Stepper) -> list[ef.Effect]:
        effects = stepper.post(ev.UnloadAsked("u", "a"))
        assert only(ef.Answer, effects) == []
        return effects

    def idle(stepper: Stepper) -> list[ef.Effect]:
        return stepper.wait(60.0)

    def cut(stepper: Stepper) -> list[ef.Effect]:
        return stepper.post(ev.DevicesChanged((gpu("CUDA0", 1000), ram(600))))

    for end in (changed, removed, paused, shut_down, unloaded, idle, cut):
        stepper = machine(sleepy("a", idle_unload_s=60.0), sleepy("b"))
        asleep(stepper)
        assert [one.sleeper_id for one in only(ef.StopSleeper, end(stepper))] == [1], end.__name__
        effects = stepper.post(ev.SleeperExited(1, "it ended"))
        assert stepper.ledger.sleepers == {}
        assert [one.ask_id for one in only(ef.Answer, effects)] == (["u"] if end is unloaded else [])


def test_a_sleeper_ends_when_the_machine_has_slept_or_its_gpu_is_gone() -> None:
    for found in (ev.DevicesFound(frozenset({"CUDA0", "RAM"}), 60.0), ev.DevicesFound(frozenset({"RAM"}))):
        stepper = machine(sleepy("a"), sleepy("b"))
        asleep(stepper)
        assert [one.sleeper_id for one in only(ef.StopSleeper, stepper.post(found))] == [1]


def test_nobody_waits_until_one_has_fallen_asleep_that_is_to_end() -> None:
    def unloaded(stepper: Stepper) -> list[ef.Effect]:
        return stepper.post(ev.UnloadAsked("u", "a"))

    def changed(stepper: Stepper) -> list[ef.Effect]:
        return stepper.post(ev.ModelsChanged((sleepy("a", launch_key="2"), sleepy("b"))))

    def shut_down(stepper: Stepper) -> list[ef.Effect]:
        return stepper.post(ev.ShutdownAsked())

    for end in (unloaded, changed, shut_down):
        for slept in (False, True):
            stepper = machine(sleepy("a"), sleepy("b"))
            stop = evicted(stepper, "a", "b")
            assert [one.sleeper_id for one in only(ef.StopSleeper, end(stepper))] == [1], end.__name__
            assert charged_mib(stepper) == (800, 700), "what it was to keep may be taken already"
            if slept:
                effects = stepper.post(ev.WorkerAsleep(stop.worker_id))
                assert [one.kind for one in only(ef.Tell, effects)] == []
                assert only(ef.StopSleeper, effects) == []
                effects = stepper.post(ev.SleeperExited(1, "it ended"))
            else:
                effects = stepper.exit("a")
            assert stepper.ledger.sleepers == {}
            assert stepper.model("a").sleep_failures == 0, "it was not given the time"
            assert [one.ask_id for one in only(ef.Answer, effects)] == (["u"] if end is unloaded else [])


def test_what_was_learned_of_its_sleep_goes_with_its_settings() -> None:
    stepper = machine(sleepy("a"), sleepy("b"))
    for _ in range(MAX_FAILURES):
        evicted(stepper, "a", "b")
        stepper.exit("a")
        stepper.cancel("for-b")
        stepper.wait(11.0)
    stepper.model("a").usual_wake_s = 0.5
    stepper.post(ev.ModelsChanged((sleepy("a", launch_key="2"), sleepy("b"))))
    assert stepper.model("a").usual_wake_s is None
    assert evicted(stepper, "a", "b").sleep


def test_how_long_a_request_waits_for_one_that_sleeps_goes_by_how_long_it_took_to_wake() -> None:
    stepper = machine(sleepy("a"), sleepy("b"))
    stepper.model("a").usual_wake_s = 0.5
    stepper.serve("first", "a")
    stepper.wait(1.0)
    stepper.finish("first")
    stepper.model("a").usual_load_s = stepper.model("a").load_s = 40.0
    assert start_s(stepper.ledger, stepper.model("a")) == 40.0
    (stop,) = only(ef.Stop, stepper.arrive("for-b", "b"))
    back(stepper, 200)
    stepper.post(ev.WorkerAsleep(stop.worker_id))
    assert start_s(stepper.ledger, stepper.model("a")) == 0.5
    stepper.cancel("for-b")
    stepper.arrive("again", "a")
    (launch,) = only(ef.Launch, back(stepper, 950))
    assert launch.sleeper == 1
    assert expected_wait_s(stepper.ledger, stepper.model("a"), 1, stepper.now_s) == 0.5


def test_a_request_for_one_that_is_falling_asleep_waits_until_it_can_be_woken() -> None:
    stepper = machine(sleepy("a"), sleepy("b"))
    stop = evicted(stepper, "a", "b")
    effects = stepper.post(ev.DevicesChanged((gpu("CUDA0", 2000), ram(2000))))
    effects += stepper.arrive("again", "a")
    assert "a" not in [one.model_id for one in only(ef.Launch, effects)]
    stepper.post(ev.WorkerAsleep(stop.worker_id))
    launches = [(one.model_id, one.sleeper) for one in only(ef.Launch, stepper.wait(11.0))]
    assert ("a", 1) in launches
    worker = stepper.worker("a", WorkerState.LAUNCHING)
    assert worker.id != 1


def test_one_whose_model_is_removed_while_it_falls_asleep_ends() -> None:
    for asleep_first in (True, False):
        stepper = machine(sleepy("a"), sleepy("b"))
        stop = evicted(stepper, "a", "b")
        effects = stepper.post(ev.ModelsChanged((sleepy("b"),)))
        assert [one.sleeper_id for one in only(ef.StopSleeper, effects)] == [1]
        if asleep_first:
            stepper.post(ev.WorkerAsleep(stop.worker_id))
            stepper.post(ev.SleeperExited(1, "it ended"))
        else:
            stepper.post(ev.WorkerExited(stop.worker_id, ev.ExitKind.FAILED, "it broke"))
        assert stepper.ledger.sleepers == {}


def test_one_with_a_place_that_is_not_declared_to_the_byte_ends() -> None:
    guessed = replace(sleepy("a"), fixed={"CUDA0": None, RAM: 100 * MIB})
    stepper = machine(guessed, sleepy("b"))
    assert not evicted(stepper, "a", "b").sleep


def test_what_it_keeps_on_an_integrated_gpu_counts_in_ram_too() -> None:
    def carved(name: str) -> ModelSpec:
        fixed = {"Vulkan0": 800 * MIB, RAM: 100 * MIB}
        return replace(sleepy(name, kept={"Vulkan0": 50, RAM: 200}), fixed=fixed, devices=("Vulkan0",))

    small = DeviceSpec("Vulkan0", 1000 * MIB, 1000 * MIB, shares=RAM)
    stepper = Stepper([small, ram(2000)], carved("a"), carved("b"))
    assert evicted(stepper, "a", "b").sleep
    (sleeper,) = stepper.ledger.sleepers.values()
    assert sleeper.held_bytes == {"Vulkan0": 50 * MIB, RAM: 250 * MIB}


def test_the_end_of_a_process_that_is_no_sleeper_any_more_is_read_over() -> None:
    stepper = machine(sleepy("a"), sleepy("b"))
    assert stepper.post(ev.SleeperExited(99, "it ended")) == []
    asleep(stepper)
    stepper.post(ev.UnloadAsked("x", "b"))
    stepper.exit("b")
    stepper.wait(11.0)
    stepper.arrive("again", "a")
    stepper.post(ev.SleeperExited(1, "it ended"))
    stepper.ready("a")
    assert "again" in stepper.ledger.running


def test_an_integrated_gpu_on_which_it_keeps_nothing_changes_nothing() -> None:
    small = DeviceSpec("Vulkan0", 1000 * MIB, 1000 * MIB, shares=RAM)
    stepper = Stepper([gpu("CUDA0", 1000), small, ram(2000)], sleepy("a"), sleepy("b"))
    assert evicted(stepper, "a", "b").sleep
    (sleeper,) = stepper.ledger.sleepers.values()
    assert sleeper.held_bytes == {RAM: 700 * MIB, "CUDA0": 50 * MIB}
