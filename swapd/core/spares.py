"""When there is a spare: a process without a model, one of each kind, which the next load takes.

Owns the ledger's `Spare` records. A spare gets the RAM that is left over and gives it back as soon as that is less;
no load waits for one, and none is counted with where models are placed.
"""

from __future__ import annotations

from collections.abc import Iterator

from swapd.core.departures import backoff_s
from swapd.core.effects import Effect, StartSpare, StopSpare, Tell
from swapd.core.events import SpareExited, SparesChanged
from swapd.core.ledger import Ledger
from swapd.core.records import LOADING_STATES, Model, Spare
from swapd.core.spec import RAM

PATIENCE_S = 5.0
"""After a load: how long a moment without running requests is waited for before a spare is started beside them."""

YIELD_S = 30.0
"""How long one that had to make room stays away: what others hold of RAM moves up and down."""


def spares_changed(ledger: Ledger, event: SparesChanged, now_s: float, effects: list[Effect]) -> None:
    """The kinds of spares that there are to be are others now."""
    for kind in [kind for kind in ledger.spares if kind not in event.size_bytes]:
        _stop(ledger.spares.pop(kind), kind, now_s, effects)
    for kind, size_bytes in event.size_bytes.items():
        ledger.spares.setdefault(kind, Spare(size_bytes, now_s)).size_bytes = size_bytes


def spare_exited(ledger: Ledger, event: SpareExited, now_s: float, effects: list[Effect]) -> None:
    """One ended by itself. The next one is started after a while, longer each time."""
    spare = ledger.spares.get(event.kind)
    if spare is None or not spare.is_up or spare.number != event.number:
        return
    spare.is_up, spare.missing_since_s = False, now_s
    spare.failures += 1
    spare.retry_at_s = now_s + backoff_s(spare.failures)
    effects.append(Tell("spare_lost", None, event.detail))


def take_spare(ledger: Ledger, model: Model, now_s: float) -> bool:
    """Whether the worker that is launched now is made of a spare, which then is one no longer.

    Not after a failure: whatever was wrong, a process of its own is the safer try.
    """
    spare = ledger.spares.get(model.spec.spare or "")
    if spare is None or not spare.is_up or model.failures:
        return False
    spare.is_up, spare.missing_since_s, spare.failures = False, now_s, 0
    return True


def keep_spares(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    """Stop those that there is no room for any more, start those that are missing and due."""
    for kind, spare in ledger.spares.items():
        if ledger.closing or _left_bytes(ledger) < 0:
            if spare.is_up:
                spare.retry_at_s = now_s + YIELD_S
            _stop(spare, kind, now_s, effects)
            continue
        at_s = _start_at_s(ledger, spare, now_s)
        if at_s is not None and now_s >= at_s:
            ledger.spare_starts += 1
            spare.is_up, spare.number = True, ledger.spare_starts
            effects.append(StartSpare(kind, spare.number))


def spare_deadlines(ledger: Ledger, now_s: float) -> Iterator[float | None]:
    """When a missing one is to be started if nothing else happens until then."""
    for spare in ledger.spares.values():
        yield _start_at_s(ledger, spare, now_s)


def _stop(spare: Spare, kind: str, now_s: float, effects: list[Effect]) -> None:
    if spare.is_up:
        spare.is_up, spare.missing_since_s = False, now_s
        effects.append(StopSpare(kind))


def _left_bytes(ledger: Ledger) -> int:
    return ledger.free_bytes(RAM) - ledger.spare_bytes if RAM in ledger.devices else 0


def _start_at_s(ledger: Ledger, spare: Spare, now_s: float) -> float | None:
    """When a missing spare may be started: not beside a load, which it would slow down, and not without room."""
    if spare.is_up or ledger.closing or _left_bytes(ledger) < spare.size_bytes:
        return None
    if any(worker.state in LOADING_STATES for worker in ledger.workers.values()):
        return None
    loaded_at_s = (worker.ready_at_s for worker in ledger.workers.values() if worker.ready_at_s is not None)
    busy_since_s = max(spare.missing_since_s, *loaded_at_s, 0.0)
    return max(busy_since_s + PATIENCE_S if ledger.running else now_s, spare.retry_at_s)
