"""Which tokens have been computed already: the common prefix of two prompts, and the best place to take one from.

Owns what a donor is and the two shelves of finished ones, in the context and in host memory. Pure: must never
call llama.cpp; `cache` does, and tells the shelves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from backends.llama_cpp.engine.cells import Holding

_BLOCK_TOKENS = 256


@dataclass(slots=True, eq=False)
class Place:
    """A sequence id of the context and the cells under it."""

    seq_id: int
    holding: Holding

    @property
    def cached(self) -> int:
        return self.holding.length


class Donor(Protocol):
    """A sequence of which the first `cached` of `tokens` have been computed and kept."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def cached(self) -> int: ...

    @property
    def place(self) -> Place | None: ...


_AnyDonor = TypeVar("_AnyDonor", bound=Donor)


@dataclass(frozen=True, slots=True, eq=False)
class Retired:
    """A finished sequence that is still in the context."""

    tokens: Sequence[int]
    place: Place

    @property
    def cached(self) -> int:
        return self.place.cached


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A sequence's cache copied to host memory, as llama.cpp wrote it."""

    tokens: Sequence[int]
    state: npt.NDArray[np.uint8]

    @property
    def cached(self) -> int:
        return len(self.tokens)

    @property
    def place(self) -> None:
        """Nowhere in the context."""
        return

    @property
    def size_bytes(self) -> int:
        return self.state.nbytes


def common_prefix(first: Sequence[int], second: Sequence[int], limit: int) -> int:
    """Length of the longest common prefix, at most `limit`."""
    limit = min(limit, len(first), len(second))
    length = 0
    # Whole blocks are compared at C speed; the loop below then looks at one block at most.
    while length < limit:
        end = min(length + _BLOCK_TOKENS, limit)
        if first[length:end] != second[length:end]:
            break
        length = end
    while length < limit and first[length] == second[length]:
        length += 1
    return length


def best_donor(
    tokens: Sequence[int], donors: Iterable[_AnyDonor], *, whole_only: bool = False
) -> tuple[_AnyDonor | None, int]:
    """The donor with the longest prefix of `tokens` and its length; the first of equals.

    At least the last token is always left to decode. `whole_only` takes a donor's cache entirely or not at all,
    for caches that cannot be cut.
    """
    best: _AnyDonor | None = None
    length = 0
    for donor in donors:
        limit = min(len(tokens) - 1, donor.cached)
        if limit <= length or (whole_only and limit < donor.cached):
            continue
        shared = common_prefix(tokens, donor.tokens, limit)
        if shared > length and (not whole_only or shared == donor.cached):
            best, length = donor, shared
    return best, length


class RetiredPrefixes:
    """The finished sequences kept in the context, least recently used first. What it gives up, the caller frees."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._kept: list[Retired] = []

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Retired]:
        return iter(self._kept)

    def add(self, retired: Retired) -> list[Retired]:
        """Keep one more; returns those that are of no more use: prefixes of it, or itself if it adds nothing."""
        if self.slots == 0 or not retired.tokens:
            return [retired]
        given_up: list[Retired] = []
        for kept in self._kept:
            shared = common_prefix(kept.tokens, retired.tokens, len(retired.tokens))
            if shared == len(retired.tokens):
                self.touch(kept)
                return [retired]
            if shared == len(kept.tokens):
                given_up.append(kept)
        self._kept = [kept for kept in self._kept if kept not in given_up]
        self._kept.append(retired)
        return given_up

    def touch(self, retired: Retired) -> None:
        """It was of use just now."""
        self._kept.remove(retired)
        self._kept.append(retired)

    def give_up_oldest(self) -> Retired | None:
        """Remove the least recently used one, if there is any."""
        return self._kept.pop(0) if self._kept else None


class HostShelf:
    """Caches copied to host memory, at most `limit_bytes` of them: those of preempted sequences, which their owners
    keep until they resume, and those of finished ones, least recently used first, which give way."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        """Of preempted sequences."""
        self._prefix_bytes = 0
        self._prefixes: list[Saved] = []

    def __iter__(self) -> Iterator[Saved]:
        return iter(self._prefixes)

    def __len__(self) -> int:
        return len(self._prefixes)

    @property
    def used_bytes(self) -> int:
        return self.held_bytes + self._prefix_bytes

    def make_room(self, size_bytes: int) -> bool:
        """Whether this much can be put here; finished ones give way for it, but not in vain."""
        if self.held_bytes + size_bytes > self.limit_bytes:
            return False
        while self.used_bytes + size_bytes > self.limit_bytes:
            self.remove(self._prefixes[0])
        return True

    def hold(self, saved: Saved) -> None:
        """Count one that its owner keeps. There is room: see `make_room`."""
        self.held_bytes += saved.size_bytes
        assert self.used_bytes <= self.limit_bytes

    def drop(self, saved: Saved) -> None:
        """Its owner has let go of it."""
        self.held_bytes -= saved.size_bytes
        assert self.held_bytes >= 0

    def add(self, saved: Saved) -> None:
        """Keep a finished one, if there is room as after `make_room`, and not its own beginnings beside it."""
        for kept in list(self._prefixes):
            if common_prefix(kept.tokens, saved.tokens, kept.cached) == kept.cached:
                self.remove(kept)
        if self.used_bytes + saved.size_bytes <= self.limit_bytes:
            self._prefixes.append(saved)
            self._prefix_bytes += saved.size_bytes

    def remove(self, saved: Saved) -> None:
        """Let go of a finished one."""
        self._prefixes.remove(saved)
        self._prefix_bytes -= saved.size_bytes
