"""Which workers leave so that another fits. Pure: candidates and a shortage in, a choice out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that may be asked to leave now."""

    worker_id: int
    device_bytes: Mapping[str, int]
    busy: bool
    cost_s: float
    """Expected seconds lost by sending it away: time to reload it, weighed by how soon it is wanted."""


def choose_victims(shortage: Mapping[str, int], candidates: Sequence[Candidate]) -> list[Candidate] | None:
    """The workers whose leaving covers the shortage on every device at little cost, or None if none does.

    Idle ones go before busy ones, then cheapest per byte freed *where it is short*. None is chosen that does
    not help, and none that the others make unnecessary.
    """
    missing = {name: size_bytes for name, size_bytes in shortage.items() if size_bytes > 0}
    chosen: list[Candidate] = []
    left = list(candidates)
    while missing:
        helpful = [(_helps(candidate, missing), candidate) for candidate in left]
        helpful = [(freed, candidate) for freed, candidate in helpful if freed > 0]
        if not helpful:
            return None
        _, best = min(helpful, key=lambda pair: (pair[1].busy, pair[1].cost_s / pair[0], pair[1].worker_id))
        chosen.append(best)
        left.remove(best)
        missing = _after(missing, best)
    return _without_needless(chosen, shortage)


def freed(free: Mapping[str, int], victims: Iterable[Candidate]) -> dict[str, int]:
    """What is free once these have left."""
    sizes = dict(free)
    for victim in victims:
        for name, size_bytes in victim.device_bytes.items():
            sizes[name] = sizes.get(name, 0) + size_bytes
    return sizes


def _helps(candidate: Candidate, missing: Mapping[str, int]) -> int:
    return sum(min(size, candidate.device_bytes.get(name, 0)) for name, size in missing.items())


def _after(missing: Mapping[str, int], victim: Candidate) -> dict[str, int]:
    rest = {name: size - victim.device_bytes.get(name, 0) for name, size in missing.items()}
    return {name: size for name, size in rest.items() if size > 0}


def _without_needless(chosen: Sequence[Candidate], shortage: Mapping[str, int]) -> list[Candidate]:
    kept = list(chosen)
    for candidate in sorted(chosen, key=lambda one: (not one.busy, -one.cost_s, one.worker_id)):
        others = [other for other in kept if other is not candidate]
        covered = all(
            sum(other.device_bytes.get(name, 0) for other in others) >= size_bytes
            for name, size_bytes in shortage.items()
        )
        if covered:
            kept = others
    return kept
