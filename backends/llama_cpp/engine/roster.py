"""Who runs and who waits: admission, the wait for a beginning that another computes, preemption.

Owns both lists and the order in them. The oldest sequence always gets on: when the cache is full, retired prefixes go
first and then the newest sequences, which are copied to host memory, or decoded again later if that is full. Must
never decode or sample.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Many
from itertools import count
from operator import attrgetter

from backends.llama_cpp.engine.cache import ContextCache
from backends.llama_cpp.engine.prefix import Donor, best_donor, common_prefix
from backends.llama_cpp.engine.sequence import Job, Sequence

GROWTH_TOKENS = 16
"""Cells kept free per running sequence when another is admitted, so that it is not preempted right away."""

WORTH_WAITING_TOKENS = 32
"""A request waits for another's prefill of a beginning they share if that saves at least this many tokens."""
LONG_READING_TOKENS = 256
"""Prompt tokens about to be read from which on retired prefixes are taken out of the context first."""
MAX_LOOKED_AT = 256
"""Waiting sequences considered at one admission."""


class Roster:
    """The sequences of one context, oldest first in both lists."""

    def __init__(self, cache: ContextCache, *, n_parallel: int, keeps_prefixes: bool) -> None:
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.preemptions = 0
        self.n_parallel = n_parallel
        self._cache = cache
        self._keeps_prefixes = keeps_prefixes
        self._turns = count()
        self._changed = False
        """Admission may come out differently than the last time."""
        self._held_back = False
        """Somebody waits for what another is computing."""
        self._crowded = False
        """Retired prefixes may be in the way of those who run."""

    def enqueue(self, sequences: Many[Sequence]) -> None:
        """Have new sequences wait for their turn."""
        self.waiting.extend(sequences)
        self._changed = True

    def note_prefilled(self) -> None:
        """A prompt is in the cache as a whole: who waited for it may start."""
        self._changed = True

    def note_read(self, sequence: Sequence) -> None:
        """A part of its prompt goes into the next batch: the others come before it in the one after that."""
        sequence.turn = next(self._turns)

    def leave(self, sequence: Sequence) -> None:
        """A choice is over: its cache is retired or freed."""
        self._changed = True
        if sequence.saved is not None:
            self._cache.forget(sequence.saved)
        if sequence.place is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        if sequence.job.request.cache_prompt:
            self._cache.retire(sequence.tokens[: sequence.cached], sequence.place)
        else:
            self._cache.close(sequence.place)
        sequence.place = None

    def admit(self) -> None:
        """Start whoever can be started, and take retired prefixes out of the way of those who run."""
        if self._changed or self._held_back:
            self._changed = False
            self._start_waiting()
        if self._crowded:
            self._take_out_of_the_way()

    def _take_out_of_the_way(self) -> None:
        """Retired prefixes cost every token a look. A long reading wins more by their leaving than the copying takes; a
        short one would only wait for it; a stream hardly notices one at a time.
        """
        reading = sum(sequence.pending for sequence in self.running if sequence.pending > 1)
        if 0 < reading < LONG_READING_TOKENS:
            return
        burdened = sum(sequence.cached for sequence in self.running)
        self._crowded = self._cache.unburden(burdened)
        while reading and self._crowded:
            self._crowded = self._cache.unburden(burdened)

    def _start_waiting(self) -> None:
        """Start waiting sequences, oldest first, until one does not fit.

        One whose beginning is being computed for another right now is passed over until that is done.
        """
        self._held_back = False
        for sequence in self.waiting[:MAX_LOOKED_AT]:
            if len(self.running) == self.n_parallel:
                return
            donor, length = self._find_donor(sequence)
            if self._is_on_its_way(sequence, length):
                self._held_back = True
            elif not self._start(sequence, donor, length):
                return

    def _find_donor(self, sequence: Sequence) -> tuple[Donor | None, int]:
        if sequence.saved is not None:
            return None, 0
        if not sequence.job.takes_prefixes:
            own = [other for other in self.running if other.job is sequence.job]
            return self._whole(sequence, *best_donor(sequence.tokens, own)) if self._keeps_prefixes else (None, 0)
        sharers = [other for other in self.running if _may_share(sequence.job, other)]
        return self._whole(sequence, *self._cache.donor(sequence.tokens, sharers))

    def _whole(self, sequence: Sequence, donor: Donor | None, length: int) -> tuple[Donor | None, int]:
        """Only whole media are taken over: their cells cannot be told apart by position, and some depend on later ones.

        A cache that is taken entirely or not at all may end anywhere.
        """
        if self._keeps_prefixes:
            length = sequence.job.layout.whole(length)
        return (donor, length) if length else (None, 0)

    def _is_on_its_way(self, sequence: Sequence, length: int) -> bool:
        """Whether a running sequence will soon have clearly more of its beginning than the `length` there is now."""
        if sequence.saved is not None or not self._keeps_prefixes:
            return False
        for other in self.running:
            if other.pending > 1 and _may_share(sequence.job, other):
                worth = 0 if other.job is sequence.job else WORTH_WAITING_TOKENS
                limit = len(sequence.tokens) - 1
                if limit > length + worth and common_prefix(sequence.tokens, other.tokens, limit) > length + worth:
                    return True
        return False

    def _start(self, sequence: Sequence, donor: Donor | None, length: int) -> bool:
        """Give a waiting sequence a place with the beginning that is there, if the rest of its tokens has room."""
        done = length if sequence.saved is None else sequence.saved.cached
        need = len(sequence.tokens) - done
        if self.running:
            need += GROWTH_TOKENS * (len(self.running) + 1) + sum(other.pending for other in self.running)
        if sequence.saved is None:
            place = self._cache.place(donor, length, need, sequence.job.layout.position(length))
        else:
            place = self._cache.resume(sequence.saved, need)
        if place is None:
            assert self.running, "an empty cache has no room for a request that fits alone"
            return False
        sequence.place, sequence.saved = place, None
        sequence.turn = next(self._turns)
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=attrgetter("order"))
        if sequence.job.cached_tokens is None:
            sequence.job.cached_tokens = place.cached
        self._crowded = True
        return True

    def make_room(self) -> bool:
        """Free cells: the oldest retired prefix, else the newest sequence unless it is the only one."""
        if self._cache.give_way():
            return True
        if len(self.running) < 2:
            return False
        newest = self.running.pop()
        assert newest.place is not None
        newest.saved = self._cache.save(newest.tokens[: newest.cached], newest.place)
        newest.place = None
        insort(self.waiting, newest, key=attrgetter("order"))
        self.preemptions += 1
        return True


def _may_share(job: Job, other: Sequence) -> bool:
    """Choices of one request always share; others if both sides are willing."""
    return other.job is job or (job.takes_prefixes and other.job.request.cache_prompt)
