"""Where media lie among a prompt's tokens: arithmetic, checked against counting one by one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.llama_cpp.engine.media import TEXT_ONLY, EmbeddingBatch, Layout, media_tokens
from backends.llama_cpp.engine.types import MediaSpan


def span(start: int, n_tokens: int, n_pos: int | None = None, *, causal: bool = True) -> MediaSpan:
    embeddings = np.arange(n_tokens * 2, dtype=np.float32).reshape(n_tokens, 2)
    positions = np.arange(start, start + n_tokens, dtype=np.int32)[np.newaxis]
    return MediaSpan(start, embeddings, positions, n_tokens if n_pos is None else n_pos, causal)


layouts = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9)).map(lambda s: (s[0], s[1], min(s[1], s[2]))),
    max_size=6,
)


@given(layouts, st.integers(0, 10))
def test_positions_runs_and_boundaries_are_those_of_counting(shape: list[tuple[int, int, int]], tail: int) -> None:
    spans, owner, positions = [], [], []
    position = 0
    for gap, n_tokens, n_pos in shape:
        owner += [None] * gap
        positions += list(range(position, position + gap))
        position += gap
        spans.append(span(len(owner), n_tokens, n_pos))
        owner += [len(spans) - 1] * n_tokens
        positions += [position] * n_tokens
        position += n_pos
    owner += [None] * tail
    positions += list(range(position, position + tail + 1))
    layout, end = Layout(spans), len(owner)
    for index in range(end):
        at = owner[index]
        assert layout.span_at(index) is (None if at is None else spans[at])
        if at is None or spans[at].start == index:
            assert layout.position(index) == positions[index]
        same = next((other for other in range(index, end) if owner[other] != at), end)
        assert layout.run(index, end) == same - index
    assert layout.span_at(end) is None
    assert layout.position(end) == positions[end]
    for length in range(end + 1):
        inside = 0 < length < end and owner[length] is not None and owner[length] == owner[length - 1]
        at = owner[length] if length < end else None
        assert layout.whole(length) == (spans[at].start if inside and at is not None else length)


def test_without_media_an_index_is_a_position() -> None:
    assert [TEXT_ONLY.position(7), TEXT_ONLY.whole(7), TEXT_ONLY.run(7, 20)] == [7, 7, 13]
    assert TEXT_ONLY.span_at(7) is None


def test_the_tokens_of_a_medium_are_negative_all_different_and_the_same_for_the_same_content() -> None:
    one, again, other = media_tokens(b"a", 500), media_tokens(b"a", 500), media_tokens(b"b", 500)
    assert one == again
    assert one[:200] == media_tokens(b"a", 200)
    assert not set(one) & set(other)
    assert len(set(one)) == 500
    assert all(-(2**63) < token < -1 for token in one)
    assert all(first != second for first, second in pairwise(one))


def test_a_batch_holds_the_rows_and_positions_of_its_part() -> None:
    batch = EmbeddingBatch(span(10, 6), 2, 3, seq_id=4)
    assert len(batch) == 3
    assert [batch.struct.embd[index] for index in range(6)] == [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert [batch.struct.pos[index] for index in range(3)] == [12, 13, 14]
    assert [batch.struct.seq_id[index][0] for index in range(3)] == [4, 4, 4]
    assert not batch.struct.token
    assert not any(batch.struct.logits[index] for index in range(3))


@pytest.mark.parametrize(("first", "count"), [(0, 5), (1, 5), (0, 7), (0, 0)])
def test_a_medium_that_looks_ahead_is_never_cut(first: int, count: int) -> None:
    with pytest.raises(AssertionError):
        EmbeddingBatch(span(0, 6, causal=False), first, count, seq_id=0)
