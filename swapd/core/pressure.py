"""Who leaves because a device has less to give: a budget was cut, or other programs need the memory.

A cut budget is an order: who is over it leaves, busy ones after what they run, pinned ones last. Others are met
halfway: only idle workers leave for them, and no sooner than they have taken half of what is reserved for them.
"""

from __future__ import annotations

from dataclasses import replace

from swapd.core.departures import leave
from swapd.core.effects import Effect, Tell
from swapd.core.eviction import choose_victims
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.placement import MIB
from swapd.core.records import LOADING_STATES, Departure
from swapd.core.sleepers import end_for
from swapd.core.turns import candidate

YIELDED_RESERVE = 1 / 2
"""Of a device's reserve, the part that others may take before idle workers leave for them."""


def shrink_to_budgets(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    """After a budget was cut: send away the cheapest workers that cover what is over, pinned ones last."""
    for name, device in ledger.devices.items():
        over = ledger.charged_bytes(name) - ledger.leaving_bytes(name) - device.spec.budget_bytes
        over = end_for(ledger, {name: over}, None, f"{name} is over its new budget", effects)[name]
        if over <= 0:
            continue
        candidates = []
        for worker in ledger.workers.values():
            if worker.state is WorkerState.READY or worker.state in LOADING_STATES:
                # Even a busy worker goes before a pinned one that is idle.
                late = bool(worker.running) or ledger.is_pinned(worker)
                one = candidate(ledger, worker, now_s, late=late)
                candidates.append(replace(one, cost_s=one.cost_s + (1e9 if ledger.is_pinned(worker) else 0.0)))
        for victim in choose_victims({name: over}, candidates) or []:
            worker = ledger.workers[victim.worker_id]
            why = f"{worker.model_id!r} leaves: {name} is {-(-over // MIB):,} MiB over its new budget"
            effects.append(Tell("unloading", worker.model_id, why))
            leave(ledger, worker, Departure("budget"), now_s, effects)


def yield_to_others(ledger: Ledger, now_s: float, effects: list[Effect]) -> None:
    """When others take more than a device has to spare: send idle workers away, the cheapest that cover it."""
    for name, device in ledger.devices.items():
        spec = device.spec
        if not spec.metered or device.is_closed:
            continue
        left_bytes = spec.total_bytes - device.others_bytes - int(spec.reserve_bytes * (1 - YIELDED_RESERVE))
        over = ledger.charged_bytes(name) - ledger.leaving_bytes(name) - left_bytes
        over = end_for(ledger, {name: over}, None, f"other programs need {name}", effects)[name]
        if over <= 0:
            continue
        idle = [
            candidate(ledger, worker, now_s, late=False)
            for worker in ledger.workers.values()
            if worker.state is WorkerState.READY
            and not worker.running
            and not ledger.is_pinned(worker)
            and worker.placement.device_bytes.get(name)
        ]
        # Where all of them are too little they leave nevertheless: it is the others' turn.
        for victim in choose_victims({name: over}, idle) or idle:
            worker = ledger.workers[victim.worker_id]
            why = (
                f"{worker.model_id!r} leaves: other programs hold {device.others_bytes // MIB:,} MiB of {name}, "
                f"{-(-over // MIB):,} MiB more than there is to spare"
            )
            effects.append(Tell("unloading", worker.model_id, why))
            leave(ledger, worker, Departure("pressure"), now_s, effects)
