"""When a worker may be asked to leave for a model that waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.simulation import model, ram
from support.stepper import Stepper

from swapd.core import events as ev
from swapd.core.turns import MIN_RELOAD_S, leave_at_s, leaving_cost_s, reload_s

LOAD_S = 4.0


def holder_and_waiter(*, waiter_client: str = "bob", **settings: object) -> Stepper:
    """`a` has just loaded in 4 s and runs `a1` for alice; `b1` has begun to wait for the same memory.

    A request to `a` takes 0.125 s, so that a swap for `b` takes 0.75 s: the drain twice that, the load 0.5 s.
    """
    a = model("a", 800, turn_s=10.0, **settings)
    stepper = Stepper([ram(1000)], a, model("b", 800, max_wait_s=60.0, learned_load_s=0.5))
    stepper.model("a").service_s = 0.125
    stepper.arrive("a1", "a", "alice")
    stepper.ready("a", load_s=LOAD_S)
    stepper.arrive("b1", "b", waiter_client)
    return stepper


def may_leave_in_s(stepper: Stepper) -> float | None:
    at_s = leave_at_s(stepper.ledger, stepper.worker("a"), stepper.model("b"), stepper.now_s)
    return None if at_s is None else at_s - stepper.now_s


def test_a_pinned_worker_never() -> None:
    stepper = holder_and_waiter()
    worker = stepper.worker("a")
    worker.spec = model("a", 800, pin=True)
    assert may_leave_in_s(stepper) is None


def test_a_worker_that_loads_or_leaves_already_never() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800, max_wait_s=1.0))
    stepper.arrive("a1", "a")
    stepper.arrive("b1", "b")
    stepper.wait(5.0)
    assert may_leave_in_s(stepper) is None
    stepper.ready("a")
    assert stepper.states() == {"a": ["draining"]}
    assert may_leave_in_s(stepper) is None


def test_an_idle_worker_nobody_was_at_leaves_at_once() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800))
    stepper.load("a")
    stepper.arrive("b1", "b")
    assert stepper.states() == {"a": ["stopping"]}


def test_an_idle_worker_leaves_at_once_for_the_only_client_it_had() -> None:
    stepper = holder_and_waiter(waiter_client="alice")
    stepper.finish("a1")
    assert stepper.states() == {"a": ["stopping"]}


def test_an_idle_worker_keeps_its_turn_while_another_client_is_expected_back() -> None:
    stepper = holder_and_waiter()
    stepper.wait(1.0)
    stepper.finish("a1")
    assert may_leave_in_s(stepper) == LOAD_S, "for as long as a reload takes"
    assert stepper.states() == {"a": ["ready"]}
    stepper.wait(LOAD_S)
    assert stepper.states() == {"a": ["stopping"]}


def test_an_idle_worker_keeps_its_place_no_longer_than_its_turn() -> None:
    stepper = holder_and_waiter()
    stepper.wait(9.0)
    stepper.finish("a1")
    assert may_leave_in_s(stepper) == pytest.approx(1.0)
    stepper.wait(1.0)
    assert stepper.states() == {"a": ["stopping"]}


def test_a_client_that_waits_for_the_waiter_is_not_expected_back() -> None:
    """carol was at `a`, but she sits in `b`'s queue now: nobody is expected at `a`."""
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800))
    stepper.arrive("a1", "a", "carol")
    stepper.ready("a", load_s=LOAD_S)
    stepper.finish("a1")
    stepper.arrive("b1", "b", "carol")
    assert stepper.states() == {"a": ["stopping"]}


def test_a_busy_worker_stays_to_the_end_of_its_turn() -> None:
    stepper = holder_and_waiter()
    assert may_leave_in_s(stepper) == 10.0


def test_a_turn_is_longer_where_a_swap_takes_more_of_it() -> None:
    """Four times as long as the drain, of two mean requests, and the waiter's load."""
    stepper = holder_and_waiter()
    stepper.model("a").service_s = 3.0
    assert may_leave_in_s(stepper) == 4 * (2 * 3.0 + 0.5)
    stepper.model("a").service_s = None
    assert may_leave_in_s(stepper) == 4 * (2 * 1.0 + 0.5)


def test_after_its_turn_a_busy_worker_stays_until_the_waiting_outweighs_the_swap() -> None:
    """Four at work would lose 4.75 s each: the swap and their own reload. One that waits has waited 19 s after 19 s."""
    stepper = holder_and_waiter(slots=4)
    for name in ("a2", "a3", "a4"):
        stepper.arrive(name, "a", name)
    assert may_leave_in_s(stepper) == 4 * (0.75 + LOAD_S)
    stepper.arrive("b2", "b", "carol")
    assert may_leave_in_s(stepper) == 10.0, "two wait: 19 s are summed after 9.5 s, so the turn's end decides"


def test_a_busy_worker_stays_no_longer_than_the_waiters_bound() -> None:
    stepper = holder_and_waiter(slots=100)
    for number in range(50):
        stepper.arrive(f"x{number}", "a", "alice")
    assert may_leave_in_s(stepper) == 60.0


def test_a_reload_is_guessed_from_the_size_until_one_was_seen() -> None:
    stepper = Stepper([ram(10_000)], model("a", 5_000), model("tiny", 1))
    guessed_s = reload_s(stepper.model("a"), stepper.model("a").spec)
    assert guessed_s == pytest.approx(5_000 * 2**20 / 1e9, rel=0.01)
    assert reload_s(stepper.model("tiny"), stepper.model("tiny").spec) == MIN_RELOAD_S
    stepper.arrive("1", "a")
    stepper.ready("a", load_s=33.0)
    assert reload_s(stepper.model("a"), stepper.model("a").spec) == 33.0


def test_one_slow_load_does_not_change_much_of_what_a_reload_is_taken_to_last() -> None:
    stepper = Stepper([ram(1000)], model("a", 800))
    stepper.arrive("1", "a")
    stepper.ready("a", load_s=2.0)
    stepper.finish("1")
    stepper.exit("a")
    stepper.arrive("2", "a")
    stepper.ready("a", load_s=12.0)
    assert stepper.model("a").load_s == 12.0
    assert reload_s(stepper.model("a"), stepper.model("a").spec) == 2.0 + 0.3 * 10.0


def test_what_was_learned_of_loads_before_a_restart_counts_until_there_is_more() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, learned_load_s=20.0))
    assert reload_s(stepper.model("a"), stepper.model("a").spec) == 20.0
    stepper.arrive("1", "a")
    stepper.ready("a", load_s=10.0)
    assert reload_s(stepper.model("a"), stepper.model("a").spec) == 17.0


def test_sending_away_a_worker_costs_less_the_longer_nobody_asks_for_it() -> None:
    stepper = Stepper([ram(1000)], model("a", 400))
    stepper.serve("1", "a")
    busy = leaving_cost_s(stepper.ledger, stepper.worker("a"), stepper.now_s)
    stepper.finish("1")
    just = leaving_cost_s(stepper.ledger, stepper.worker("a"), stepper.now_s)
    later = leaving_cost_s(stepper.ledger, stepper.worker("a"), stepper.now_s + 60.0)
    assert busy > just > later > 0


def test_sending_away_costs_reload_seconds_times_how_often_a_model_is_asked_for() -> None:
    often, rarely, slow = (model(name, 300, turn_s=0.0) for name in ("often", "rarely", "slow"))
    stepper = Stepper([ram(1000)], often, rarely, replace(slow, learned_load_s=60.0))
    for number in range(40):
        names = ("often", "rarely", "slow") if number % 8 == 0 else ("often",)
        for name in names:
            stepper.serve(f"{name}{number}", name)
            stepper.finish(f"{name}{number}")
        stepper.wait(5.0)
    costs = {name: leaving_cost_s(stepper.ledger, stepper.worker(name), stepper.now_s) for name in ("often", "rarely")}
    assert costs["often"] == pytest.approx(8 * costs["rarely"], rel=0.1)
    slow_cost = leaving_cost_s(stepper.ledger, stepper.worker("slow"), stepper.now_s)
    assert slow_cost > costs["often"], "it is asked for as rarely, and takes 42 s to load"


def test_an_idle_worker_is_not_held_for_clients_that_used_to_stay_away_for_longer_than_a_reload_takes() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800))
    stepper.arrive("a1", "a", "alice")
    stepper.ready("a", load_s=LOAD_S)
    stepper.finish("a1")
    stepper.wait(4 * LOAD_S)
    stepper.serve("a2", "a", "alice")
    stepper.worker("a").ready_at_s = stepper.now_s
    stepper.finish("a2")
    stepper.arrive("b1", "b", "bob")
    assert stepper.states() == {"a": ["stopping"]}


def test_many_that_seldom_come_are_expected_as_one_that_often_does() -> None:
    """Five clients, each away for 16 s: one of them is likely to ask within the 4 s of a reload. One alone is not."""
    stepper = Stepper([ram(1000)], model("a", 800, slots=9), model("b", 800))
    clients = ["c1", "c2", "c3", "c4", "c5"]
    stepper.arrive("a0", "a", "c1")
    stepper.ready("a", load_s=LOAD_S)
    for turn in range(2):
        for client in clients:
            stepper.arrive(f"{client}{turn}", "a", client)
        for client in clients:
            stepper.finish(f"{client}{turn}")
        stepper.wait(4 * LOAD_S)
    stepper.finish("a0")
    stepper.worker("a").ready_at_s = stepper.now_s
    for client in clients:
        stepper.serve(f"{client}9", "a", client)
    for client in clients:
        stepper.finish(f"{client}9")
    stepper.arrive("b1", "b", "bob")
    assert may_leave_in_s(stepper) == LOAD_S


def test_the_timer_is_set_for_the_time_when_a_worker_may_leave() -> None:
    stepper = holder_and_waiter()
    assert stepper.ledger.timer_at_s == stepper.now_s + 10.0
    stepper.finish("a1")
    assert stepper.ledger.timer_at_s == stepper.now_s + LOAD_S
    stepper.post(ev.RequestCancelled("b1"))
    assert stepper.ledger.timer_at_s is None
