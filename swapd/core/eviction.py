"""Which workers leave so that another fits. Pure: candidates and a shortage in, a choice out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from swapd.core.pages import Pages
from swapd.core.spec import RAM


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that may be asked to leave now."""

    worker_id: int
    device_bytes: Mapping[str, int]
    busy: bool
    cost_s: float
    """Expected seconds lost by sending it away: time to reload it, weighed by how soon it is wanted."""
    pages: Pages | None = None
    """Of its RAM, what is free only once all of these have left:"""
    mappers: int = 1


def choose_victims(
    shortage: Mapping[str, int], candidates: Sequence[Candidate], kept: Pages | None = None
) -> list[Candidate] | None:
    """The workers whose leaving covers the shortage on every device at little cost, or None if none does.

    Idle ones go before busy ones, then cheapest per byte freed *where it is short*. None is chosen that does
    not help, and none that the others make unnecessary. `kept` are pages that the newcomer maps itself.
    """
    chosen: list[Candidate] = []
    left = list(candidates)
    while missing := _missing(shortage, chosen, kept):
        helpful = [(_helps(candidate, chosen, missing, kept), candidate) for candidate in left]
        helpful = [(size_bytes, candidate) for size_bytes, candidate in helpful if size_bytes > 0]
        if not helpful:
            return None
        _, best = min(helpful, key=lambda pair: (pair[1].busy, pair[1].cost_s / pair[0], pair[1].worker_id))
        chosen.append(best)
        left.remove(best)
    return _without_needless(chosen, shortage, kept)


def freed(free: Mapping[str, int], victims: Iterable[Candidate], kept: Pages | None = None) -> dict[str, int]:
    """What is free once these have left."""
    sizes = dict(free)
    left: Counter[Pages] = Counter()
    for victim in victims:
        for name, size_bytes in victim.device_bytes.items():
            sizes[name] = sizes.get(name, 0) + size_bytes
        if victim.pages is not None:
            left[victim.pages] += 1
            is_last = left[victim.pages] == victim.mappers and victim.pages != kept
            sizes[RAM] -= 0 if is_last else victim.pages.size_bytes
    return sizes


def _missing(shortage: Mapping[str, int], chosen: Sequence[Candidate], kept: Pages | None) -> dict[str, int]:
    """What is short, and still is once these have left."""
    back = freed({}, chosen, kept)
    rest = {name: size_bytes - back.get(name, 0) for name, size_bytes in shortage.items()}
    return {name: size_bytes for name, size_bytes in rest.items() if size_bytes > 0}


def _helps(candidate: Candidate, chosen: Sequence[Candidate], missing: Mapping[str, int], kept: Pages | None) -> int:
    before, after = freed({}, chosen, kept), freed({}, [*chosen, candidate], kept)
    return sum(min(size, after.get(name, 0) - before.get(name, 0)) for name, size in missing.items())


def _without_needless(chosen: Sequence[Candidate], shortage: Mapping[str, int], kept: Pages | None) -> list[Candidate]:
    needed = list(chosen)
    for candidate in sorted(chosen, key=lambda one: (not one.busy, -one.cost_s, one.worker_id)):
        others = [other for other in needed if other is not candidate]
        if not _missing(shortage, others, kept):
            needed = others
    return needed
