from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.llama_cpp.engine.prefix import Cells, Retired, RetiredPrefixes, common_prefix


@given(
    shared=st.lists(st.integers(0, 9), max_size=600),
    first=st.lists(st.integers(0, 9), max_size=5),
    second=st.lists(st.integers(0, 9), max_size=5),
    limit=st.integers(0, 700),
)
def test_the_common_prefix_is_what_a_plain_loop_finds(
    shared: list[int], first: list[int], second: list[int], limit: int
) -> None:
    a, b = shared + first, shared + second
    expected = 0
    while expected < min(len(a), len(b), limit) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(a, b, limit) == expected


def test_a_shared_cell_is_free_only_when_its_last_holder_lets_go() -> None:
    cells = Cells(10)
    first = cells.take(6)
    shared = first[:4]
    cells.share(shared)
    assert cells.free == 4
    cells.release(first)
    assert cells.free == 6
    cells.release(shared)
    assert cells.free == 10


def test_taking_more_cells_than_are_free_is_a_defect() -> None:
    cells = Cells(3)
    cells.take(2)
    with pytest.raises(AssertionError, match="2 cells taken, 1 free"):
        cells.take(2)


@given(st.lists(st.integers(0, 8), max_size=60), st.randoms(use_true_random=False))
def test_the_book_of_cells_adds_up_over_any_history(counts: list[int], random: object) -> None:
    cells = Cells(64)
    held: list[list[int]] = []
    for count in counts:
        if held and random.random() < 0.4:  # type: ignore[attr-defined]
            cells.release(held.pop(random.randrange(len(held))))  # type: ignore[attr-defined]
        elif count <= cells.free:
            taken = cells.take(count)
            assert not set(taken) & {cell for other in held for cell in other}
            held.append(taken)
        assert cells.free == 64 - sum(map(len, held))


def kept(seq_id: int, *tokens: int) -> Retired:
    return Retired(seq_id, tokens, tuple(range(len(tokens))))


def test_the_least_recently_used_prefix_gives_way() -> None:
    prefixes = RetiredPrefixes(2)
    one, two, three = kept(1, 1, 1), kept(2, 2, 2), kept(3, 3, 3)
    assert prefixes.add(one) == []
    assert prefixes.add(two) == []
    prefixes.touch(one)
    assert prefixes.add(three) == [two]
    assert prefixes.give_up_oldest() is one
    assert prefixes.give_up_oldest() is three
    assert prefixes.give_up_oldest() is None


def test_a_longer_conversation_replaces_its_own_beginning() -> None:
    prefixes = RetiredPrefixes(4)
    beginning, other, longer = kept(1, 5, 6), kept(2, 7), kept(3, 5, 6, 8)
    prefixes.add(beginning)
    prefixes.add(other)
    assert prefixes.add(longer) == [beginning]
    assert list(prefixes) == [other, longer]


def test_a_sequence_that_adds_nothing_is_not_kept_but_refreshes_the_one_that_has_it() -> None:
    prefixes = RetiredPrefixes(4)
    whole, other, part = kept(1, 5, 6, 7), kept(2, 9), kept(3, 5, 6)
    prefixes.add(whole)
    prefixes.add(other)
    assert prefixes.add(part) == [part]
    assert list(prefixes) == [other, whole]


def test_without_slots_or_tokens_nothing_is_kept() -> None:
    assert len(RetiredPrefixes(0)) == 0
    lone = kept(1, 5)
    assert RetiredPrefixes(0).add(lone) == [lone]
    empty = kept(1)
    assert RetiredPrefixes(2).add(empty) == [empty]
