"""A ledger that breaks its own rules ends the daemon: better restarted than wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from support.running_pool import HOST_ONLY, Counts, config, scripted
from support.scripted_backend import ScriptedBackend

from swapd.core import events as ev
from swapd.core.effects import Effect
from swapd.core.ledger import Ledger
from swapd.core.scheduler import step
from swapd.pool import pool as pool_module
from swapd.pool.learned import Store
from swapd.pool.pool import Pool


def lost_request(ledger: Ledger) -> None:
    ledger.counters.accepted += 1


def miscounted_queue(ledger: Ledger) -> None:
    ledger.models["a"].shares.waiting_tokens += 1


@pytest.mark.parametrize("breach", [lost_request, miscounted_queue])
async def test_a_breach_ends_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breach: Callable[[Ledger], None]
) -> None:
    pool = Pool({"scripted": ScriptedBackend()}, HOST_ONLY, Store(None), tmp_path, Counts(), "test")
    running = asyncio.create_task(pool.run())
    await pool.configure(config(scripted(tmp_path, "a")))

    def broken(ledger: Ledger, event: ev.Event, now_s: float) -> list[Effect]:
        effects = step(ledger, event, now_s)
        breach(ledger)
        return effects

    monkeypatch.setattr(pool_module, "step", broken)
    pool.post(ev.TimerFired())
    with pytest.raises(ExceptionGroup) as raised:
        await running
    assert raised.group_contains(AssertionError)
