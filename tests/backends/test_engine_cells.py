from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.llama_cpp.engine.cells import Cells, Holding, held_by_only


def test_a_shared_cell_is_free_only_when_its_last_holder_lets_go() -> None:
    cells = Cells(10)
    first = Holding()
    cells.grow(first, 6)
    shared = cells.share(first, 4)
    assert cells.free == 4
    cells.release(first)
    assert cells.free == 6
    cells.release(shared)
    assert cells.free == 10


def test_taking_more_cells_than_are_free_is_a_defect() -> None:
    cells = Cells(3)
    holding = Holding()
    cells.grow(holding, 2)
    with pytest.raises(AssertionError, match="2 cells taken, 1 free"):
        cells.grow(holding, 2)


def test_what_grows_behind_a_shared_beginning_is_ones_own() -> None:
    cells = Cells(20)
    first = Holding()
    cells.grow(first, 5)
    second = cells.share(first, 5)
    cells.grow(first, 3)
    cells.grow(second, 2)
    assert (first.length, second.length, cells.used) == (8, 7, 10)
    assert held_by_only([first]) == 3
    assert held_by_only([second]) == 2
    assert held_by_only([first, second]) == 10


def test_a_cut_end_is_free_and_the_shared_beginning_stays() -> None:
    cells = Cells(20)
    first = Holding()
    cells.grow(first, 8)
    second = cells.share(first, 6)
    cells.cut(first, 3)
    assert (first.length, second.length, cells.used) == (3, 6, 6)
    cells.cut(second, 3)
    assert cells.used == 3


Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(st.sampled_from(("grow", "share", "cut", "release")), st.integers(0, 10), st.integers(0, 12)), max_size=60
)


@given(steps)
def test_the_book_agrees_with_plain_sets_over_any_history(history: list[Step]) -> None:
    cells = Cells(64)
    held: list[tuple[Holding, list[int]]] = [(Holding(), [])]
    fresh = 0
    for what, which, count in history:
        holding, plain = held[which % len(held)]
        if what == "grow" and count <= cells.free:
            cells.grow(holding, count)
            plain += range(fresh, fresh + count)
            fresh += count
        elif what == "share":
            length = min(count, len(plain))
            held.append((cells.share(holding, length), plain[:length]))
        elif what == "cut":
            length = min(count, len(plain))
            cells.cut(holding, length)
            del plain[length:]
        elif what == "release":
            cells.release(holding)
            plain.clear()
        union = {cell for _, owned in held for cell in owned}
        assert cells.used == len(union)
        assert [holding.length for holding, _ in held] == [len(owned) for _, owned in held]
        others = {cell for _, owned in held[1:] for cell in owned}
        assert held_by_only([held[0][0]]) == len(set(held[0][1]) - others)
