"""How often a model is asked for, and how soon its clients come back."""

from __future__ import annotations

import pytest

from swapd.core.demand import MAX_CLIENTS, MEMORY_S, Demand


def steady(every_s: float, *, until_s: float) -> Demand:
    demand = Demand()
    at_s = 0.0
    while at_s <= until_s:
        demand.note("alice", None, at_s)
        at_s += every_s
    return demand


def test_nothing_is_expected_of_a_model_nobody_asked_for() -> None:
    assert Demand().per_s(100.0) == 0.0


@pytest.mark.parametrize("until_s", [60.0, 600.0, 6000.0])
def test_a_steady_rate_is_known_from_the_first_minute_on(until_s: float) -> None:
    assert steady(3.0, until_s=until_s).per_s(until_s) == pytest.approx(1 / 3, rel=0.06)


def test_a_rate_fades_when_nobody_asks_any_more() -> None:
    demand = steady(1.0, until_s=3600.0)
    assert demand.per_s(3600.0 + 3 * MEMORY_S) == pytest.approx(0.05, rel=0.02)


def test_one_arrival_is_worth_less_the_longer_it_stays_the_only_one() -> None:
    demand = Demand()
    demand.note("alice", None, 100.0)
    assert demand.per_s(100.0) == pytest.approx(1.0, rel=0.01)
    assert demand.per_s(110.0) == pytest.approx(0.1, rel=0.05)


def test_how_soon_a_client_comes_back_is_learned_from_when_it_did() -> None:
    demand = Demand()
    demand.note("alice", None, 0.0)
    assert demand.returns_s("alice") == 0.0, "it may be a loop, or never come again: the first time it is waited for"
    demand.note("alice", 4.0, 12.0)
    assert demand.returns_s("alice") == 8.0
    demand.note("alice", 13.0, 15.0)
    assert demand.returns_s("alice") == 5.0
    assert demand.returns_s("bob") == 0.0


def test_clients_are_remembered_within_bounds() -> None:
    demand = Demand()
    for number in range(MAX_CLIENTS + 10):
        demand.note(f"c{number}", 0.0, 1.0)
    assert len(demand.returning_s) == MAX_CLIENTS
    assert demand.returns_s("c0") == 0.0
    assert demand.returns_s(f"c{MAX_CLIENTS + 9}") == 1.0
