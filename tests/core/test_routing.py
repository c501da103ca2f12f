"""The order in which a virtual model's targets are tried: tables of standings in, names and bounds out."""

from __future__ import annotations

import itertools

import pytest

from swapd.core.routing import Attempt, Standing, Strategy, attempts

STRATEGIES: tuple[Strategy, ...] = ("first_loaded", "fallback", "spillover")


def cold(name: str, guess_s: float = 5.0) -> Standing:
    return Standing(name, guess_s=guess_s)


def idle(name: str) -> Standing:
    return Standing(name, ready=True, free=True, wait_s=0.0)


def busy(name: str, wait_s: float | None = None, guess_s: float = 10.0) -> Standing:
    return Standing(name, ready=True, wait_s=wait_s, guess_s=guess_s if wait_s is None else wait_s)


def loading(name: str, wait_s: float | None = None) -> Standing:
    return Standing(name, loading=True, wait_s=wait_s, guess_s=wait_s or 5.0)


def refused(name: str) -> Standing:
    return Standing(name, refused=True)


def tried(strategy: Strategy, *standings: Standing, max_wait_s: float | None = None) -> str:
    """`a<20 b`: a for at most 20 s, then b without a bound."""
    found = attempts(strategy, max_wait_s, standings)
    return " ".join(one.name if one.within_s is None else f"{one.name}<{one.within_s:g}" for one in found)


@pytest.mark.parametrize(
    ("standings", "order"),
    [
        ((cold("a"), cold("b")), "a b"),
        ((cold("a"), busy("b")), "b a"),
        ((cold("a"), loading("b"), busy("c")), "c b a"),
        ((busy("a"), idle("b")), "a b"),
        ((refused("a"), cold("b")), "b a"),
        ((refused("a"), refused("b")), "a b"),
    ],
)
def test_first_loaded_takes_who_is_loaded_else_who_is_being_loaded_else_the_first(standings, order):
    assert tried("first_loaded", *standings) == order


@pytest.mark.parametrize(
    ("standings", "order"),
    [
        ((cold("a"), idle("b")), "a<20 b"),
        ((refused("a"), idle("b")), "a<20 b"),
        ((idle("a"), refused("b")), "a b"),
        ((busy("a", 60.0), idle("b")), "b<20 a"),
        ((busy("a", 60.0), refused("b")), "b<20 a"),
        ((busy("a", 60.0), busy("b", 30.0)), "b a"),
        ((busy("a", 20.0), idle("b")), "a<20 b"),
        ((busy("a"), busy("b"), busy("c")), "a<20 b<20 c"),
        ((loading("a", 25.0), cold("b"), idle("c")), "b<20 c<20 a"),
    ],
)
def test_fallback_keeps_the_order_but_for_waits_that_are_known_to_be_too_long(standings, order):
    assert tried("fallback", *standings, max_wait_s=20.0) == order


def test_fallback_without_a_bound_waits_for_the_first_for_as_long_as_its_queue_lets_it():
    assert tried("fallback", busy("a", 600.0), idle("b")) == "a b"


@pytest.mark.parametrize(
    ("standings", "order"),
    [
        ((idle("a"), idle("b")), "a b"),
        ((busy("a", 3.0), idle("b")), "b a"),
        ((busy("a", 9.0), busy("b", 3.0)), "b a"),
        ((busy("a", 9.0), cold("b", 4.0), refused("c")), "b a c"),
        ((busy("a", 9.0), cold("b", 40.0)), "a b"),
        ((busy("a", 9.0), busy("b", 9.0)), "a b"),
    ],
)
def test_spillover_takes_a_free_place_else_the_shortest_wait(standings, order):
    assert tried("spillover", *standings) == order


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_whatever_the_standings_each_target_is_tried_once_and_the_last_that_is_worth_it_without_a_bound(strategy):
    kinds = (cold("a"), idle("a"), busy("a", 5.0), busy("a", 50.0), busy("a"), loading("a", 50.0), refused("a"))
    for picked in itertools.product(kinds, repeat=3):
        standings = [
            Standing(name, one.ready, one.loading, one.free, one.refused, one.wait_s, one.guess_s)
            for name, one in zip("abc", picked, strict=True)
        ]
        by_name = {one.name: one for one in standings}
        found = attempts(strategy, 20.0, standings)
        assert sorted(one.name for one in found) == ["a", "b", "c"]
        worth = [one for one in found if not by_name[one.name].refused]
        assert not worth or worth[-1].within_s is None, found
        for attempt, following in itertools.pairwise(found):
            late = (by_name[attempt.name].wait_s or 0.0) > 20.0
            assert not late or (by_name[following.name].wait_s or 0.0) > 20.0, "a wait too long came before another"


def test_a_single_target_has_no_bound():
    for strategy in STRATEGIES:
        assert attempts(strategy, 20.0, [cold("a")]) == (Attempt("a", None),)
        assert attempts(strategy, 20.0, []) == ()


def test_no_other_strategy_is_known() -> None:
    with pytest.raises(AssertionError):
        attempts("dice", None, (cold("a"), cold("b")))  # type: ignore[arg-type]
