"""Every breach of an invariant is found: by a full check at once, by the audit within the steps that it states."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from unittest import mock

import pytest
from support.simulation import model, ram
from support.stepper import Stepper

from swapd.core import events as ev
from swapd.core.audit import PER_STEP, Audit
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.pages import Pages
from swapd.core.records import Ask, Departure, Model, Worker
from swapd.core.requests import Account, Request
from swapd.core.scheduler import step
from swapd.core.spec import RAM

MODELS = 12
WAITING = 30
"""At each of them, of three clients."""


@pytest.fixture(scope="module")
def crowd() -> Stepper:
    """Room for two of the models: one is up and full, one loads, everybody waits."""
    specs = [model(f"m{number}", 400, max_waiting=1000, queue_timeout_s=1e6) for number in range(MODELS)]
    stepper = Stepper([ram(1000)], *specs)
    for number in range(MODELS * WAITING):
        stepper.arrive(f"r{number}", f"m{number % MODELS}", f"c{number % 3}")
    stepper.ready("m0")
    assert stepper.states() == {"m0": ["ready"], "m1": ["launching"]}
    return stepper


@pytest.fixture
def stepper(crowd: Stepper) -> Stepper:
    return deepcopy(crowd)


def worker(ledger: Ledger) -> Worker:
    return ledger.workers[1]


def queue(ledger: Ledger) -> Model:
    return ledger.models["m7"]


def some(ledger: Ledger) -> Request:
    return list(queue(ledger).waiting.values())[5]


def account(ledger: Ledger) -> Account:
    return next(iter(queue(ledger).shares.active.values()))


def over_budget(ledger: Ledger) -> None:
    device = ledger.devices[RAM]
    device.spec = replace(device.spec, budget_bytes=1)


def too_many_workers(ledger: Ledger) -> None:
    ledger.workers[2].spec = worker(ledger).spec


def free_slot(ledger: Ledger) -> None:
    one = worker(ledger)
    one.spec = replace(one.spec, slots=one.spec.slots + 1)


def more_than_slots(ledger: Ledger) -> None:
    one = worker(ledger)
    one.spec = replace(one.spec, slots=1)


def gone(ledger: Ledger) -> None:
    ledger.workers[2].state = WorkerState.GONE


def serves_while_it_loads(ledger: Ledger) -> None:
    worker(ledger).state = WorkerState.LOADING


def leaves_without_a_reason(ledger: Ledger) -> None:
    worker(ledger).state = WorkerState.DRAINING


def has_a_reason_and_stays(ledger: Ledger) -> None:
    worker(ledger).departure = Departure("idle")


def shares_too_much(ledger: Ledger) -> None:
    worker(ledger).pages = Pages("file", 0, 0, 1 << 60)


def unknown_device(ledger: Ledger) -> None:
    one = worker(ledger)
    one.placement = replace(one.placement, device_bytes={**one.placement.device_bytes, "CUDA7": 0})


def forgotten_grant(ledger: Ledger) -> None:
    ledger.running.popitem()
    ledger.counters.finished += 1


def lost_request(ledger: Ledger) -> None:
    ledger.counters.accepted += 1


def no_timer(ledger: Ledger) -> None:
    ledger.timer_at_s = None


def waits_during_shutdown(ledger: Ledger) -> None:
    ledger.closing = True


def not_queued(ledger: Ledger) -> None:
    del queue(ledger).waiting[some(ledger).id]


def queued_only(ledger: Ledger) -> None:
    del ledger.waiting[some(ledger).id]
    ledger.counters.cancelled += 1


def queued_twice(ledger: Ledger) -> None:
    request = some(ledger)
    ledger.models["m3"].waiting[request.id] = request


def another_of_its_name(ledger: Ledger) -> None:
    request = some(ledger)
    queue(ledger).waiting[request.id] = replace(request)


def client_away(ledger: Ledger) -> None:
    queue(ledger).shares.active["nobody"] = Account()


def miscounted_client(ledger: Ledger) -> None:
    account(ledger).waiting += 1


def miscounted_tokens(ledger: Ledger) -> None:
    queue(ledger).shares.waiting_tokens += 1


def miscounted_waiting(ledger: Ledger) -> None:
    queue(ledger).shares.waiting_since_us -= 1


BREACHES: list[Callable[[Ledger], None]] = [
    over_budget,
    too_many_workers,
    free_slot,
    more_than_slots,
    gone,
    serves_while_it_loads,
    leaves_without_a_reason,
    has_a_reason_and_stays,
    shares_too_much,
    unknown_device,
    forgotten_grant,
    lost_request,
    no_timer,
    waits_during_shutdown,
    not_queued,
    queued_only,
    queued_twice,
    another_of_its_name,
    client_away,
    miscounted_client,
    miscounted_tokens,
    miscounted_waiting,
]
IN_QUEUES = BREACHES[BREACHES.index(not_queued) :]
"""What is looked for in turns; everything else is found by the next look."""


def looks_until_found(audit: Audit, within: int) -> int:
    for number in range(within):
        try:
            audit.look()
        except AssertionError:
            return number + 1
    raise AssertionError(f"not found by {within} looks")


@pytest.mark.parametrize("breach", BREACHES)
def test_a_full_check_finds_a_breach_at_once(stepper: Stepper, breach: Callable[[Ledger], None]) -> None:
    breach(stepper.ledger)
    with pytest.raises(AssertionError):
        stepper.ledger.check()


@pytest.mark.parametrize("breach", BREACHES)
def test_the_audit_finds_a_breach_within_the_steps_that_it_states(
    stepper: Stepper, breach: Callable[[Ledger], None]
) -> None:
    audit = Audit(stepper.ledger)
    stepper.ledger.moved.clear()
    for _ in range(audit.round_steps):
        audit.look()
    breach(stepper.ledger)
    looks_until_found(audit, audit.round_steps if breach in IN_QUEUES else 1)


@pytest.mark.parametrize("name", [f"m{number}" for number in range(MODELS)])
def test_it_does_wherever_it_is_in_its_round(stepper: Stepper, name: str) -> None:
    ledger, audit = stepper.ledger, Audit(stepper.ledger)
    shares = ledger.models[name].shares
    for looks in range(audit.round_steps):
        shares.waiting_tokens += 1
        looks_until_found(audit, audit.round_steps)
        shares.waiting_tokens -= 1
        for _ in range(looks):
            audit.look()


def test_a_request_that_a_step_moved_is_looked_at_right_after_it(stepper: Stepper) -> None:
    ledger, audit = stepper.ledger, Audit(stepper.ledger)
    request = next(iter(ledger.running.values()))
    with mock.patch.object(Ledger, "check_queue"):  # Its turn must not be what finds them.
        for breach in (self_in_two_places, line_kept):
            step(ledger, ev.RequestArrived(breach.__name__, "m9", "c0", 0), stepper.now_s)
            audit.look()
            undo = breach(ledger, ledger.waiting[breach.__name__])
            with pytest.raises(AssertionError):
                audit.look()
            undo()
        step(ledger, ev.RequestFinished(request.id, ok=True), stepper.now_s)
        assert request in ledger.moved
        audit.look()


def self_in_two_places(ledger: Ledger, request: Request) -> Callable[[], object]:
    ledger.running[request.id] = request
    one = worker(ledger)
    one.running[request.id] = request
    one.spec = replace(one.spec, slots=one.spec.slots + 1)
    ledger.counters.accepted += 1

    def undo() -> None:
        del ledger.running[request.id], one.running[request.id]
        one.spec = replace(one.spec, slots=one.spec.slots - 1)
        ledger.counters.accepted -= 1

    return undo


def line_kept(_: Ledger, request: Request) -> Callable[[], object]:
    assert request.account is not None
    line = request.account.lines[request.priority]
    del line[request.id]
    return lambda: line.update({request.id: request})


def test_someone_who_asked_for_a_load_is_not_left_without_a_timer() -> None:
    stepper = Stepper([ram(1000)], model("a", 100), model("b", 100))
    audit = Audit(stepper.ledger)
    stepper.model("b").load_asks.append(Ask("ask", 0.0))
    assert stepper.ledger.timer_at_s is None
    assert looks_until_found(audit, 1) == 1


def test_a_look_takes_no_longer_for_more_models_and_requests(stepper: Stepper) -> None:
    audit = Audit(stepper.ledger)
    seen: list[int] = []
    checked = Ledger.check_queue

    def counting(self: Ledger, one: Model) -> None:
        seen[-1] += 1 + len(one.waiting) + len(one.shares.active)
        checked(self, one)

    with mock.patch.object(Ledger, "check_queue", counting):
        for _ in range(3 * audit.round_steps):
            seen.append(0)
            audit.look()
    assert sum(seen) >= 2 * MODELS * WAITING
    assert sum(seen) <= PER_STEP * len(seen)
    assert max(seen) <= PER_STEP + WAITING + 4
