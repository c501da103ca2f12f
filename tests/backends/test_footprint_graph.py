"""Laying out the tensors of a computation in one buffer."""

from __future__ import annotations

from backends.footprint.graph import ALIGNMENT_BYTES, Graph

KIB = 1024


def test_a_chain_needs_room_for_two_neighbours_at_a_time() -> None:
    graph = Graph()
    x = graph.input(4 * KIB)
    for _ in range(10):
        x = graph.op(4 * KIB, x)
    graph.consume(x)
    assert graph.peak_bytes() == 2 * 4 * KIB


def test_a_result_in_place_takes_no_further_room() -> None:
    graph = Graph()
    x = graph.input(4 * KIB)
    for _ in range(10):
        x = graph.same(x)
    assert graph.peak_bytes() == 4 * KIB


def test_a_source_that_is_needed_again_is_not_written_over() -> None:
    graph = Graph()
    x = graph.input(4 * KIB)
    y = graph.same(x)
    graph.same(y, x)
    assert graph.peak_bytes() == 2 * 4 * KIB


def test_a_source_somebody_looks_at_through_a_view_is_not_written_over() -> None:
    graph = Graph()
    x = graph.input(4 * KIB)
    shown = graph.view(x)
    y = graph.same(x)
    graph.consume(shown, y)
    assert graph.peak_bytes() == 2 * 4 * KIB


def test_a_view_keeps_its_bytes_until_it_has_been_used() -> None:
    graph = Graph()
    x = graph.op(8 * KIB, graph.input(32))
    part = graph.view(x, KIB)
    y = graph.op(8 * KIB, part)
    graph.op(8 * KIB, y)  # the first one's bytes are free again by now
    assert graph.peak_bytes() == ALIGNMENT_BYTES + 2 * 8 * KIB


def test_the_smallest_hole_that_is_large_enough_is_filled_first() -> None:
    graph = Graph()
    start = graph.input(32)
    large, wall, small, end = (graph.op(size, start) for size in (8 * KIB, 32, 2 * KIB, 32))
    graph.consume(large)
    graph.consume(small)
    graph.consume(graph.op(KIB, start), graph.op(8 * KIB, start), wall, end)  # else there is no room for the second
    assert graph.peak_bytes() == 3 * 32 + 8 * KIB + 2 * KIB


def test_holes_beside_each_other_become_one() -> None:
    graph = Graph()
    start = graph.input(32)
    first, second, third, end = (graph.op(size, start) for size in (4 * KIB, 4 * KIB, 4 * KIB, 32))
    for part in (first, third, second):
        graph.consume(part)
    graph.consume(graph.op(12 * KIB, start), end)
    assert graph.peak_bytes() == 2 * 32 + 12 * KIB


def test_sizes_are_rounded_up_to_the_alignment() -> None:
    graph = Graph()
    graph.consume(graph.op(1, graph.input(1)))
    assert graph.peak_bytes() == 2 * ALIGNMENT_BYTES
