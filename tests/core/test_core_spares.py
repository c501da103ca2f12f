"""Spares, a process without a model for the next load, in the RAM that is left over; and files that are read ahead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from support.simulation import MIB, metered, model, ram
from support.stepper import Stepper, only

from swapd.core import events as ev
from swapd.core.effects import Effect, Launch, ReadAhead, StartSpare, Stop, StopReadAhead, StopSpare, Tell
from swapd.core.spares import PATIENCE_S, YIELD_S
from swapd.core.spec import RAM, ModelSpec

WANTED = ev.SparesChanged({"engine": 50 * MIB})


def spared(model_id: str, size_mib: int, **policy: object) -> ModelSpec:
    return replace(model(model_id, size_mib, **policy), spare="engine")  # type: ignore[arg-type]


def numbers(effects: Iterable[Effect]) -> list[int]:
    return [start.number for start in only(StartSpare, effects)]


def launches(effects: Iterable[Effect]) -> list[tuple[str, bool]]:
    return [(launch.model_id, launch.from_spare) for launch in only(Launch, effects)]


def test_a_calm_machine_has_a_spare_and_the_next_load_takes_it() -> None:
    stepper = Stepper([ram(1000)], spared("a", 400), spared("b", 400))
    assert numbers(stepper.post(WANTED)) == [1]
    assert launches(stepper.arrive("1", "a")) == [("a", True)]
    assert numbers(stepper.wait(20.0)) == [], "nothing is started beside a load"
    assert launches(stepper.arrive("2", "b")) == [("b", False)], "there is only one"


def test_the_next_spare_waits_for_a_moment_without_requests_and_not_for_long() -> None:
    stepper = Stepper([ram(1000)], spared("a", 400))
    stepper.post(WANTED)
    stepper.arrive("1", "a")
    assert numbers(stepper.ready("a")) == []
    stepper.wait(1.0)
    assert numbers(stepper.finish("1")) == [2]
    stepper = Stepper([ram(1000)], spared("a", 400))
    stepper.post(WANTED)
    stepper.arrive("1", "a")
    stepper.ready("a")
    assert numbers(stepper.wait(PATIENCE_S - 0.1)) == []
    assert numbers(stepper.wait(0.2)) == [2]


def test_a_spare_is_counted_in_ram_and_never_keeps_a_load_out() -> None:
    stepper = Stepper([ram(500)], spared("a", 500), spared("b", 440))
    stepper.post(WANTED)
    assert stepper.ledger.spare_bytes == 50 * MIB
    effects = stepper.arrive("1", "a")
    assert launches(effects) == [("a", True)], "what the spare had is in the worker's own bytes"
    assert stepper.ledger.spare_bytes == 0
    stepper.ready("a")
    stepper.finish("1")
    assert numbers(stepper.wait(60.0)) == [], "there is no room beside the model"
    stepper.arrive("2", "b")
    assert launches(stepper.exit("a")) == [("b", False)]
    stepper.ready("b")
    assert numbers(stepper.finish("2")) == [2], "now there is"


def test_a_spare_makes_room_for_a_load_that_cannot_take_it() -> None:
    stepper = Stepper([ram(500)], model("a", 480))
    stepper.post(WANTED)
    effects = stepper.arrive("1", "a")
    assert launches(effects) == [("a", False)]
    assert [stop.kind for stop in only(StopSpare, effects)] == ["engine"]


def test_a_spare_makes_room_for_other_programs_and_does_not_come_back_at_once() -> None:
    stepper = Stepper([metered(RAM, 500, reserve_mib=100)], spared("a", 100))
    stepper.post(WANTED)
    taken = stepper.post(ev.MemorySampled(RAM, 60 * MIB, {}))
    assert [stop.kind for stop in only(StopSpare, taken)] == ["engine"]
    assert numbers(stepper.post(ev.MemorySampled(RAM, 450 * MIB, {}))) == []
    assert numbers(stepper.wait(YIELD_S)) == [2]


def test_a_spare_is_not_taken_for_memory_of_other_programs() -> None:
    stepper = Stepper([metered(RAM, 500)], spared("a", 100))
    stepper.post(WANTED)
    stepper.post(ev.MemorySampled(RAM, 440 * MIB, {}))
    assert stepper.ledger.devices[RAM].others_bytes == 10 * MIB


def test_a_spare_that_ends_by_itself_is_told_and_replaced_later_each_time() -> None:
    stepper = Stepper([ram(500)], spared("a", 100))
    stepper.post(WANTED)
    waits = []
    for number in range(1, 5):
        (told,) = only(Tell, stepper.post(ev.SpareExited("engine", number, "it ended with status 1")))
        assert (told.kind, told.message) == ("spare_lost", "it ended with status 1")
        before_s = stepper.now_s
        while not numbers(stepper.wait(0.5)):
            pass
        waits.append(stepper.now_s - before_s)
    assert waits == [2.0, 4.0, 8.0, 16.0]
    assert stepper.post(ev.SpareExited("engine", 2, "old news")) == []


def test_a_load_that_failed_is_tried_again_with_a_process_of_its_own() -> None:
    stepper = Stepper([ram(1000)], spared("a", 400))
    stepper.post(WANTED)
    assert launches(stepper.arrive("1", "a")) == [("a", True)]
    assert numbers(stepper.exit("a")) == [2]
    stepper.wait(30.0)
    assert launches(stepper.arrive("2", "a")) == [("a", False)]
    stepper.ready("a")
    stepper.finish("2")
    stepper.post(ev.UnloadAsked("unload", "a"))
    stepper.exit("a")
    assert launches(stepper.arrive("3", "a")) == [("a", True)], "what served a request is trusted again"


def test_spares_end_when_they_are_switched_off_and_with_the_daemon() -> None:
    stepper = Stepper([ram(500)], spared("a", 100))
    stepper.post(WANTED)
    assert only(StopSpare, stepper.post(WANTED)) == []
    assert only(StopSpare, stepper.post(ev.SparesChanged({}))) == [StopSpare("engine")]
    assert numbers(stepper.wait(60.0)) == []
    assert numbers(stepper.post(WANTED)) == [2]
    effects = stepper.post(ev.ShutdownAsked())
    assert only(StopSpare, effects) == [StopSpare("engine")]
    assert numbers(stepper.wait(60.0)) == []


def test_a_models_file_is_read_ahead_once_while_others_leave_for_it() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, turn_s=0.0), model("b", 700, max_wait_s=0.0))
    stepper.serve("1", "a", "alice")
    effects = stepper.arrive("2", "b", "bob")
    (reading,) = only(ReadAhead, effects)
    assert (reading.model_id, reading.placement.device_bytes) == ("b", {RAM: 700 * MIB})
    assert only(ReadAhead, stepper.arrive("3", "b", "carol")) == []
    assert only(Stop, stepper.finish("1"))
    effects = stepper.exit("a")
    assert launches(effects) == [("b", False)]
    assert only(StopReadAhead, effects) == [StopReadAhead("b")]


def test_reading_ahead_ends_when_nobody_waits_any_more() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, turn_s=0.0), model("b", 700, max_wait_s=0.0))
    stepper.serve("1", "a", "alice")
    stepper.arrive("2", "b", "bob")
    assert only(StopReadAhead, stepper.cancel("2")) == [StopReadAhead("b")]
    assert only(ReadAhead, stepper.arrive("3", "b", "bob")), "another claim is read for again"
    assert only(StopReadAhead, stepper.post(ev.ShutdownAsked())) == [StopReadAhead("b")]
