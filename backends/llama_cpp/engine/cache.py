"""Everything that is in the context's cache: who has which sequence id, what is kept for later, and where.

Owns the sequence ids, the book of cells, the retired prefixes in the context and their copies in host memory, and
makes every `llama_memory_seq_*` and state call of a generating worker. Must never decide who runs. For the engine
thread only.

A retired prefix is free of charge while nothing runs. Beside running sequences its cells cost every one of their
tokens a look in attention, so those that are of no use to whoever runs move to host memory (a copy of 2,000
tokens takes some 10 to 30 ms, computing them again takes seconds).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from backends.llama_cpp.engine.cells import Cells, Holding, held_by_only
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.prefix import (
    Donor,
    HostShelf,
    Place,
    Retired,
    RetiredPrefixes,
    Saved,
    best_donor,
)

IDLE_CELLS = 256
"""Retired cells that may always stay: llama.cpp's attention works on multiples of this many."""
IDLE_SHARE = 8
"""Beyond that they may be one part in this many of the running ones."""


class ContextCache:
    """The cache of one context. `host_bytes` bounds the copies in host memory."""

    def __init__(self, model: Model, *, retired_slots: int, host_bytes: int) -> None:
        self._model = model
        self.cells = Cells(model.n_ctx)
        self.retired = RetiredPrefixes(retired_slots)
        self.host = HostShelf(host_bytes)
        self._seq_ids = list(range(model.n_seq_max))

    @property
    def free(self) -> int:
        return self.cells.free

    def donor(self, tokens: Sequence[int], running: Iterable[Donor]) -> tuple[Donor | None, int]:
        """Whose cache holds the longest part of `tokens`, and how much. `running` are those that may be asked."""
        if not self._model.keeps_prefixes:
            return best_donor(tokens, self.host, whole_only=True)
        return best_donor(tokens, self._in_order(running))

    def _in_order(self, running: Iterable[Donor]) -> Iterator[Donor]:
        yield from running
        yield from self.retired
        yield from self.host

    def place(self, donor: Donor | None, length: int, need: int, position: int | None = None) -> Place | None:
        """A place that begins with the first `length` tokens of a donor, with `need` more cells free, or None.

        `position` is that of the next token; None says `length`, which is right without media. Retired prefixes give
        way for it. It may begin with less than `length` if llama.cpp does not take a copy back.
        """
        position = length if position is None else position
        if isinstance(donor, Saved):
            return self._place_saved(donor, length, need, position)
        place = self._open()
        if isinstance(donor, Retired):
            self.retired.touch(donor)
        if donor is not None and length:
            assert donor.place is not None
            self._model.copy_prefix(donor.place.seq_id, place.seq_id, position)
            place.holding = self.cells.share(donor.place.holding, length)
        if self.make_room(need):
            return place
        self.close(place)
        return None

    def resume(self, saved: Saved, need: int) -> Place | None:
        """The place of a preempted sequence again, with `need` more cells free, or None. The copy is used up."""
        if not self.make_room(saved.cached + need):
            return None
        self.host.drop(saved)
        return self._restored(saved)

    def forget(self, saved: Saved) -> None:
        """A preempted sequence will not resume."""
        self.host.drop(saved)

    def _place_saved(self, saved: Saved, length: int, need: int, position: int) -> Place | None:
        # Off the shelf while others may be put there to make room.
        self.host.remove(saved)
        fits = self.make_room(max(saved.cached, length + need))
        place = self._restored(saved) if fits else None
        if place is None or length < place.cached:
            self.host.add(saved)
        if place is not None and length < place.cached:
            self.cut(place, length, position)
        return place

    def _restored(self, saved: Saved) -> Place:
        """A place with everything of a copy, or an empty one when llama.cpp does not take it back."""
        place = self._open()
        if self._model.restore(place.seq_id, saved.state):
            self.cells.grow(place.holding, saved.cached)
        return place

    def _open(self) -> Place:
        assert self._seq_ids, "more sequences are kept than the context has ids for"
        return Place(self._seq_ids.pop(), Holding())

    def cut(self, place: Place, length: int, position: int) -> None:
        """Forget everything but the first `length` tokens; the next one is at `position`."""
        removed = self._model.remove(place.seq_id, position)
        assert removed, "a cache that keeps prefixes can be cut"
        self.cells.cut(place.holding, length)

    def close(self, place: Place) -> None:
        """Free a place."""
        self._model.remove(place.seq_id)
        self.cells.release(place.holding)
        self._seq_ids.append(place.seq_id)

    def retire(self, tokens: Sequence[int], place: Place) -> None:
        """A sequence is over: keep what it computed for whoever comes with the same beginning."""
        if not self._model.keeps_prefixes:
            self._to_host(Retired(tokens, place))
            return
        for given_up in self.retired.add(Retired(tokens, place)):
            self.close(given_up.place)
        while len(self.retired) > self.retired.slots:
            self.give_way()

    def give_way(self) -> bool:
        """Move the oldest retired prefix to host memory, or drop it. False when there is none."""
        oldest = self.retired.give_up_oldest()
        if oldest is None:
            return False
        self._to_host(oldest)
        return True

    def make_room(self, need: int) -> bool:
        """Free `need` cells by letting retired prefixes give way."""
        while self.free < need:
            if not self.give_way():
                return False
        return True

    def unburden(self, running_cells: int) -> bool:
        """Move one retired prefix out of the context if they are many beside the running cells. True if it did.

        Nothing is dropped for it: what host memory does not take stays.
        """
        if not len(self.retired):
            return False
        idle = held_by_only([kept.place.holding for kept in self.retired])
        oldest = next(iter(self.retired))
        if idle <= max(IDLE_CELLS, running_cells // IDLE_SHARE):
            return False
        if self._model.state_bytes(oldest.place.seq_id) > self.host.limit_bytes - self.host.held_bytes:
            return False
        return self.give_way()

    def save(self, tokens: Sequence[int], place: Place) -> Saved | None:
        """Close a running sequence's place; its cache comes back as a copy, or None if that has no room."""
        saved = self._copy(tokens, place)
        if saved is not None:
            self.host.hold(saved)
        self.close(place)
        return saved

    def _to_host(self, retired: Retired) -> None:
        saved = self._copy(retired.tokens, retired.place) if retired.tokens else None
        if saved is not None:
            self.host.add(saved)
        self.close(retired.place)

    def _copy(self, tokens: Sequence[int], place: Place) -> Saved | None:
        if not self.host.make_room(self._model.state_bytes(place.seq_id)):
            return None
        return Saved(tokens, self._model.save(place.seq_id))
