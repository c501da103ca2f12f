"""Reading an answer costs the same for each piece, however long it has become and whatever it is in the middle of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from spoken import Said, reading_of
from spoken_json import JSON_FAMILIES
from spoken_others import OTHER_FAMILIES
from support.growth import Once, cost_of

SAID = [*JSON_FAMILIES, *OTHER_FAMILIES]
PIECE = "and on and on it goes " * 4
PIECES = 500
SLACK_US = 3.0


def places_within_words(text: str, at_most: int) -> Iterator[int]:
    places = [at for at in range(1, len(text)) if text[at - 1].isalpha() and text[at].isalpha()]
    count = min(at_most, len(places))
    return (places[len(places) * index // count] for index in range(count))


@pytest.mark.parametrize("said", SAID, ids=[f"{one.family}-{index}" for index, one in enumerate(SAID)])
def test_a_piece_of_a_long_answer_costs_what_the_first_ones_cost(said: Said) -> None:
    for place in places_within_words(said.text, 3):

        def begin(place: int = place) -> Once:
            reader = reading_of(said).reader()
            reader.feed(said.text[:place])
            return lambda: reader.feed(PIECE)

        cost = cost_of(begin, PIECES, SLACK_US)
        assert cost.is_flat(SLACK_US), (said.text[:place], cost)
