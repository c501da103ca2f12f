"""Who is granted first inside one model's queue."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from support.simulation import CALM, Simulation, model, ram
from support.stepper import Stepper, only

from swapd.core import events as ev
from swapd.core.effects import Grant
from swapd.core.fairness import (
    AGED_EVERY,
    AGED_S,
    AGEING_S,
    MAX_CLIENTS,
    aged_priority,
    in_order,
    next_request,
    note_seen,
)
from swapd.core.records import Model
from swapd.core.requests import MAX_UNSETTLED, MAX_VOID, Request, Shares, rank


def arrived(stepper: Stepper, request_id: str, client: str, *, priority: int = 0, at_s: float | None = None) -> None:
    if at_s is not None:
        stepper.now_s = at_s
    stepper.arrive(request_id, "a", client, priority)


def unloaded(**settings: object) -> Stepper:
    """A model whose requests all wait, because it never becomes ready."""
    return Stepper([ram(1000)], model("a", 100, queue_timeout_s=1e6, load_timeout_s=1e6, **settings))


def one_slot(**settings: object) -> Stepper:
    spec = model("a", 100, slots=1, queue_timeout_s=1e6, stall_timeout_s=1e6, **settings)
    return Stepper([ram(1000)], spec)


def account(**settled: int) -> Stepper:
    """Clients that wait, with accounts of so many tokens."""
    stepper = unloaded()
    for client in settled:
        stepper.arrive(f"{client}0", "a", client)
    for client, tokens in settled.items():
        stepper.post(ev.TokensServed("a", client, tokens))
    return stepper


def next_of(stepper: Stepper) -> str:
    return next_request(stepper.model("a"), stepper.now_s).id


def planned(stepper: Stepper) -> list[str]:
    return [request.id for request in in_order(stepper.model("a"))]


def test_a_higher_priority_goes_first_whoever_came_earlier() -> None:
    stepper = unloaded()
    arrived(stepper, "early", "alice")
    arrived(stepper, "urgent", "alice", priority=1, at_s=1.0)
    assert next_of(stepper) == "urgent"
    assert planned(stepper) == ["urgent", "early"]


def test_within_a_priority_the_client_served_least_goes_first() -> None:
    stepper = account(bob=500, carol=20)
    assert next_of(stepper) == "carol0"


def test_between_equals_the_earlier_one_goes_first() -> None:
    stepper = unloaded()
    arrived(stepper, "first", "carol", at_s=0.5)
    arrived(stepper, "second", "bob", at_s=1.0)
    assert next_of(stepper) == "first"


def test_waiting_lifts_a_model_one_class_at_a_time() -> None:
    waits_s = (0.0, AGEING_S - 0.1, AGEING_S, 3 * AGEING_S)
    assert [aged_priority(0, waited_s) for waited_s in waits_s] == [0, 0, 1, 3]


def test_what_runs_is_charged_by_its_estimate_so_that_many_at_once_are_not_granted_for_nothing() -> None:
    stepper = Stepper([ram(1000)], model("a", 100, slots=8))
    for number in range(50):
        stepper.arrive(f"h{number}", "a", "hog")
    for number in range(3):
        stepper.arrive(f"m{number}", "a", "modest")
    stepper.ready("a")
    assert Counter(request.client for request in stepper.ledger.running.values()) == {"hog": 5, "modest": 3}


def test_a_long_prompt_is_charged_more_than_a_short_one() -> None:
    stepper = Stepper([ram(1000)], model("a", 100, slots=6))
    for number in range(6):
        stepper.post(ev.RequestArrived(f"l{number}", "a", "long", prompt_tokens=744, answer_limit=1000))
        stepper.post(ev.RequestArrived(f"s{number}", "a", "short", prompt_tokens=0, answer_limit=250))
    stepper.ready("a")
    assert Counter(request.client for request in stepper.ledger.running.values()) == {"short": 4, "long": 2}


def test_an_estimate_is_the_prompt_and_what_answers_usually_have_within_the_requests_limit() -> None:
    stepper = Stepper([ram(1000)], model("a", 100))
    stepper.serve("1", "a")
    assert stepper.ledger.running["1"].estimated_tokens == 256
    stepper.post(ev.TokensServed("a", "alice", 107, "1", answer_tokens=100))
    stepper.post(ev.RequestArrived("2", "a", "alice", prompt_tokens=7, answer_limit=32_000))
    stepper.post(ev.RequestArrived("3", "a", "alice", prompt_tokens=7, answer_limit=20))
    stepper.post(ev.RequestArrived("4", "a", "alice", prompt_tokens=7, answer_limit=0))
    every = {**stepper.ledger.running, **stepper.ledger.waiting}
    assert [every[key].estimated_tokens for key in "234"] == [107, 27, 7]


@pytest.mark.parametrize("late", [False, True])
def test_a_charge_is_put_right_once_the_tokens_are_counted(late: bool) -> None:
    stepper = Stepper([ram(1000)], model("a", 100))
    stepper.arrive("1", "a")
    stepper.ready("a")
    shares = stepper.model("a").shares
    assert shares.active["alice"].level == 256.0
    happened = [ev.RequestFinished("1", True), ev.TokensServed("a", "alice", 40, "1")]
    for event in happened if late else reversed(happened):
        stepper.post(event)
    assert shares.away["alice"].level == 40.0
    assert shares.unsettled == {}


def test_a_request_that_is_never_counted_stays_charged_by_its_estimate() -> None:
    stepper = Stepper([ram(1000)], model("a", 100))
    stepper.serve("1", "a")
    stepper.finish("1")
    assert stepper.model("a").shares.away["alice"].level == 256.0


def test_a_request_that_its_worker_lost_is_not_charged() -> None:
    stepper = Stepper([ram(1000)], model("a", 100))
    stepper.serve("1", "a")
    stepper.exit("a")
    assert stepper.model("a").shares.away["alice"].level == 0.0


def test_a_newcomer_is_not_put_behind_by_estimates_that_turn_out_too_high() -> None:
    """Long prompts that are cached cost next to nothing; while they run, nobody knows."""
    stepper = Stepper([ram(1000)], model("a", 100))
    stepper.load("a")
    stepper.post(ev.RequestArrived("agent", "a", "agent", prompt_tokens=25_000))
    stepper.arrive("chat", "a", "chat")
    shares = stepper.model("a").shares
    assert (shares.active["agent"].served, shares.active["chat"].served) == (0.0, 0.0)


def test_a_client_of_twice_the_weight_is_served_twice_as_much() -> None:
    stepper = one_slot()
    stepper.serve("0", "a", "someone")
    running = "0"
    for number in range(60):
        stepper.post(ev.RequestArrived(f"h{number}", "a", "heavy", weight=2.0))
        stepper.post(ev.RequestArrived(f"l{number}", "a", "light"))
    granted: Counter[str] = Counter()
    for _ in range(60):
        request = stepper.ledger.running[running]
        stepper.post(ev.TokensServed("a", request.client, 100, running))
        (grant,) = only(Grant, stepper.finish(running))
        running = grant.request_id
        granted[stepper.ledger.running[running].client] += 1
    assert granted == {"heavy": 40, "light": 20}


def level(stepper: Stepper, client: str) -> float:
    return stepper.model("a").shares.active[client].level


def test_a_newcomer_starts_level_with_the_least_served_of_those_at_work() -> None:
    stepper = account(bob=900, carol=400)
    stepper.arrive("d", "a", "dave")
    assert level(stepper, "dave") == 400.0


def test_a_client_that_was_served_more_keeps_its_account_while_it_is_away() -> None:
    stepper = account(bob=900, carol=400)
    stepper.cancel("bob0")
    stepper.arrive("b", "a", "bob")
    assert level(stepper, "bob") == 900.0


def test_a_client_that_is_at_work_keeps_the_credit_it_waits_with() -> None:
    stepper = account(bob=900, carol=100)
    stepper.arrive("c", "a", "carol")
    assert level(stepper, "carol") == 100.0


def test_a_newcomer_between_two_requests_of_the_only_client_starts_level_with_it() -> None:
    """A closed-loop client is away for a moment after each answer; that must not open a free account."""
    stepper = account(bob=900)
    stepper.cancel("bob0")
    stepper.arrive("c", "a", "carol")
    assert level(stepper, "carol") == 900.0


def test_a_newcomer_does_not_push_everyone_aside() -> None:
    stepper = one_slot()
    stepper.serve("b0", "a", "bob")
    stepper.post(ev.TokensServed("a", "bob", 5000, "b0"))
    granted = []
    running = "b0"
    for number in range(10):
        stepper.arrive(f"b{number + 1}", "a", "bob")
        stepper.arrive(f"n{number}", "a", "newcomer")
        (grant,) = only(Grant, stepper.finish(running))
        running = grant.request_id
        client = stepper.ledger.running[running].client
        stepper.post(ev.TokensServed("a", client, 100, running))
        granted.append(client)
    assert 4 <= granted.count("bob") <= 6


def test_no_more_clients_are_remembered_than_the_bound() -> None:
    stepper = unloaded()
    for number in range(2 * MAX_CLIENTS):
        stepper.arrive(f"r{number}", "a", f"client{number}")
        stepper.cancel(f"r{number}")
    away = stepper.model("a").shares.away
    assert len(away) == MAX_CLIENTS
    assert f"client{2 * MAX_CLIENTS - 1}" in away
    seen = Model(model("a", 100), known_since_s=0.0)
    for number in range(2 * MAX_CLIENTS):
        note_seen(seen, f"client{number}", float(number))
    assert len(seen.last_seen_s) == MAX_CLIENTS


def test_a_client_at_work_is_never_forgotten() -> None:
    stepper = unloaded()
    stepper.arrive("patient", "a", "regular")
    stepper.post(ev.TokensServed("a", "regular", 70))
    for number in range(MAX_CLIENTS + 10):
        stepper.arrive(f"r{number}", "a", f"client{number}")
        stepper.cancel(f"r{number}")
    assert level(stepper, "regular") == 70.0


def test_tokens_of_a_forgotten_client_or_an_unknown_model_are_dropped() -> None:
    stepper = Stepper([ram(1000)], model("a", 100))
    assert only(Grant, stepper.post(ev.TokensServed("a", "nobody", 5))) == []
    stepper.post(ev.TokensServed("gone", "nobody", 5))
    shares = stepper.model("a").shares
    assert (shares.active, shares.away) == ({}, {})


def test_a_model_listed_anew_while_an_old_request_runs_begins_with_clean_accounts() -> None:
    stepper = Stepper([ram(1000)], model("a", 100))
    stepper.serve("old", "a")
    stepper.post(ev.ModelsChanged(()))
    stepper.post(ev.ModelsChanged((model("a", 100, launch_key="2"),)))
    stepper.arrive("new", "a")
    stepper.post(ev.TokensServed("a", "alice", 9, "old"))
    stepper.finish("old")
    account = stepper.model("a").shares.active["alice"]
    assert (account.waiting, account.running, account.level) == (1, 0, 0.0)


def test_the_planned_order_is_the_order_of_grants() -> None:
    rng = random.Random(11)
    stepper = one_slot(max_waiting=1000, priority=0)
    stepper.serve("0", "a", "c0")
    for number in range(80):
        stepper.now_s += 0.01
        event = ev.RequestArrived(f"r{number}", "a", f"c{rng.randrange(6)}", rng.choice([0, 0, -1]))
        stepper.post(ev.RequestArrived(event.request_id, "a", event.client, event.priority, rng.randrange(400)))
    stepper.finish("0")
    (running,) = stepper.ledger.running
    expected, granted = planned(stepper), []
    while stepper.ledger.waiting:
        (grant,) = only(Grant, stepper.finish(running))
        running = grant.request_id
        granted.append(running)
    assert granted == expected


# -- nobody starves --------------------------------------------------------------------------------------------


def grants_until(stepper: Stepper, running: str, wanted: str, flood: str, *, priority: int = 0) -> tuple[int, float]:
    """One slot, two fresh requests every second for ever: after how many grants, and seconds, is one granted?"""
    since_s = stepper.now_s
    for number in range(1, 1000):
        stepper.wait(1.0)
        for twice in range(2):
            stepper.arrive(f"{flood}{number}.{twice}", "a", f"{flood}{number}", priority)
        (grant,) = only(Grant, stepper.finish(running))
        running = grant.request_id
        stepper.post(ev.TokensServed("a", stepper.ledger.running[running].client, 100, running))
        if running == wanted:
            return number, stepper.now_s - since_s
    raise AssertionError(f"{wanted} starved")


def test_a_greedy_client_cannot_be_starved_by_fresh_ones_for_ever() -> None:
    stepper = one_slot()
    stepper.serve("0", "a", "rival")
    stepper.arrive("rival again", "a", "rival")
    stepper.arrive("greedy", "a", "greedy")
    stepper.post(ev.TokensServed("a", "greedy", 1_000_000))
    _, waited_s = grants_until(stepper, "0", "greedy", "new")
    assert waited_s <= AGED_S + 2 * AGED_EVERY


def test_the_lowest_class_is_served_within_the_stated_bound() -> None:
    stepper = one_slot(max_waiting=10_000)
    stepper.serve("0", "a", "someone")
    older = 5
    for number in range(older):
        stepper.arrive(f"older{number}", "a", f"other{number}", -50)
    stepper.arrive("lowest", "a", "batch", -100)
    _, waited_s = grants_until(stepper, "0", "lowest", "new", priority=100)
    assert waited_s <= AGED_S + AGED_EVERY * (older + 1)


def test_a_long_queue_of_one_clients_old_requests_does_not_hold_up_another_client() -> None:
    stepper = one_slot(max_waiting=10_000)
    stepper.serve("0", "a", "hog")
    for number in range(200):
        stepper.arrive(f"h{number}", "a", "hog")
    stepper.wait(10 * AGED_S)
    stepper.arrive("m", "a", "modest")
    grants = [only(Grant, stepper.finish("0"))[0].request_id]
    grants.append(only(Grant, stepper.finish(grants[0]))[0].request_id)
    assert "m" in grants


# -- one with fifty requests at once, one with a single one at a time ------------------------------------------


@pytest.mark.parametrize("slots", [1, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_one_request_at_a_time_waits_a_fair_share_and_a_batch_at_most_beside_fifty(slots: int, seed: int) -> None:
    """Fair is every second place: the modest client's request gets the first that becomes free, or the one after."""
    simulation = Simulation(random.Random(seed), [ram(1000)], [model("a", 100, slots=slots)], CALM)
    longest_s = 2.0
    simulation.service_s = lambda _: simulation.rng.uniform(0.5, longest_s)
    simulation.tokens = lambda _: 100
    sent = {"hog": 0, "modest": 0}

    def send(client: str) -> None:
        sent[client] += 1
        simulation.request(f"{client}-{sent[client]}", "a", client)

    def again(request_id: str, outcome: str) -> None:
        assert outcome == "finished"
        if simulation.now_s < 600.0:
            send(request_id.partition("-")[0])

    simulation.on_done = again
    for _ in range(50):
        send("hog")
    simulation.run(until_s=100.0)
    send("modest")
    simulation.run()
    modest = [waited_s for request_id, waited_s in simulation.waits_s.items() if request_id.startswith("modest")]
    hog = [waited_s for request_id, waited_s in simulation.waits_s.items() if request_id.startswith("hog")]
    assert len(modest) > 100
    # One batch for the place, and one more where the oldest of all goes first.
    assert max(modest) <= 2 * longest_s
    assert max(modest) < sum(hog) / len(hog)


@pytest.mark.parametrize("seed", range(8))
def test_who_is_first_is_known_whatever_became_of_the_accounts(seed: int) -> None:
    """Kept by what changes, and the same as looking at every account."""
    rng = random.Random(seed)
    shares = Shares()
    waiting: list[Request] = []
    running: list[Request] = []
    ended: list[Request] = []
    for number in range(600):
        action = rng.choice(["enter", "enter", "leave", "start", "start", "end", "settle", "late"])
        if action == "enter":
            one = Request(f"r{number}", "m", f"c{rng.randrange(12)}", rng.choice([0, 0, 1]), float(number), 10)
            waiting.append(one)
            shares.enter(one)
        elif action in ("leave", "start") and waiting:
            one = waiting.pop(rng.randrange(len(waiting)))
            if action == "leave":
                shares.leave(one)
            else:
                shares.start(one)
                running.append(one)
        elif action == "settle" and running:
            shares.settle(rng.choice(running), rng.randrange(50))
        elif action == "end" and running:
            ended.append(running.pop(rng.randrange(len(running))))
            shares.end(ended[-1], refund=rng.random() < 0.2)
        elif action == "late" and ended:
            one = ended.pop()
            shares.settle_late(one.id, one.client, rng.randrange(50))
        ranked = [(rank(one.head(), one.level), one) for one in shares.active.values() if one.waiting]
        if ranked:
            assert shares.first() is min(ranked, key=lambda pair: pair[0])[1].head()
        assert len(shares.ranks) <= MAX_VOID + 2 * len(shares.active)
        assert shares.waiting_since_us == sum(one.arrived_us for one in waiting)


def test_a_client_that_only_runs_has_no_place_in_the_order_of_what_waits() -> None:
    stepper = one_slot()
    stepper.serve("a0", "a", "alice")
    stepper.arrive("b0", "a", "bob")
    assert planned(stepper) == ["b0"]


def test_what_was_charged_for_requests_that_are_never_counted_is_kept_within_a_bound() -> None:
    stepper = one_slot()
    stepper.load("a")
    for number in range(MAX_UNSETTLED + 5):
        stepper.serve(str(number), "a")
        stepper.finish(str(number))
    unsettled = stepper.model("a").shares.unsettled
    assert len(unsettled) == MAX_UNSETTLED
    assert next(iter(unsettled)) == "5", "the oldest are settled as they were charged"
