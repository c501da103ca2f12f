"""Loads: one for everybody, surviving who asked, and their failures."""

from __future__ import annotations

import pytest
from support.simulation import model, ram
from support.stepper import Stepper, only

from swapd.core import events as ev
from swapd.core.departures import CRASH_WINDOW_S, MAX_BACKOFF_S, backoff_s
from swapd.core.effects import (
    Answer,
    Effect,
    Grant,
    Launch,
    RefusalKind,
    Reject,
    ReportDeparture,
    ReportLoad,
    Stop,
    Tell,
)
from swapd.core.lifecycle import WorkerState
from swapd.core.records import MAX_CRASHES


def kinds(effects: list[Reject]) -> list[RefusalKind]:
    return [effect.refusal.kind for effect in effects]


def test_a_thousand_requests_for_a_cold_model_cause_one_load() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=8, max_waiting=1000))
    launches, grants = [], []
    for number in range(1000):
        launches += only(Launch, stepper.arrive(f"r{number}", "a", f"c{number}"))
    grants += only(Grant, stepper.ready("a", load_s=3.0))
    while stepper.ledger.running:
        effects = stepper.finish(next(iter(stepper.ledger.running)))
        launches += only(Launch, effects)
        grants += only(Grant, effects)
    assert len(launches) == 1
    assert len({grant.request_id for grant in grants}) == len(grants) == 1000
    assert stepper.ledger.counters.finished == 1000


def test_the_load_goes_on_when_the_client_that_caused_it_leaves() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.arrive("1", "a")
    assert only(Stop, stepper.cancel("1")) == []
    effects = stepper.ready("a", load_s=1.0)
    assert only(ReportLoad, effects) == [ReportLoad("a", "ready", 1.0)]
    assert only(Grant, stepper.arrive("2", "a")) != []


def test_nothing_is_granted_before_the_worker_is_ready() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.arrive("1", "a")
    assert only(Grant, stepper.post(ev.WorkerStarted(1))) == []
    assert only(Grant, stepper.wait(2.0)) == []
    assert only(Grant, stepper.post(ev.WorkerReady(1))) == [Grant("1", 1, waited_s=2.0)]


def test_a_failed_load_refuses_everyone_who_waited_with_the_reason_and_when_to_retry() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.arrive("1", "a")
    stepper.arrive("2", "a", "bob")
    effects = stepper.exit("a", detail="out of memory: tail of stderr")
    rejects = only(Reject, effects)
    assert [reject.request_id for reject in rejects] == ["1", "2"]
    assert kinds(rejects) == [RefusalKind.LOAD_FAILED] * 2
    assert all("tail of stderr" in reject.refusal.message for reject in rejects)
    assert {reject.refusal.retry_after_s for reject in rejects} == {2.0}
    assert [report.outcome for report in only(ReportLoad, effects)] == ["failed"]


def test_arrivals_during_the_back_off_are_refused_at_once_and_start_nothing() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.arrive("1", "a")
    stepper.exit("a", detail="no such device")
    stepper.wait(0.5)
    effects = stepper.arrive("2", "a")
    (reject,) = only(Reject, effects)
    assert reject.refusal.kind is RefusalKind.LOAD_FAILED
    assert "no such device" in reject.refusal.message
    assert reject.refusal.retry_after_s == pytest.approx(1.5)
    assert only(Launch, effects) == []


def test_after_the_back_off_the_next_request_tries_once_more() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    for number, pause_s in enumerate((2.0, 4.0, 8.0)):
        assert len(only(Launch, stepper.arrive(f"r{number}", "a"))) == 1
        (reject,) = only(Reject, stepper.exit("a"))
        assert reject.refusal.retry_after_s == pause_s
        assert only(Launch, stepper.wait(pause_s)) == [], "nobody asks, so nothing is tried"


def test_the_back_off_doubles_to_a_bound() -> None:
    assert [backoff_s(failures) for failures in (1, 2, 3, 9, 10_000)] == [2.0, 4.0, 8.0, MAX_BACKOFF_S, MAX_BACKOFF_S]


def test_a_load_that_makes_no_progress_is_killed_and_one_that_does_is_not() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, load_timeout_s=30.0))
    stepper.arrive("1", "a")
    for _ in range(10):
        stepper.wait(29.0)
        stepper.post(ev.WorkerProgressed(1))
    assert only(Stop, stepper.wait(29.9)) == []
    effects = stepper.wait(0.1)
    assert only(Stop, effects) == [Stop(1, grace_s=0.0)]
    assert kinds(only(Reject, effects)) == [RefusalKind.LOAD_TIMEOUT]
    assert [report.outcome for report in only(ReportLoad, effects)] == ["stuck"]
    assert only(ReportLoad, stepper.exit("a")) == [], "it is counted once"


def test_the_first_crash_while_serving_reloads_at_once_for_those_who_wait() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=1))
    stepper.serve("1", "a")
    stepper.arrive("2", "a", "bob")
    effects = stepper.exit("a", detail="killed by signal 9")
    assert [launch.model_id for launch in only(Launch, effects)] == ["a"]
    assert only(Reject, effects) == [], "the one that ran is told by its stream; the other waits on"
    assert only(ReportDeparture, effects) == [ReportDeparture("a", "crashed", evicted=False)]
    assert stepper.ledger.counters.failed == 1
    assert [grant.request_id for grant in only(Grant, stepper.ready("a"))] == ["2"]


def test_the_second_crash_in_a_row_backs_off() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=1))
    stepper.serve("1", "a")
    stepper.arrive("2", "a", "bob")
    stepper.exit("a")
    stepper.ready("a")
    stepper.arrive("3", "a", "bob")
    effects = stepper.exit("a", detail="again")
    assert only(Launch, effects) == []
    (reject,) = only(Reject, effects)
    assert (reject.request_id, reject.refusal.retry_after_s) == ("3", 2.0)


def test_one_answer_that_was_finished_forgives_all_crashes() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=1))
    for number in range(5):
        stepper.serve(f"fine{number}", "a")
        stepper.finish(f"fine{number}")
        stepper.serve(f"crash{number}", "a")
        stepper.arrive(f"next{number}", "a", "bob")
        assert len(only(Launch, stepper.exit("a"))) == 1
        stepper.ready("a")
        stepper.finish(f"next{number}")
        stepper.wait(CRASH_WINDOW_S / 4)


def test_five_crashes_in_a_minute_wait_for_its_end_whatever_was_served_between() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=1))
    began_s = stepper.now_s
    for number in range(MAX_CRASHES):
        stepper.serve(f"fine{number}", "a")
        stepper.finish(f"fine{number}")
        stepper.serve(f"crash{number}", "a")
        stepper.exit("a")
        stepper.wait(1.0)
    effects = stepper.arrive("early", "a", "bob")
    (reject,) = only(Reject, effects)
    assert reject.refusal.retry_after_s == began_s + CRASH_WINDOW_S - stepper.now_s
    stepper.wait(reject.refusal.retry_after_s)
    assert len(only(Launch, stepper.arrive("late", "a", "bob"))) == 1


def test_an_idle_worker_that_dies_is_not_reloaded_before_somebody_asks() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.load("a")
    assert only(Launch, stepper.exit("a")) == []
    assert len(only(Launch, stepper.arrive("1", "a"))) == 1


def test_a_worker_that_finishes_nothing_is_killed_and_replaced() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=1, stall_timeout_s=20.0))
    stepper.serve("1", "a")
    stepper.arrive("2", "a", "bob")
    stepper.wait(15.0)
    stepper.post(ev.WorkerProgressed(1))
    assert only(Stop, stepper.wait(19.9)) == []
    effects = stepper.wait(0.1)
    assert only(Stop, effects) == [Stop(1, grace_s=0.0)]
    assert [launch.model_id for launch in only(Launch, effects)] == ["a"], "there is room beside the dying one"
    assert stepper.finish("1") == [], "it failed with its worker; late news changes nothing"
    stepper.exit("a", ev.ExitKind.FAILED, "killed", WorkerState.STOPPING)
    assert [grant.request_id for grant in only(Grant, stepper.ready("a"))] == ["2"]


def test_an_idle_worker_is_not_watched_for_progress() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, stall_timeout_s=20.0))
    stepper.load("a")
    assert only(Stop, stepper.wait(1000.0)) == []
    stepper.arrive("1", "a")
    assert only(Stop, stepper.wait(19.0)) == [], "the watch starts with the work"


def test_a_cpu_fault_is_retried_once_in_portable_mode_and_the_waiters_stay() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, has_portable_mode=True))
    stepper.arrive("1", "a")
    effects = stepper.exit("a", ev.ExitKind.CPU_FAULT, "SIGILL")
    assert [(launch.model_id, launch.portable) for launch in only(Launch, effects)] == [("a", True)]
    assert only(Reject, effects) == []
    assert [tell.kind for tell in only(Tell, effects)] == ["portable_retry", "loading"]
    assert [report.outcome for report in only(ReportLoad, effects)] == ["crashed"]
    assert [grant.request_id for grant in only(Grant, stepper.ready("a"))] == ["1"]


def test_a_cpu_fault_in_portable_mode_is_a_failure() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, has_portable_mode=True))
    stepper.arrive("1", "a")
    stepper.exit("a", ev.ExitKind.CPU_FAULT, "SIGILL")
    effects = stepper.exit("a", ev.ExitKind.CPU_FAULT, "SIGILL again")
    assert only(Launch, effects) == []
    assert kinds(only(Reject, effects)) == [RefusalKind.LOAD_FAILED]


def test_a_cpu_fault_without_a_portable_mode_is_a_failure() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.arrive("1", "a")
    assert kinds(only(Reject, stepper.exit("a", ev.ExitKind.CPU_FAULT, "SIGILL"))) == [RefusalKind.LOAD_FAILED]


def test_portable_mode_is_kept_for_the_next_load() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, has_portable_mode=True))
    stepper.arrive("1", "a")
    stepper.exit("a", ev.ExitKind.CPU_FAULT, "SIGILL")
    stepper.ready("a")
    stepper.finish("1")
    stepper.exit("a")
    (launch,) = only(Launch, stepper.arrive("2", "a"))
    assert launch.portable


def test_a_file_that_its_worker_found_invalid_is_not_loaded_again() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.arrive("1", "a")
    (first,) = only(Reject, stepper.exit("a", ev.ExitKind.INVALID_MODEL, "tensor 7 is cut short"))
    assert first.refusal.kind is RefusalKind.INVALID_MODEL
    stepper.wait(10_000.0)
    effects = stepper.arrive("2", "a")
    assert [(one.refusal.kind, one.refusal.message) for one in only(Reject, effects)] == [
        (RefusalKind.INVALID_MODEL, "tensor 7 is cut short")
    ]
    assert only(Launch, effects) == []


def test_a_person_who_asks_for_a_load_is_answered_when_it_is_ready() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    effects = stepper.post(ev.LoadAsked("ask", "a"))
    assert only(Answer, effects) == []
    assert len(only(Launch, effects)) == 1
    assert only(Answer, stepper.ready("a")) == [Answer("ask", None)]
    assert only(Answer, stepper.post(ev.LoadAsked("again", "a"))) == [Answer("again", None)]


def test_a_person_who_asks_for_a_load_does_not_sit_out_a_back_off_and_hears_of_a_failure() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.arrive("1", "a")
    stepper.exit("a")
    assert len(only(Launch, stepper.post(ev.LoadAsked("ask", "a")))) == 1
    (answer,) = only(Answer, stepper.exit("a", detail="still broken"))
    assert answer.refusal is not None
    assert "still broken" in answer.refusal.message
    assert answer.refusal.retry_after_s == 4.0


def test_a_person_whose_load_finds_no_room_is_refused_when_a_request_would_be() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800, queue_timeout_s=30.0))
    stepper.load("a")
    stepper.post(ev.PauseAsked("pause", "RAM"))
    stepper.exit("a")
    stepper.post(ev.LoadAsked("early", "b"))
    stepper.wait(10.0)
    stepper.post(ev.LoadAsked("late", "b"))
    assert only(Answer, stepper.wait(19.9)) == []
    (answer,) = only(Answer, stepper.wait(0.1))
    assert answer.ask_id == "early"
    assert answer.refusal is not None
    assert answer.refusal.kind is RefusalKind.QUEUE_TIMEOUT
    assert answer.refusal.message == (
        "the load of model 'b' that was asked for waited 30 s (queue.timeout), "
        "which waits for RAM, handed over to others until it is resumed"
    )
    assert [one.ask_id for one in only(Answer, stepper.wait(10.0))] == ["late"]
    assert stepper.ledger.timer_at_s is None


def test_a_load_that_takes_longer_than_the_person_waits_goes_on_without_them() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, queue_timeout_s=30.0))
    stepper.post(ev.LoadAsked("ask", "a"))
    assert [one.refusal and one.refusal.kind for one in only(Answer, stepper.wait(30.0))] == [RefusalKind.QUEUE_TIMEOUT]
    assert only(Answer, stepper.ready("a")) == []
    assert stepper.states() == {"a": ["ready"]}


def test_an_ask_for_a_model_that_is_not_there_is_refused() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    for event in (ev.LoadAsked("ask", "b"), ev.UnloadAsked("ask", "b")):
        (answer,) = only(Answer, stepper.post(event))
        assert answer.refusal is not None
        assert answer.refusal.kind is RefusalKind.UNKNOWN_MODEL


def test_an_unload_is_answered_when_the_process_is_gone() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.load("a")
    effects = stepper.post(ev.UnloadAsked("ask", "a"))
    assert len(only(Stop, effects)) == 1
    assert only(Answer, effects) == []
    assert only(Answer, stepper.exit("a")) == [Answer("ask", None)]
    assert only(Answer, stepper.post(ev.UnloadAsked("again", "a"))) == [Answer("again", None)]


def test_an_unload_waits_for_a_worker_that_was_leaving_for_another_reason() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800))
    stepper.serve("1", "a")
    stepper.finish("1")
    stepper.arrive("2", "b")
    assert stepper.states() == {"a": ["stopping"]}
    assert only(Answer, stepper.post(ev.UnloadAsked("ask", "a"))) == []
    assert only(Answer, stepper.exit("a")) == [Answer("ask", None)]


def test_an_unload_drains_what_runs_and_cuts_it_when_the_drain_is_over() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, drain_s=10.0))
    stepper.serve("1", "a")
    assert only(Stop, stepper.post(ev.UnloadAsked("ask", "a"))) == []
    assert only(Stop, stepper.wait(9.9)) == []
    effects = stepper.wait(0.1)
    assert len(only(Stop, effects)) == 1
    assert [tell.kind for tell in only(Tell, effects)] == ["drain_cut"]
    assert stepper.ledger.counters.failed == 1


def test_a_pinned_model_is_loaded_at_the_start_and_again_after_a_crash() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, pin=True))
    assert [launch.model_id for launch in only(Launch, stepper.started)] == ["a"]
    stepper.ready("a")
    assert len(only(Launch, stepper.exit("a"))) == 1


def test_a_pinned_model_that_fails_to_load_is_tried_again_by_itself_with_growing_pauses() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, pin=True))
    for pause_s in (2.0, 4.0, 8.0):
        assert only(Launch, stepper.exit("a")) == []
        assert only(Launch, stepper.wait(pause_s - 0.1)) == []
        assert len(only(Launch, stepper.wait(0.1))) == 1


def test_an_unload_lifts_the_pin_until_somebody_asks_for_the_model() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, pin=True))
    stepper.ready("a")
    stepper.post(ev.UnloadAsked("ask", "a"))
    assert only(Launch, stepper.exit("a")) == []
    assert only(Launch, stepper.wait(1000.0)) == []
    assert len(only(Launch, stepper.arrive("1", "a"))) == 1
    stepper.ready("a")
    stepper.finish("1")
    assert len(only(Launch, stepper.exit("a"))) == 1, "it is pinned again"


def test_a_crash_while_draining_for_room_is_a_crash_and_no_eviction() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800, max_wait_s=1.0))
    stepper.serve("1", "a")
    stepper.arrive("2", "b", "bob")
    stepper.wait(5.0)
    assert stepper.states() == {"a": ["draining"]}
    effects = stepper.exit("a")
    assert only(ReportDeparture, effects) == [ReportDeparture("a", "crashed", evicted=False)]
    assert [launch.model_id for launch in only(Launch, effects)] == ["b"]


def test_a_load_is_proven_once_the_model_as_it_is_was_ready_and_until_something_goes_wrong() -> None:
    def launched(effects: list[Effect]) -> list[bool]:
        return [launch.proven for launch in only(Launch, effects)]

    stepper = Stepper([ram(1000)], model("a", 400))
    assert launched(stepper.arrive("1", "a")) == [False]
    stepper.ready("a")
    stepper.finish("1")
    stepper.post(ev.UnloadAsked("unload", "a"))
    stepper.exit("a")
    assert launched(stepper.arrive("2", "a")) == [True]
    stepper.ready("a")
    stepper.exit("a")
    assert launched(stepper.arrive("3", "a")) == [False], "its worker has crashed"
    stepper.ready("a")
    stepper.finish("3")
    stepper.post(ev.ModelsChanged((model("a", 400, launch_key="2"),)))
    stepper.exit("a")
    assert launched(stepper.arrive("4", "a")) == [False], "its file or its settings are others"


def test_a_worker_that_a_probe_stopped_counts_as_no_load_and_its_model_is_tried_again() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.arrive("1", "a")
    effects = stepper.exit("a", ev.ExitKind.UNDERESTIMATED, "it would take 500 MiB")
    assert [(tell.kind, tell.message) for tell in only(Tell, effects)][:1] == [
        ("estimate_corrected", "it would take 500 MiB")
    ]
    assert only(ReportLoad, effects) == []
    assert len(only(Launch, effects)) == 1
