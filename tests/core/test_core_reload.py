"""A new list of models: what changed is drained and replaced, and nothing else notices."""

from __future__ import annotations

from dataclasses import replace

from support.simulation import model, ram
from support.stepper import Stepper, only

from swapd.core import events as ev
from swapd.core.effects import Answer, Grant, Launch, RefusalKind, Reject, Stop
from swapd.core.spec import ModelSpec


def changed(spec: ModelSpec) -> ModelSpec:
    return replace(spec, launch_key=spec.launch_key + "'")


A, B = model("a", 400), model("b", 400)


def two_streams() -> Stepper:
    stepper = Stepper([ram(2000)], A, B)
    stepper.serve("1", "a")
    stepper.serve("2", "b")
    return stepper


def test_the_changed_model_drains_and_the_others_worker_and_stream_stay() -> None:
    stepper = two_streams()
    before = stepper.worker("b")
    assert only(Stop, stepper.post(ev.ModelsChanged((changed(A), B)))) == []
    assert stepper.states() == {"a": ["draining"], "b": ["ready"]}
    assert stepper.worker("b") is before
    assert set(before.running) == {"2"}
    assert len(only(Stop, stepper.finish("1"))) == 1


def test_an_unchanged_list_changes_nothing() -> None:
    stepper = two_streams()
    assert stepper.post(ev.ModelsChanged((A, B))) == []
    assert stepper.states() == {"a": ["ready"], "b": ["ready"]}


def test_new_requests_wait_for_a_worker_with_the_new_settings() -> None:
    stepper = two_streams()
    stepper.post(ev.ModelsChanged((changed(A), B)))
    effects = stepper.arrive("3", "a")
    assert only(Grant, effects) == []
    assert [launch.model_id for launch in only(Launch, effects)] == ["a"], "there is room beside the old one"
    new = stepper.ledger.workers[max(stepper.ledger.workers)]
    assert new.spec.launch_key == changed(A).launch_key


def test_streams_of_a_changed_model_are_cut_when_its_drain_is_over() -> None:
    stepper = two_streams()
    stepper.post(ev.ModelsChanged((replace(changed(A), drain_s=10.0), B)))
    assert only(Stop, stepper.wait(9.9)) == []
    assert len(only(Stop, stepper.wait(0.1))) == 1


def test_a_model_whose_settings_change_while_it_loads_is_loaded_anew_and_keeps_its_waiters() -> None:
    stepper = Stepper([ram(1000)], A)
    stepper.arrive("1", "a")
    effects = stepper.post(ev.ModelsChanged((changed(A),)))
    assert [stop.worker_id for stop in only(Stop, effects)] == [1]
    assert [launch.worker_id for launch in only(Launch, effects)] == [2]
    assert only(Reject, stepper.post(ev.WorkerExited(1, ev.ExitKind.INVALID_MODEL, "old news"))) == []
    assert [grant.request_id for grant in only(Grant, stepper.ready("a"))] == ["1"]


def test_news_that_the_old_worker_was_ready_after_all_grants_nothing() -> None:
    stepper = Stepper([ram(700)], A)
    stepper.arrive("1", "a")
    stepper.post(ev.WorkerStarted(1))
    stepper.post(ev.ModelsChanged((changed(A),)))
    assert only(Grant, stepper.post(ev.WorkerReady(1))) == []
    assert [launch.worker_id for launch in only(Launch, stepper.exit("a"))] == [2]


def test_policy_alone_is_taken_over_by_the_running_worker() -> None:
    stepper = two_streams()
    stepper.post(ev.ModelsChanged((replace(A, idle_unload_s=5.0), B)))
    stepper.finish("1")
    assert len(only(Stop, stepper.wait(5.0))) == 1


def test_a_lower_queue_bound_refuses_the_newest_of_those_who_wait() -> None:
    stepper = Stepper([ram(1000)], A)
    for number in range(4):
        stepper.arrive(f"r{number}", "a")
    effects = stepper.post(ev.ModelsChanged((replace(A, max_waiting=2),)))
    assert [reject.request_id for reject in only(Reject, effects)] == ["r3", "r2"]


def test_a_bad_file_is_refused_with_its_verdict_and_a_mended_one_is_picked_up() -> None:
    bad = replace(A, costs=None, verdict="a.gguf: magic is 'HTML', not 'GGUF'", launch_key="bad")
    stepper = Stepper([ram(1000)], bad)
    (reject,) = only(Reject, stepper.arrive("1", "a"))
    assert (reject.refusal.kind, reject.refusal.message) == (RefusalKind.INVALID_MODEL, bad.verdict)
    stepper.post(ev.ModelsChanged((A,)))
    assert len(only(Launch, stepper.arrive("2", "a"))) == 1


def test_what_a_worker_found_out_about_a_file_is_forgotten_with_the_file() -> None:
    stepper = Stepper([ram(1000)], A)
    stepper.arrive("1", "a")
    stepper.exit("a", ev.ExitKind.INVALID_MODEL, "tensor 7 is cut short")
    stepper.post(ev.ModelsChanged((changed(A),)))
    assert len(only(Launch, stepper.arrive("2", "a"))) == 1


def test_a_change_ends_the_back_off() -> None:
    stepper = Stepper([ram(1000)], A)
    stepper.arrive("1", "a")
    stepper.exit("a")
    stepper.post(ev.ModelsChanged((changed(A),)))
    assert len(only(Launch, stepper.arrive("2", "a"))) == 1


def test_a_crash_of_the_old_worker_is_not_held_against_the_new_settings() -> None:
    stepper = two_streams()
    stepper.post(ev.ModelsChanged((changed(A), B)))
    stepper.exit("a", ev.ExitKind.FAILED, "it was the old one")
    assert stepper.model("a").failures == 0
    assert stepper.model("a").last_error is None


def test_a_removed_model_refuses_its_waiters_drains_its_streams_and_then_is_gone() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=1), B)
    stepper.serve("1", "a")
    stepper.arrive("2", "a")
    effects = stepper.post(ev.ModelsChanged((B,)))
    assert [(one.request_id, one.refusal.kind) for one in only(Reject, effects)] == [("2", RefusalKind.UNKNOWN_MODEL)]
    assert stepper.states() == {"a": ["draining"]}
    assert len(only(Stop, stepper.finish("1"))) == 1
    stepper.exit("a")
    assert stepper.ledger.charged_bytes("RAM") == 0


def test_a_removed_model_answers_those_who_asked_for_it() -> None:
    stepper = Stepper([ram(1000)], A, B)
    stepper.load("b")
    stepper.post(ev.LoadAsked("load", "a"))
    stepper.post(ev.UnloadAsked("unload", "b"))
    effects = stepper.post(ev.ModelsChanged(()))
    answers = {answer.ask_id: answer.refusal and answer.refusal.kind for answer in only(Answer, effects)}
    assert answers == {"load": RefusalKind.UNKNOWN_MODEL, "unload": None}


def test_a_model_that_was_removed_and_comes_back_gets_a_worker_of_its_own() -> None:
    stepper = two_streams()
    stepper.post(ev.ModelsChanged((B,)))
    stepper.post(ev.ModelsChanged((A, B)))
    assert stepper.states() == {"a": ["draining"], "b": ["ready"]}
    assert len(only(Launch, stepper.arrive("3", "a"))) == 1


def test_an_added_model_is_served_at_once() -> None:
    stepper = two_streams()
    stepper.post(ev.ModelsChanged((A, B, model("c", 400))))
    assert [launch.model_id for launch in only(Launch, stepper.arrive("3", "c"))] == ["c"]


def test_a_pin_that_is_added_loads_the_model_and_one_that_is_taken_away_frees_it() -> None:
    stepper = Stepper([ram(500)], A, B)
    pinned = replace(A, pin=True)
    assert [launch.model_id for launch in only(Launch, stepper.post(ev.ModelsChanged((pinned, B))))] == ["a"]
    stepper.ready("a")
    assert len(only(Reject, stepper.arrive("1", "b"))) == 1
    stepper.post(ev.ModelsChanged((A, B)))
    assert len(only(Stop, stepper.arrive("2", "b"))) == 1
