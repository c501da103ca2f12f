"""How long an idle model stays: what a client wishes counts in place of the setting, while the model is loaded."""

from __future__ import annotations

from math import inf

from support.simulation import model, ram
from support.stepper import Stepper, only

from swapd.core import events as ev
from swapd.core.effects import Launch, Stop, Tell
from swapd.core.idle import unload_in_s


def leaves_after_s(stepper: Stepper, at_most_s: float = 1000.0) -> float | None:
    """Seconds until the idle model `a` is stopped; None if it stays."""
    started_s = stepper.now_s
    while stepper.now_s < started_s + at_most_s:
        if only(Stop, stepper.wait(0.5)):
            return stepper.now_s - started_s
    return None


def test_the_wish_of_a_request_counts_in_place_of_the_setting() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, idle_unload_s=30.0))
    stepper.arrive("1", "a", keep_alive_s=100.0)
    stepper.ready("a")
    stepper.finish("1")
    assert leaves_after_s(stepper) == 100.0


def test_the_last_wish_counts_and_a_request_without_one_changes_nothing() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.arrive("1", "a", keep_alive_s=100.0)
    stepper.ready("a")
    stepper.arrive("2", "a", "bob", keep_alive_s=7.0)
    stepper.arrive("3", "a", "carol")
    for request_id in "123":
        stepper.finish(request_id)
    assert leaves_after_s(stepper) == 7.0


def test_for_ever_outweighs_the_setting_but_does_not_pin() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, idle_unload_s=5.0), model("b", 800))
    stepper.arrive("1", "a", keep_alive_s=inf)
    stepper.ready("a")
    stepper.finish("1")
    assert leaves_after_s(stepper) is None
    assert only(Stop, stepper.arrive("2", "b"))


def test_nothing_is_kept_after_the_answer_with_a_wish_of_zero_and_others_running_are_not_cut() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.serve("1", "a")
    stepper.arrive("2", "a", "bob", keep_alive_s=0.0)
    assert only(Stop, stepper.finish("2")) == []
    assert leaves_after_s(stepper, 60.0) is None
    effects = stepper.finish("1")
    assert len(only(Stop, effects)) == 1
    assert "keep_alive" in only(Tell, effects)[0].message


def test_a_wish_without_a_request_sends_an_idle_worker_away_at_once() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.serve("1", "a")
    assert only(Stop, stepper.post(ev.KeepAliveAsked("a", 0.0))) == []
    assert len(only(Stop, stepper.finish("1"))) == 1
    assert only(Stop, stepper.post(ev.KeepAliveAsked("nobody", 0.0))) == []


def test_a_wish_does_not_outlive_the_model() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, idle_unload_s=20.0))
    stepper.post(ev.KeepAliveAsked("a", 0.0))
    stepper.arrive("1", "a", keep_alive_s=0.0)
    stepper.ready("a")
    stepper.finish("1")
    stepper.exit("a")
    stepper.serve("2", "a")
    stepper.finish("2")
    assert leaves_after_s(stepper) == 20.0


def test_a_wish_made_while_the_old_worker_stops_is_for_the_new_one() -> None:
    stepper = Stepper([ram(500)], model("a", 400))
    stepper.arrive("1", "a", keep_alive_s=0.0)
    stepper.ready("a")
    stepper.finish("1")
    stepper.arrive("2", "a", keep_alive_s=9.0)
    assert only(Launch, stepper.exit("a"))
    stepper.ready("a")
    stepper.finish("2")
    assert leaves_after_s(stepper) == 9.0


def test_a_load_that_a_person_asks_for_stays_as_its_setting_says() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.arrive("1", "a", keep_alive_s=0.0)
    stepper.post(ev.LoadAsked("ask", "a"))
    stepper.ready("a")
    stepper.finish("1")
    assert leaves_after_s(stepper) is None


def test_pinned_models_stay_whatever_a_client_wishes() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, pin=True))
    stepper.ready("a")
    stepper.arrive("1", "a", keep_alive_s=0.0)
    assert only(Stop, stepper.finish("1")) == []
    assert unload_in_s(stepper.ledger, stepper.worker("a"), stepper.now_s) is None


def test_when_it_leaves_is_known_before() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.serve("1", "a")
    worker = stepper.worker("a")
    assert unload_in_s(stepper.ledger, worker, stepper.now_s) is None
    stepper.post(ev.KeepAliveAsked("a", 60.0))
    assert unload_in_s(stepper.ledger, worker, stepper.now_s) == 60.0
    stepper.finish("1")
    stepper.wait(20.0)
    assert unload_in_s(stepper.ledger, worker, stepper.now_s) == 40.0
