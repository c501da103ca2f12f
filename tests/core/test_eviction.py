"""Who leaves: enough, no more than enough, and the cheapest who help."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from swapd.core import eviction
from swapd.core.eviction import Candidate, freed


def worker(worker_id: int, *, busy: bool = False, cost_s: float = 1.0, **device_bytes: int) -> Candidate:
    return Candidate(worker_id, device_bytes, busy, cost_s)


def choose_victims(shortage: Mapping[str, int], candidates: list[Candidate]) -> list[int] | None:
    """Who leaves, by number."""
    chosen = eviction.choose_victims(shortage, candidates)
    return None if chosen is None else [victim.worker_id for victim in chosen]


def test_what_is_free_once_some_have_left() -> None:
    assert freed({"RAM": 5}, [worker(1, RAM=10), worker(2, RAM=1, CUDA0=7)]) == {"RAM": 16, "CUDA0": 7}


def test_nothing_is_short_so_nobody_leaves() -> None:
    assert choose_victims({"RAM": 0, "CUDA0": -5}, [worker(1, RAM=100)]) == []


def test_when_all_together_are_too_little_nobody_leaves() -> None:
    assert choose_victims({"RAM": 300}, [worker(1, RAM=100), worker(2, RAM=100)]) is None


def test_who_holds_nothing_where_it_is_short_stays() -> None:
    candidates = [worker(1, CUDA1=900, cost_s=0.0), worker(2, CUDA0=100, cost_s=99.0)]
    assert choose_victims({"CUDA0": 100}, candidates) == [2]


def test_no_more_leave_than_needed() -> None:
    """The two cheap small ones are chosen first, then the large one makes them needless."""
    candidates = [worker(1, RAM=30, cost_s=0.1), worker(2, RAM=30, cost_s=0.1), worker(3, RAM=100, cost_s=50.0)]
    assert choose_victims({"RAM": 100}, candidates) == [3]


def test_an_idle_one_leaves_before_a_busy_one_that_is_cheaper() -> None:
    candidates = [worker(1, RAM=100, busy=True, cost_s=0.1), worker(2, RAM=100, cost_s=99.0)]
    assert choose_victims({"RAM": 100}, candidates) == [2]


def test_the_cheapest_per_byte_that_helps_leaves() -> None:
    """Bytes beyond the shortage count for nothing: 1 frees 100 of use at 3 s, 2 frees 100 of use at 2 s."""
    candidates = [worker(1, RAM=1000, cost_s=3.0), worker(2, RAM=100, cost_s=2.0)]
    assert choose_victims({"RAM": 100}, candidates) == [2]


def test_one_that_frees_both_short_devices_beats_two_that_free_one_each() -> None:
    candidates = [worker(1, CUDA0=100), worker(2, RAM=100), worker(3, CUDA0=100, RAM=100)]
    assert choose_victims({"CUDA0": 100, "RAM": 100}, candidates) == [3]


def test_between_equals_the_oldest_worker_leaves() -> None:
    assert choose_victims({"RAM": 100}, [worker(2, RAM=100), worker(1, RAM=100)]) == [1]


devices = st.dictionaries(st.sampled_from(["CUDA0", "CUDA1", "RAM"]), st.integers(0, 100))
candidates = st.lists(st.tuples(devices, st.booleans(), st.floats(0.0, 100.0)), max_size=8).map(
    lambda rows: [Candidate(number, *row) for number, row in enumerate(rows)]
)


def covers(shortage: Mapping[str, int], leaving: list[Candidate]) -> bool:
    return all(
        sum(one.device_bytes.get(name, 0) for one in leaving) >= size_bytes for name, size_bytes in shortage.items()
    )


@given(devices, candidates)
def test_the_choice_covers_the_shortage_and_none_of_it_is_needless(
    shortage: dict[str, int], candidates: list[Candidate]
) -> None:
    chosen = choose_victims(shortage, candidates)
    if chosen is None:
        assert not covers(shortage, candidates)
        return
    leaving = [candidate for candidate in candidates if candidate.worker_id in chosen]
    assert len(leaving) == len(chosen)
    assert covers(shortage, leaving)
    for one in leaving:
        assert not covers(shortage, [other for other in leaving if other is not one])


@given(devices, candidates)
def test_a_busy_one_leaves_only_where_the_idle_ones_do_not_suffice(
    shortage: dict[str, int], candidates: list[Candidate]
) -> None:
    chosen = choose_victims(shortage, candidates) or []
    if any(one.busy for one in candidates if one.worker_id in chosen):
        assert not covers(shortage, [one for one in candidates if not one.busy])
