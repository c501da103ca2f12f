"""Where waiting requests stand, in a real pool with scripted workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.running_pool import ask, config, running_pool, scripted, ticket
from support.simulation import model, ram
from support.stepper import Stepper

from swapd.core import events as ev
from swapd.core.ledger import Ledger
from swapd.pool import places
from swapd.pool.places import Places
from swapd.pool.pool import Pool
from swapd.pool.snapshot import MAX_IN_FLIGHT, in_flight


@asynccontextmanager
async def queued(pool: Pool, *names: tuple[str, str]) -> AsyncIterator[None]:
    """Requests of these ids and clients wait for the model `a`, whose only place is taken."""

    async def one(request_id: str, client: str) -> None:
        async with pool.lease(ticket("a", request_id, client)) as lease:
            await ask(lease)

    async with pool.lease(ticket("a", "holder", "hog")):
        tasks = []
        for number, (request_id, client) in enumerate(names, start=1):
            tasks.append(asyncio.create_task(one(request_id, client)))
            while pool.status().requests.waiting < number:
                await pool.heartbeat()
        yield
    await asyncio.gather(*tasks)


async def test_positions_are_those_of_the_grants_to_come(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", n_parallel=1))) as (pool, _):
        async with queued(pool, ("h1", "hog"), ("h2", "hog"), ("m1", "modest")):
            found = [pool.place(request_id) for request_id in ("m1", "h1", "h2")]
            assert [place.position for place in found if place is not None] == [1, 2, 3]
            assert [place.state for place in found if place is not None] == ["queued"] * 3
            assert pool.place("holder") is None
            assert pool.place("nobody") is None
            waiting = [one for one in pool.in_flight() if one.state == "waiting"]
            assert [(one.id, one.client, one.position) for one in waiting] == [
                ("m1", "modest", 1),
                ("h1", "hog", 2),
                ("h2", "hog", 3),
            ]
            (running,) = [one for one in pool.in_flight() if one.state == "running"]
            assert (running.id, running.model, running.position) == ("holder", "a", None)
        assert pool.in_flight() == ()


async def test_an_expected_wait_is_told_once_a_request_was_served(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", n_parallel=1))) as (pool, _):
        assert pool.status().models[0].expected_wait_s is None
        async with queued(pool, ("1", "bob")):
            place = pool.place("1")
            assert place is not None
            assert place.expected_wait_s is None
        assert pool.status().models[0].expected_wait_s == 0.0
        async with queued(pool, ("1", "bob"), ("2", "bob")):
            waits = [one.expected_wait_s for one in pool.in_flight() if one.state == "waiting"]
            assert waits[0] is not None
            assert waits[1] == pytest.approx(2 * waits[0])
            assert pool.status().models[0].expected_wait_s == pytest.approx(3 * waits[0])


async def test_a_request_that_waits_for_a_load_is_told_so(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", load_s=0.5))) as (pool, _):

        async def one() -> None:
            async with pool.lease(ticket("a", "1")) as lease:
                await ask(lease)

        task = asyncio.create_task(one())
        while (place := pool.place("1")) is None:
            await pool.heartbeat()
        assert place.state == "loading"
        await task


def test_what_a_request_waits_for_is_said_with_the_loads_progress_or_the_models_turn() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800))
    progress = {1: 0.4}
    found = Places(stepper.ledger, progress.get)
    stepper.arrive("1", "a")
    place = found.of("1", 0.0)
    assert place is not None
    assert place.state == "loading, 40 %"
    stepper.ready("a")
    stepper.arrive("2", "b", "bob")
    place = found.of("2", 0.0)
    assert place is not None
    assert place.state == "waits for its turn after 'a'"


def test_an_order_is_worked_out_once_a_second_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = Stepper([ram(1000)], model("a", 100))
    looks = []

    def look(one: object) -> object:
        looks.append(one)
        return in_order(one)  # type: ignore[arg-type]

    in_order = places.in_order
    monkeypatch.setattr(places, "in_order", look)
    found = Places(stepper.ledger, lambda _: None)
    for number in range(5):
        stepper.arrive(str(number), "a")
    for number in range(5):
        assert found.of(str(number), 0.5) is not None
    assert len(looks) == 1
    stepper.post(ev.RequestArrived("late", "a", "bob"))
    late = found.of("late", 0.6)
    assert late is not None
    assert late.position == 2
    assert len(looks) == 2
    assert found.of("0", 0.6 + places.FRESH_S) is not None
    assert len(looks) == 3


def test_a_ledger_without_requests_has_no_places() -> None:
    assert Places(Ledger(), lambda _: None).of("1", 0.0) is None


def test_of_many_requests_only_the_first_are_listed() -> None:
    stepper = Stepper([ram(1000)], model("a", 100, slots=1, max_waiting=1000))
    stepper.serve("running", "a", "hog")
    for number in range(2 * MAX_IN_FLIGHT):
        stepper.arrive(f"r{number}", "a", "hog")
    stepper.arrive("next", "a", "modest")
    listed = in_flight(stepper.ledger, 3.0)
    assert len(listed) == MAX_IN_FLIGHT + 1
    assert [(one.id, one.state, one.position) for one in (listed[0], listed[1], listed[-1])] == [
        ("next", "waiting", 1),
        ("r0", "waiting", 2),
        ("running", "running", None),
    ]
    assert listed[0].waited_s == 3.0
