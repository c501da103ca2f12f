"""Who is granted first inside one model's queue."""

from __future__ import annotations

import pytest
from support.simulation import model, ram
from support.stepper import Stepper, only

from swapd.core import events as ev
from swapd.core.effects import Grant
from swapd.core.fairness import AGEING_S, MAX_CLIENTS, aged_priority, next_request, note_seen, welcome
from swapd.core.ledger import Model, Request


def request(request_id: str, client: str = "alice", priority: int = 0, arrived_at_s: float = 0.0) -> Request:
    return Request(request_id, "a", client, priority, arrived_at_s)


def test_a_higher_priority_goes_first_whoever_came_earlier() -> None:
    queue = [request("early"), request("urgent", priority=1, arrived_at_s=1.0)]
    assert next_request(queue, {}, 2.0).id == "urgent"


def test_within_a_priority_the_client_served_least_goes_first() -> None:
    queue = [request("greedy", "bob"), request("modest", "carol", arrived_at_s=1.0)]
    assert next_request(queue, {"bob": 500.0, "carol": 20.0}, 2.0).id == "modest"


def test_between_equals_the_earlier_one_goes_first() -> None:
    queue = [request("second", "bob", arrived_at_s=1.0), request("first", "carol", arrived_at_s=0.5)]
    assert next_request(queue, {}, 2.0).id == "first"


@pytest.mark.parametrize(("waited_s", "expected"), [(0.0, 0), (AGEING_S - 0.1, 0), (AGEING_S, 1), (3 * AGEING_S, 3)])
def test_waiting_lifts_a_request_one_class_at_a_time(waited_s: float, expected: int) -> None:
    assert aged_priority(0, waited_s) == expected


def test_an_old_request_overtakes_a_younger_one_of_a_higher_class() -> None:
    queue = [request("old"), request("new", priority=1, arrived_at_s=2 * AGEING_S)]
    assert next_request(queue, {}, 2 * AGEING_S).id == "old"


def test_a_greedy_client_cannot_be_starved_by_modest_ones() -> None:
    """One slot, a fresh client every second for ever: the greedy one is served once it has aged a class."""
    stepper = Stepper([ram(1000)], model("a", 100, slots=1, queue_timeout_s=1e6, stall_timeout_s=1e6))
    stepper.serve("0", "a", "greedy")
    stepper.post(ev.TokensServed("a", "greedy", 1_000_000))
    stepper.arrive("rival", "a", "rival")
    stepper.arrive("greedy again", "a", "greedy")
    running = "0"
    for number in range(1, 200):
        stepper.wait(1.0)
        stepper.arrive(f"n{number}", "a", f"new{number}")
        (grant,) = only(Grant, stepper.finish(running))
        running = grant.request_id
        if running == "greedy again":
            assert grant.waited_s <= 3 * AGEING_S
            return
    raise AssertionError("the greedy client starved")


def account(**served: float) -> Model:
    return Model(model("a", 100), known_since_s=0.0, served_tokens=dict(served))


def test_a_newcomer_starts_level_with_the_least_served_of_those_at_work() -> None:
    one = account(bob=900.0, carol=400.0)
    welcome(one, "dave", ["bob", "carol"])
    assert one.served_tokens["dave"] == 400.0


def test_a_client_that_was_served_more_keeps_its_account() -> None:
    one = account(bob=900.0, carol=400.0)
    welcome(one, "bob", ["carol"])
    assert one.served_tokens["bob"] == 900.0


def test_a_client_that_is_at_work_keeps_the_credit_it_waits_with() -> None:
    one = account(bob=900.0, carol=100.0)
    welcome(one, "carol", ["bob", "carol"])
    assert one.served_tokens["carol"] == 100.0


def test_a_newcomer_between_two_requests_of_the_only_client_starts_level_with_it() -> None:
    """A closed-loop client is away for a moment after each answer; that must not open a free account."""
    one = account(bob=900.0)
    note_seen(one, "bob", 10.0)
    welcome(one, "carol", [])
    assert one.served_tokens["carol"] == 900.0


def test_a_newcomer_does_not_push_everyone_aside() -> None:
    stepper = Stepper([ram(1000)], model("a", 100, slots=1))
    stepper.serve("b0", "a", "bob")
    stepper.post(ev.TokensServed("a", "bob", 5000))
    granted = []
    running = "b0"
    for number in range(10):
        stepper.arrive(f"b{number + 1}", "a", "bob")
        stepper.arrive(f"n{number}", "a", "newcomer")
        (grant,) = only(Grant, stepper.finish(running))
        running = grant.request_id
        client = stepper.ledger.running[running].client
        stepper.post(ev.TokensServed("a", client, 100))
        granted.append(client)
    assert 4 <= granted.count("bob") <= 6


def test_no_more_clients_are_remembered_than_the_bound() -> None:
    one = account()
    for number in range(3 * MAX_CLIENTS):
        welcome(one, f"client{number}", [])
        note_seen(one, f"client{number}", float(number))
    assert len(one.served_tokens) == len(one.last_seen_s) == MAX_CLIENTS
    assert f"client{3 * MAX_CLIENTS - 1}" in one.served_tokens


def test_the_client_that_came_last_is_forgotten_last() -> None:
    one = account()
    welcome(one, "regular", [])
    for number in range(MAX_CLIENTS - 1):
        welcome(one, f"client{number}", [])
    welcome(one, "regular", [])
    welcome(one, "one more", [])
    assert "regular" in one.served_tokens
    assert "client0" not in one.served_tokens


def test_tokens_of_a_forgotten_client_or_an_unknown_model_are_dropped() -> None:
    stepper = Stepper([ram(1000)], model("a", 100))
    assert only(Grant, stepper.post(ev.TokensServed("a", "nobody", 5))) == []
    stepper.post(ev.TokensServed("gone", "nobody", 5))
    assert stepper.model("a").served_tokens == {}
