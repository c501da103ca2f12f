"""Models that servers elsewhere serve, and workers whose progress is seen in their answers alone."""

from __future__ import annotations

from support.simulation import elsewhere, metered, model, ram
from support.stepper import Stepper, only

from swapd.core import events as ev
from swapd.core.effects import Grant, Launch, ReportDeparture, Sample, Stop, Tell
from swapd.core.lifecycle import WorkerState


def test_it_is_up_at_once_whatever_memory_there_is() -> None:
    stepper = Stepper([metered("RAM", 1000)], elsewhere("cloud"), model("here", 400))
    # Not before the meter has answered is anything loaded here, and then others hold all of it.
    stepper.post(ev.PauseAsked("p", "RAM"))
    (launch,) = only(Launch, stepper.arrive("1", "cloud"))
    assert (launch.model_id, launch.placement.device_bytes) == ("cloud", {})
    assert only(Grant, stepper.ready("cloud")) == [Grant("1", 1, waited_s=0.0)]
    assert only(Launch, stepper.arrive("2", "here")) == []


def test_no_device_is_looked_at_for_it() -> None:
    stepper = Stepper([metered("CUDA0", 1000), ram(1000)], elsewhere("cloud"))
    effects = [*stepper.arrive("1", "cloud"), *stepper.ready("cloud"), *stepper.finish("1"), *stepper.wait(60.0)]
    assert only(Sample, effects) == []


def test_it_is_never_sent_away_to_make_room() -> None:
    models = [elsewhere("cloud"), model("a", 800, max_wait_s=5.0), model("b", 800, max_wait_s=5.0)]
    stepper = Stepper([ram(1000)], *models)
    stepper.arrive("1", "cloud")
    stepper.ready("cloud")
    stepper.arrive("2", "a")
    stepper.ready("a")
    stepper.finish("2")
    effects = [*stepper.arrive("3", "b"), *stepper.wait(60.0)]
    assert [stop.worker_id for stop in only(Stop, effects)] == [2]
    assert stepper.worker("cloud").state is WorkerState.READY


def test_one_that_is_full_keeps_the_rest_waiting() -> None:
    stepper = Stepper([ram(1000)], elsewhere("cloud", slots=1))
    stepper.arrive("1", "cloud")
    stepper.ready("cloud")
    assert only(Grant, stepper.arrive("2", "cloud")) == []
    assert [grant.request_id for grant in only(Grant, stepper.finish("1"))] == ["2"]


def test_its_silence_stops_nobody_but_a_load_without_end_does() -> None:
    stepper = Stepper([ram(1000)], elsewhere("cloud", stall_timeout_s=20.0, load_timeout_s=30.0))
    stepper.arrive("1", "cloud")
    stepper.ready("cloud")
    assert only(Stop, stepper.wait(10_000.0)) == []
    stepper.exit("cloud")
    stepper.arrive("2", "cloud")
    assert len(only(Stop, stepper.wait(31.0))) == 1


def test_one_that_is_lost_is_visited_again_and_backs_off_when_it_stays_away() -> None:
    stepper = Stepper([ram(1000)], elsewhere("cloud"))
    stepper.arrive("1", "cloud")
    stepper.ready("cloud")
    effects = stepper.exit("cloud", ev.ExitKind.FAILED, "it takes no connection")
    assert only(ReportDeparture, effects) == [ReportDeparture("cloud", "crashed", False)]
    assert len(only(Launch, stepper.arrive("2", "cloud"))) == 1
    stepper.exit("cloud", ev.ExitKind.FAILED, "it takes no connection")
    assert only(Launch, stepper.arrive("3", "cloud")) == []
    assert len(only(Launch, [*stepper.wait(30.0), *stepper.arrive("4", "cloud")])) == 1


def foreign(**policy: object) -> Stepper:
    """A ready worker that does not report, with 20 s of silence allowed, and 100 s before an answer begins."""
    stepper = Stepper([ram(1000)], model("f", 400, stall_timeout_s=20.0, first_token_timeout_s=100.0, **policy))
    stepper.arrive("1", "f")
    stepper.ready("f")
    return stepper


def test_before_an_answer_begins_silence_may_last_longer() -> None:
    stepper = foreign()
    assert only(Stop, stepper.wait(99.0)) == []
    effects = stepper.wait(2.0)
    assert len(only(Stop, effects)) == 1
    assert any("finished nothing for 100 s (first_token_timeout)" in tell.message for tell in only(Tell, effects))


def test_once_all_answers_have_begun_it_may_not() -> None:
    stepper = foreign()
    stepper.wait(50.0)
    stepper.post(ev.WorkerProgressed(1, "1"))
    assert only(Stop, stepper.wait(19.0)) == []
    assert len(only(Stop, stepper.wait(2.0))) == 1


def test_one_answer_that_has_not_begun_counts_for_all_and_a_new_request_is_no_progress() -> None:
    stepper = foreign()
    stepper.post(ev.WorkerProgressed(1, "1"))
    stepper.wait(10.0)
    stepper.arrive("2", "f")
    assert only(Stop, stepper.wait(89.0)) == []
    assert len(only(Stop, stepper.wait(2.0))) == 1


def test_bytes_of_any_answer_are_progress() -> None:
    stepper = foreign()
    stepper.post(ev.WorkerProgressed(1, "1"))
    for _ in range(20):
        assert only(Stop, stepper.wait(15.0)) == []
        stepper.post(ev.WorkerProgressed(1))
