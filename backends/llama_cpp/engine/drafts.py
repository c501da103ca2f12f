"""Guesses at what a sequence says next, looked up in what it has read and said, and whether they are worth trying.

A guess is decoded together with the token it follows. What the sampler then chooses itself is kept, so the answer is
drawn from the same distribution; the only question is time. Owns the index of places and the arithmetic of gain. Pure:
must never call llama.cpp, read a clock or choose a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

MATCH_TOKENS = 4
"""So many tokens must have stood together before. Fewer meet by chance, and many more miss a changed name."""
MAX_SLOWDOWN = 1.25
"""A batch may last this much longer for one sequence's guesses if others wait for their tokens in it."""

FIRST_CHANCE = 0.5
"""A guessed token's chance before anything is known of it."""
CHANCE_WEIGHT = 0.3
"""Of the newest guess in a sequence's running chance."""

_PACE_WEIGHT = 0.25
_ASSUMED_GROWTH = 0.5
"""What one more token costs beside the first, before a longer batch was measured: as on a slow CPU. Where it is less,
short guesses win, show it, and longer ones are tried."""
_MAX_PACE_TOKENS = 256


class Lookup:
    """Where the tokens of one sequence stood together before, and how well that has foretold what comes."""

    __slots__ = ("_indexed", "_places", "_untried", "chance")

    def __init__(self) -> None:
        self.chance = FIRST_CHANCE
        """The probability that a guessed token is right, if those before it were."""
        self._places: dict[tuple[int, ...], int] = {}
        self._indexed = MATCH_TOKENS
        self._untried: tuple[int, int] | None = None
        """Where a guess would have been, and what it was."""

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that followed when the last `MATCH_TOKENS` stood together the last time.

        `tokens` only ever grows from call to call; each token is looked at once.
        """
        if self._untried is not None:
            # It costs nothing to see how a guess would have fared, so guessing begins where it has shown to win.
            at, token = self._untried
            self._untried = None
            self._learn(float(tokens[at] == token))
        for end in range(self._indexed, len(tokens)):
            self._places[tuple(tokens[end - MATCH_TOKENS : end])] = end
        self._indexed = max(self._indexed, len(tokens))
        place = self._places.get(tuple(tokens[-MATCH_TOKENS:]))
        return [] if place is None else list(takewhile(_is_text, tokens[place : place + count]))

    def note_trial(self, tried: int, right: int) -> None:
        """Of `tried` guessed tokens the first `right` were what the sampler chose."""
        assert 0 <= right <= tried
        if tried:
            self._learn(right / min(tried, right + 1))

    def note_untried(self, place: int, token: int) -> None:
        """There was a guess at the token that is to stand at this place, but it did not look worth a trial."""
        self._untried = place, token

    def _learn(self, share: float) -> None:
        self.chance += CHANCE_WEIGHT * (share - self.chance)


def _is_text(token: int) -> bool:
    """Negative tokens stand for media, which no answer has."""
    return token >= 0


class Pace:
    """Seconds that a batch takes by its number of tokens, as measured lately."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def note(self, n_tokens: int, seconds: float) -> None:
        """A batch of this many tokens took this long. Long ones say nothing about guesses."""
        if not 0 < n_tokens <= _MAX_PACE_TOKENS or seconds <= 0:
            return
        known = self._seconds.get(n_tokens)
        self._seconds[n_tokens] = seconds if known is None else known + _PACE_WEIGHT * (seconds - known)

    def expected_s(self, n_tokens: int) -> float | None:
        """How long a batch of this many tokens should take; None before the first measurement.

        Between two measured lengths it lies on the line between them. Beyond the longest one it is assumed to grow.
        """
        below = max((n for n in self._seconds if n <= n_tokens), default=None)
        above = min((n for n in self._seconds if n >= n_tokens), default=None)
        if below is None:
            return None if above is None else self._seconds[above]
        if above is None:
            return self._seconds[below] * (1 + _ASSUMED_GROWTH * (n_tokens - below) / below)
        if above == below:
            return self._seconds[below]
        share = (n_tokens - below) / (above - below)
        return self._seconds[below] + share * (self._seconds[above] - self._seconds[below])


def expected_tokens(chance: float, tried: int) -> float:
    """Tokens that a sequence gains in a batch with `tried` guesses: one, and each guess that is right up to there."""
    return 1.0 + sum(chance**position for position in range(1, tried + 1))


def draft_lengths(guesses: Sequence[tuple[float, int]], n_tokens: int, pace: Pace, room: int) -> list[int]:
    """How many guessed tokens of each sequence the next batch should carry.

    `guesses` has each sequence's chance and how many tokens were guessed for it; `n_tokens` are in the batch anyway,
    one for each running sequence; at most `room` may be added. Each sequence in turn gets the number that brings the
    most tokens per second, which is 0 unless guessing wins.
    """
    lengths = [0] * len(guesses)
    plain_s = pace.expected_s(n_tokens)
    if plain_s is None:
        return lengths
    limit_s = plain_s * MAX_SLOWDOWN if n_tokens > 1 else float("inf")
    tokens, gained, best = n_tokens, float(n_tokens), n_tokens / plain_s
    for index, (chance, guessed) in enumerate(guesses):
        others = gained - 1.0
        for length in range(1, min(guessed, room) + 1):
            seconds = pace.expected_s(tokens + length)
            assert seconds is not None
            if seconds > limit_s:
                break
            rate = (others + expected_tokens(chance, length)) / seconds
            if rate > best:
                best, lengths[index] = rate, length
        room -= lengths[index]
        tokens += lengths[index]
        gained = others + expected_tokens(chance, lengths[index])
    return lengths
