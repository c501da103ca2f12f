"""Cutting consecutive layers over devices: a way is found whenever there is one, and it is in proportion."""

from __future__ import annotations

from itertools import accumulate, combinations_with_replacement, pairwise

from hypothesis import given
from hypothesis import strategies as st

from swapd.core.fit import cut, longest_tail


def sums(*sizes: int) -> list[int]:
    return list(accumulate(sizes, initial=0))


def test_equal_layers_go_by_what_each_device_has_free() -> None:
    assert cut(sums(*[10] * 12), 0, [200, 100]) == (8, 4)
    assert cut(sums(*[10] * 12), 0, [1000, 1000, 1000]) == (4, 4, 4)


def test_layers_before_the_first_are_left_out() -> None:
    assert cut(sums(*[10] * 12), 6, [100, 100]) == (3, 3)


def test_a_large_last_layer_moves_the_cut() -> None:
    assert cut(sums(10, 10, 10, 10, 100), 0, [100, 100]) == (4, 1)
    assert cut(sums(10, 10, 10, 10, 100), 0, [100, 99]) is None


def test_where_the_proportion_does_not_fit_the_nearest_cut_that_does_is_taken() -> None:
    assert cut(sums(60, 60, 60), 0, [119, 121]) == (1, 2)


def test_a_device_without_room_gets_nothing() -> None:
    assert cut(sums(10, 10), 0, [-5, 30]) == (0, 2)
    assert cut(sums(10, 10), 0, [30, 0]) == (2, 0)


def test_the_longest_tail_that_fits() -> None:
    assert longest_tail(sums(10, 10, 10, 50), [60]) == 2
    assert longest_tail(sums(10, 10, 10, 50), [25, 60]) == 0
    assert longest_tail(sums(10, 10, 10, 50), [49]) == 4
    assert longest_tail(sums(10), [-1]) == 1


layers = st.lists(st.integers(0, 50), min_size=1, max_size=7)
capacities = st.lists(st.integers(-10, 120), min_size=1, max_size=3)


def all_cuts(sizes: list[int], room: list[int]) -> list[tuple[int, ...]]:
    """Every way to fit all layers, by trying all."""
    found = []
    for bounds in combinations_with_replacement(range(len(sizes) + 1), len(room) - 1):
        edges = [0, *bounds, len(sizes)]
        pieces = [sizes[start:end] for start, end in pairwise(edges)]
        if all(not piece or sum(piece) <= size > 0 for piece, size in zip(pieces, room, strict=True)):
            found.append(tuple(map(len, pieces)))
    return found


@given(layers, capacities)
def test_a_cut_is_found_exactly_when_there_is_one(sizes: list[int], room: list[int]) -> None:
    found = cut(sums(*sizes), 0, room)
    possible = all_cuts(sizes, room)
    assert found in possible if possible else found is None


@given(layers, capacities)
def test_the_tail_is_as_long_as_any_that_fits(sizes: list[int], room: list[int]) -> None:
    first = longest_tail(sums(*sizes), room)
    assert cut(sums(*sizes), first, room) is not None
    assert all(not all_cuts(sizes[start:], room) for start in range(first))
