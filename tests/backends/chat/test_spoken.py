"""Every family's answers, whole and at every split point of the stream."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from spoken import Said, read, reading_of
from spoken_json import JSON_FAMILIES
from spoken_others import OTHER_FAMILIES

SAID = [*JSON_FAMILIES, *OTHER_FAMILIES]


@pytest.fixture(params=SAID, ids=[f"{one.family}-{index}" for index, one in enumerate(SAID)])
def said(request: pytest.FixtureRequest) -> Said:
    return request.param


def test_a_text_is_the_message_it_means(said: Said) -> None:
    message = read(reading_of(said), [said.text])
    assert message.calls == said.calls
    assert message.content == said.content
    assert message.reasoning == said.reasoning
    if said.ids:
        assert message.ids == said.ids


def test_every_single_cut_of_the_stream_comes_to_the_same(said: Said) -> None:
    reading = reading_of(said)
    whole = read(reading, [said.text])
    for cut in range(len(said.text) + 1):
        assert read(reading, [said.text[:cut], said.text[cut:]]) == whole, f"cut at {cut}: {said.text[:cut]!r}"


def test_character_by_character_comes_to_the_same(said: Said) -> None:
    reading = reading_of(said)
    assert read(reading, list(said.text)) == read(reading, [said.text])


def test_every_end_of_the_stream_keeps_what_it_had(said: Said) -> None:
    """An answer cut off anywhere is parsed alike in any pieces, and nothing that was said is taken back."""
    reading = reading_of(said)
    for end in range(len(said.text)):
        text = said.text[:end]
        assert read(reading, list(text)) == read(reading, [text]), f"ended at {end}: {text!r}"


@pytest.mark.parametrize("seed", range(20))
def test_what_is_no_call_is_never_lost(seed: int) -> None:
    """Markers and words in any order: every word is somewhere, and any two ways to split the text agree."""
    print(f"seed {seed}")
    dice = random.Random(seed)
    for said in SAID:
        reading = reading_of(said)
        parts = [said.text[a:b] for a, b in pairwise(sorted(dice.choices(range(len(said.text) + 1), k=6)))]
        dice.shuffle(parts)
        text = "".join(part if dice.random() < 0.8 else f"«word{index}» " for index, part in enumerate(parts))
        message = read(reading, [text])
        assert read(reading, list(text)) == message, text
        found = message.content + message.reasoning + "".join(name + arguments for name, arguments in message.calls)
        for word in range(len(parts)):
            assert (f"«word{word}»" in text) <= (f"«word{word}»" in found), text
