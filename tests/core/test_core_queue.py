"""The queue of one model: bounds, timeouts, cancels, and the count of what became of every request."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.simulation import model, ram
from support.stepper import Stepper, only

from swapd.core import events as ev
from swapd.core.admission import expected_wait_s, newcomers_wait_s
from swapd.core.effects import Answer, Grant, Launch, RefusalKind, Reject, SetTimer, Stop
from swapd.core.scheduler import MAX_ASKS, step


def refused(effects: object) -> list[tuple[str, RefusalKind]]:
    return [(one.request_id, one.refusal.kind) for one in only(Reject, effects)]  # type: ignore[arg-type]


def test_a_request_that_may_load_nothing_is_refused_unless_a_worker_is_ready() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    (refused,) = only(Reject, stepper.post(ev.RequestArrived("1", "a", "alice", may_load=False)))
    assert refused.refusal.kind is RefusalKind.NOT_LOADED
    stepper.arrive("2", "a")
    (refused,) = only(Reject, stepper.post(ev.RequestArrived("3", "a", "alice", may_load=False)))
    assert refused.refusal.kind is RefusalKind.NOT_LOADED
    stepper.ready("a")
    assert only(Grant, stepper.post(ev.RequestArrived("4", "a", "alice", may_load=False)))


def test_news_of_a_worker_that_has_gone_is_read_over() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    assert stepper.post(ev.WorkerProgressed(99)) == []


def test_a_full_queue_refuses_the_newest_and_never_an_older_one() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, max_waiting=3))
    for number in range(3):
        assert refused(stepper.arrive(f"old{number}", "a")) == []
    effects = stepper.arrive("new", "a", priority=9)
    assert refused(effects) == [("new", RefusalKind.QUEUE_FULL)]
    (reject,) = only(Reject, effects)
    assert "3 requests waiting (queue.max_waiting)" in reject.refusal.message
    assert reject.refusal.retry_after_s is not None
    assert reject.refusal.retry_after_s >= 1.0
    assert list(stepper.model("a").waiting) == ["old0", "old1", "old2"]


def test_a_request_that_is_granted_at_once_never_counts_as_waiting() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, max_waiting=0, slots=2))
    stepper.load("a")
    assert [grant.request_id for grant in only(Grant, stepper.arrive("1", "a"))] == ["1"]
    assert [grant.request_id for grant in only(Grant, stepper.arrive("2", "a"))] == ["2"]
    assert refused(stepper.arrive("3", "a")) == [("3", RefusalKind.QUEUE_FULL)]


def test_a_request_as_old_as_the_timeout_is_refused_to_the_second() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, queue_timeout_s=30.0))
    stepper.arrive("1", "a")
    stepper.wait(10.0)
    stepper.arrive("2", "a")
    assert refused(stepper.wait(19.9)) == []
    assert refused(stepper.wait(0.1)) == [("1", RefusalKind.QUEUE_TIMEOUT)]
    assert refused(stepper.wait(10.0)) == [("2", RefusalKind.QUEUE_TIMEOUT)]


def test_a_running_request_has_no_queue_timeout() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, queue_timeout_s=30.0, stall_timeout_s=1e6))
    stepper.serve("1", "a")
    assert refused(stepper.wait(1000.0)) == []


def test_a_request_for_an_unknown_model_is_refused() -> None:
    stepper = Stepper([ram(1000)])
    assert refused(stepper.arrive("1", "nowhere")) == [("1", RefusalKind.UNKNOWN_MODEL)]


def test_a_worker_runs_no_more_than_its_slots() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=3))
    stepper.load("a")
    grants = [grant for number in range(5) for grant in only(Grant, stepper.arrive(f"r{number}", "a", f"c{number}"))]
    assert [grant.request_id for grant in grants] == ["r0", "r1", "r2"]
    assert [grant.request_id for grant in only(Grant, stepper.finish("r1"))] == ["r3"]


def test_a_cancelled_request_leaves_its_slot_to_the_next() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=1))
    stepper.serve("1", "a")
    stepper.arrive("2", "a")
    stepper.arrive("3", "a")
    assert only(Grant, stepper.cancel("2")) == []
    assert [grant.request_id for grant in only(Grant, stepper.cancel("1"))] == ["3"]


@pytest.mark.parametrize("event", [ev.RequestCancelled("1"), ev.RequestFinished("1", True)])
def test_news_of_a_request_that_is_over_changes_nothing(event: ev.Event) -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.serve("1", "a")
    stepper.finish("1")
    before = stepper.ledger.counters.finished, stepper.ledger.counters.cancelled
    assert stepper.post(event) == []
    assert (stepper.ledger.counters.finished, stepper.ledger.counters.cancelled) == before


def test_every_accepted_request_is_counted_once() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=2, max_waiting=2))
    stepper.serve("finished", "a")
    stepper.arrive("broken", "a")
    stepper.arrive("cancelled", "a")
    stepper.arrive("running", "a")
    stepper.arrive("refused", "a")
    stepper.cancel("cancelled")
    stepper.finish("finished")
    stepper.finish("broken", ok=False)
    stepper.arrive("nowhere", "nowhere")
    counters = stepper.ledger.counters
    assert (counters.accepted, counters.finished, counters.failed, counters.cancelled) == (6, 1, 3, 1)
    assert len(stepper.ledger.running) == 1


def test_the_timer_is_set_only_when_its_time_changes_and_taken_away_at_the_end() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, queue_timeout_s=30.0, load_timeout_s=100.0))
    assert only(SetTimer, stepper.arrive("1", "a")) == [SetTimer(30.0)]
    assert only(SetTimer, stepper.arrive("2", "a")) == []
    stepper.ready("a")
    stepper.finish("1")
    assert only(SetTimer, stepper.finish("2"))[-1] == SetTimer(None)


def test_a_timer_that_fires_early_is_set_again_and_does_no_harm() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, queue_timeout_s=30.0))
    stepper.arrive("1", "a")
    stepper.now_s = 29.0
    assert stepper.post(ev.TimerFired()) == [SetTimer(30.0)]


def test_time_never_goes_backwards() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.wait(5.0)
    stepper.arrive("1", "a")
    with pytest.raises(AssertionError, match="backwards"):
        step(stepper.ledger, ev.TimerFired(), 4.0)


def test_at_shutdown_the_waiting_are_refused_and_the_running_drain() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=1, drain_s=30.0), model("b", 400))
    stepper.serve("1", "a")
    stepper.arrive("2", "a", "bob")
    stepper.arrive("3", "b", "carol")
    effects = stepper.post(ev.ShutdownAsked())
    assert refused(effects) == [("2", RefusalKind.SHUTTING_DOWN), ("3", RefusalKind.SHUTTING_DOWN)]
    assert stepper.states() == {"a": ["draining"], "b": ["stopping"]}
    assert refused(stepper.arrive("4", "a")) == [("4", RefusalKind.SHUTTING_DOWN)]
    assert len(only(Stop, stepper.finish("1"))) == 1
    assert stepper.ledger.counters.finished == 1


def test_at_shutdown_what_still_runs_is_cut_when_the_drain_is_over() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, drain_s=30.0))
    stepper.serve("1", "a")
    stepper.post(ev.ShutdownAsked())
    assert only(Stop, stepper.wait(29.9)) == []
    assert len(only(Stop, stepper.wait(0.1))) == 1


def test_a_worker_that_drains_for_room_gets_a_deadline_at_shutdown() -> None:
    models = (model("a", 800, drain_s=30.0, stall_timeout_s=1e6), model("b", 800, max_wait_s=1.0))
    stepper = Stepper([ram(1000)], *models)
    stepper.serve("1", "a")
    stepper.arrive("2", "b", "bob")
    stepper.wait(5.0)
    stepper.post(ev.ShutdownAsked())
    assert stepper.states() == {"a": ["draining"]}
    assert len(only(Stop, stepper.wait(30.0))) == 1


def test_after_shutdown_nothing_is_loaded_any_more() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, pin=True))
    stepper.ready("a")
    stepper.post(ev.ShutdownAsked())
    assert only(Launch, stepper.exit("a")) == []
    assert only(Launch, stepper.post(ev.LoadAsked("ask", "a"))) == []
    assert stepper.ledger.workers == {}
    assert stepper.ledger.timer_at_s is None


# -- bounds by tokens and by client ----------------------------------------------------------------------------


def test_a_queue_is_bounded_by_the_tokens_of_what_waits_too() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, max_waiting_tokens=1000))
    ask = ev.RequestArrived("1", "a", "alice", prompt_tokens=500, answer_limit=100)
    assert refused(stepper.post(ask)) == []
    assert refused(stepper.post(replace(ask, request_id="2", prompt_tokens=300))) == []
    effects = stepper.post(replace(ask, request_id="3", prompt_tokens=1))
    assert refused(effects) == [("3", RefusalKind.QUEUE_FULL)]
    assert "about 1000 tokens waiting (queue.max_waiting_tokens)" in only(Reject, effects)[0].refusal.message
    stepper.cancel("1")
    assert refused(stepper.post(replace(ask, request_id="4", prompt_tokens=400))) == []


def test_a_request_larger_than_the_bound_may_wait_alone() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, max_waiting_tokens=1000))
    assert refused(stepper.post(ev.RequestArrived("huge", "a", "alice", prompt_tokens=5000))) == []
    assert refused(stepper.arrive("small", "a")) == [("small", RefusalKind.QUEUE_FULL)]


def test_one_client_cannot_fill_the_queue_for_all_others() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, max_waiting=90))
    effects = [effect for number in range(90) for effect in stepper.arrive(f"h{number}", "a", "hog")]
    assert len(stepper.model("a").waiting) == 80
    assert refused(effects)[0] == ("h80", RefusalKind.QUEUE_FULL)
    assert "80 of the 80 requests that wait for model 'a' are this client's" in only(Reject, effects)[0].refusal.message
    assert [refused(stepper.arrive(f"m{number}", "a", f"client{number}")) for number in range(10)] == [[]] * 10
    assert refused(stepper.arrive("m10", "a", "client10")) == [("m10", RefusalKind.QUEUE_FULL)]


def test_a_client_may_have_so_many_requests_at_once_over_all_models_and_no_more() -> None:
    specs = [model(name, 400, max_per_client=3) for name in "ab"]
    stepper = Stepper([ram(1000)], *specs)
    stepper.serve("1", "a")
    stepper.arrive("2", "a")
    stepper.arrive("3", "b")
    effects = stepper.arrive("4", "b")
    assert refused(effects) == [("4", RefusalKind.CLIENT_LIMIT)]
    (reject,) = only(Reject, effects)
    assert "queue.max_per_client" in reject.refusal.message
    assert reject.refusal.retry_after_s == 1.0
    assert refused(stepper.arrive("5", "b", "bob")) == []
    stepper.finish("1")
    assert refused(stepper.arrive("6", "a")) == []
    counters = stepper.ledger.counters
    assert counters.accepted == 6
    assert counters.failed == 1


# -- how long it will take -------------------------------------------------------------------------------------


def expected(stepper: Stepper, position: int) -> float | None:
    return expected_wait_s(stepper.ledger, stepper.model("a"), position, stepper.now_s)


def served_in(stepper: Stepper, request_id: str, seconds: float) -> None:
    stepper.serve(request_id, "a")
    stepper.wait(seconds)
    stepper.finish(request_id)


def test_an_expected_wait_is_told_only_once_a_service_time_is_known() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=2))
    stepper.arrive("1", "a")
    assert expected(stepper, 1) is None
    stepper.ready("a")
    assert expected(stepper, 1) is None
    stepper.wait(4.0)
    stepper.finish("1")
    assert expected(stepper, 1) == 2.0
    assert expected(stepper, 5) == 10.0


def test_while_a_model_loads_the_rest_of_its_usual_load_counts_and_the_rounds_after_it() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=2))
    stepper.arrive("1", "a")
    stepper.ready("a", load_s=6.0)
    stepper.wait(4.0)
    stepper.finish("1")
    stepper.post(ev.UnloadAsked("ask", "a"))
    assert expected(stepper, 1) is None
    stepper.exit("a")
    assert expected(stepper, 1) is None
    stepper.arrive("2", "a")
    stepper.wait(2.0)
    assert [expected(stepper, position) for position in (1, 2, 3, 5)] == [4.0, 4.0, 8.0, 12.0]
    stepper.wait(50.0)
    assert expected(stepper, 1) == 0.0


def test_a_full_queue_says_when_what_is_in_it_will_have_been_served() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=2, max_waiting=10))
    served_in(stepper, "0", 4.0)
    for number in range(12):
        stepper.arrive(f"r{number}", "a", f"c{number}")
    (reject,) = only(Reject, stepper.arrive("late", "a"))
    assert reject.refusal.retry_after_s == 11 * 4.0 / 2


@pytest.mark.parametrize(("service_s", "expected_s"), [(0.01, 1.0), (60.0, 60.0)])
def test_a_retry_after_is_never_shorter_than_a_second_nor_longer_than_a_minute(
    service_s: float, expected_s: float
) -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=2, max_waiting=8))
    served_in(stepper, "0", service_s)
    effects = [effect for number in range(11) for effect in stepper.arrive(f"r{number}", "a", f"c{number}")]
    assert [one.refusal.retry_after_s for one in only(Reject, effects)] == [expected_s]


def test_a_full_queue_of_a_model_that_was_never_up_counts_its_load_by_its_size() -> None:
    stepper = Stepper([ram(40_000)], model("a", 30_000, slots=2, max_waiting=2))
    effects = [effect for number in range(3) for effect in stepper.arrive(f"r{number}", "a", f"c{number}")]
    (reject,) = only(Reject, effects)
    assert reject.refusal.retry_after_s is not None
    assert 30.0 <= reject.refusal.retry_after_s <= 35.0


def test_a_newcomer_waits_for_nothing_where_a_slot_is_free_and_else_for_those_before_it() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=1, stall_timeout_s=1e6))
    stepper.load("a")
    assert newcomers_wait_s(stepper.ledger, stepper.model("a"), stepper.now_s) == 0.0
    stepper.serve("1", "a")
    stepper.wait(4.0)
    stepper.finish("1")
    stepper.serve("2", "a")
    assert newcomers_wait_s(stepper.ledger, stepper.model("a"), stepper.now_s) == 4.0
    stepper.arrive("3", "a")
    assert newcomers_wait_s(stepper.ledger, stepper.model("a"), stepper.now_s) == 8.0


def test_a_worker_is_stuck_at_once_when_the_last_request_leaves_that_it_might_have_been_reading() -> None:
    spec = model("a", 400, slots=2, stall_timeout_s=10.0, first_token_timeout_s=100.0)
    stepper = Stepper([ram(1000)], spec)
    stepper.serve("1", "a")
    stepper.post(ev.WorkerProgressed(stepper.worker("a").id, began="1"))
    stepper.arrive("2", "a")
    assert only(Stop, stepper.wait(50.0)) == [], "2 may be a long prompt"
    (stop,) = only(Stop, stepper.cancel("2"))
    assert stop.grace_s == 0.0


def test_more_people_than_a_bound_may_not_wait_for_one_models_load() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    for number in range(MAX_ASKS):
        assert only(Answer, stepper.post(ev.LoadAsked(f"l{number}", "a"))) == []
    (answer,) = only(Answer, stepper.post(ev.LoadAsked("one-more", "a")))
    assert answer.refusal is not None
    assert answer.refusal.kind is RefusalKind.QUEUE_FULL
    assert len(only(Answer, stepper.ready("a"))) == MAX_ASKS


def test_more_people_than_a_bound_may_not_wait_for_one_models_unload() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.serve("1", "a")
    for number in range(MAX_ASKS):
        assert only(Answer, stepper.post(ev.UnloadAsked(f"u{number}", "a"))) == []
    (answer,) = only(Answer, stepper.post(ev.UnloadAsked("one-more", "a")))
    assert answer.refusal is not None
    assert "others already wait for model 'a'" in answer.refusal.message


def test_a_ledger_shows_itself_in_one_line() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, slots=1))
    stepper.serve("1", "a")
    stepper.arrive("2", "a")
    charged = stepper.ledger.charged_bytes("RAM")
    budget = stepper.ledger.devices["RAM"].spec.budget_bytes
    assert repr(stepper.ledger) == f"<Ledger [a ready | 1 waiting, 1 running | RAM {charged}/{budget}]>"
