from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backends.llama_cpp.engine.cells import Cells, Holding
from backends.llama_cpp.engine.prefix import (
    HostShelf,
    Place,
    Retired,
    RetiredPrefixes,
    Saved,
    best_donor,
    common_prefix,
)


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


def kept(seq_id: int, *tokens: int) -> Retired:
    holding = Holding()
    Cells(100).grow(holding, len(tokens))
    return Retired(tokens, Place(seq_id, holding))


def saved(*tokens: int, size_bytes: int = 10) -> Saved:
    return Saved(tokens, np.zeros(size_bytes, np.uint8))


def test_the_donor_with_the_longest_common_beginning_is_asked() -> None:
    short, long, other = kept(1, 1, 2), kept(2, 1, 2, 3), kept(3, 9, 9, 9, 9)
    assert best_donor((1, 2, 3, 4), [short, long, other]) == (long, 3)
    assert best_donor((9, 1), [short, other]) == (other, 1)
    assert best_donor((7, 7), [short, long]) == (None, 0)


def test_the_last_token_is_always_left_to_decode() -> None:
    same = kept(1, 1, 2, 3)
    assert best_donor((1, 2, 3), [same]) == (same, 2)


def test_a_cache_that_cannot_be_cut_is_taken_whole_or_not_at_all() -> None:
    copy = saved(1, 2, 3)
    assert best_donor((1, 2, 3, 4), [copy], whole_only=True) == (copy, 3)
    assert best_donor((1, 2, 4, 4), [copy], whole_only=True) == (None, 0)
    assert best_donor((1, 2, 3), [copy], whole_only=True) == (None, 0)


def test_the_least_recently_used_prefix_gives_way() -> None:
    prefixes = RetiredPrefixes(2)
    one, two, three = kept(1, 1, 1), kept(2, 2, 2), kept(3, 3, 3)
    for each in (one, two, three):
        assert prefixes.add(each) == []
    prefixes.touch(one)
    assert [prefixes.give_up_oldest() for _ in range(4)] == [two, three, one, None]


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


def test_copies_of_finished_sequences_give_way_to_newer_ones() -> None:
    shelf = HostShelf(30)
    one, two, three, four = (saved(number) for number in range(4))
    for each in (one, two, three):
        assert shelf.make_room(10)
        shelf.add(each)
    assert shelf.make_room(10)
    shelf.add(four)
    assert list(shelf) == [two, three, four]
    assert shelf.used_bytes == 30


def test_copies_of_preempted_sequences_never_give_way() -> None:
    shelf = HostShelf(30)
    mine = saved(1, size_bytes=25)
    shelf.hold(mine)
    shelf.add(saved(2, size_bytes=5))
    assert not shelf.make_room(10)
    assert len(shelf) == 1, "nothing is dropped in vain"
    shelf.drop(mine)
    assert shelf.make_room(30)
    assert (len(shelf), shelf.used_bytes) == (0, 0)


def test_a_copy_of_a_longer_conversation_replaces_that_of_its_beginning() -> None:
    shelf = HostShelf(100)
    shelf.add(saved(1, 2))
    longer = saved(1, 2, 3)
    shelf.add(longer)
    assert list(shelf) == [longer]
    assert shelf.used_bytes == 10
