"""Room for a model that waits: whose memory, when, and who may not take it meanwhile."""

from __future__ import annotations

from dataclasses import replace

from support.simulation import MIB, gpu, model, ram
from support.stepper import Stepper, gpu_model, only

from swapd.core import events as ev
from swapd.core.effects import Grant, Launch, RefusalKind, Reject, Stop, Tell
from swapd.core.lifecycle import WorkerState


def test_a_model_that_fits_beside_the_others_sends_nobody_away() -> None:
    stepper = Stepper([ram(1000)], model("a", 400), model("b", 400))
    stepper.serve("1", "a")
    effects = stepper.arrive("2", "b")
    assert [launch.model_id for launch in only(Launch, effects)] == ["b"]
    assert only(Stop, effects) == []
    assert stepper.ram_mib() == 800


def test_an_idle_worker_leaves_at_once_for_its_own_client() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800))
    stepper.serve("1", "a", "alice")
    stepper.finish("1")
    effects = stepper.arrive("2", "b", "alice")
    assert [stop.worker_id for stop in only(Stop, effects)] == [stepper.worker("a").id]
    assert only(Launch, effects) == [], "the memory is charged until the process is reaped"
    (launch,) = only(Launch, stepper.exit("a"))
    assert launch.model_id == "b"


def test_the_reason_of_an_eviction_is_one_readable_sentence() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800))
    stepper.serve("1", "a")
    stepper.finish("1")
    stepper.wait(3.0)
    effects = stepper.arrive("2", "b")
    sentence = "'a' leaves for 'b', which has waited 0.0 s and is short of RAM 600 MiB; it had been idle for 3.0 s"
    assert [tell.message for tell in only(Tell, effects) if tell.kind == "evicting"] == [sentence]
    last = stepper.model("a").last_eviction
    assert last is not None
    assert last.why == sentence


def test_a_busy_worker_is_drained_for_room_and_never_cut() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, stall_timeout_s=1e6), model("b", 800, max_wait_s=20.0))
    stepper.serve("1", "a", "alice")
    assert only(Stop, stepper.arrive("2", "b", "bob")) == []
    assert only(Stop, stepper.wait(500.0)) == [], "an endless stream is nobody's reason to be killed"
    assert stepper.states() == {"a": ["draining"]}
    assert [stop.worker_id for stop in only(Stop, stepper.finish("1"))] == [stepper.worker("a").id]


def test_a_draining_worker_gets_no_new_requests() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, slots=4), model("b", 800, max_wait_s=5.0))
    stepper.serve("1", "a", "alice")
    stepper.arrive("2", "b", "bob")
    stepper.wait(5.0)
    assert stepper.states() == {"a": ["draining"]}
    assert only(Grant, stepper.arrive("3", "a", "carol")) == []
    assert set(stepper.model("a").waiting) == {"3"}


def test_at_its_bound_the_waiter_is_let_in_however_busy_the_other_is() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, slots=1, turn_s=1e6), model("b", 800, max_wait_s=20.0))
    stepper.serve("a0", "a", "alice")
    stepper.arrive("b", "b", "bob")
    for number in range(19):
        stepper.arrive(f"a{number + 1}", "a", "alice")
        stepper.wait(1.0)
        stepper.finish(f"a{number}")
        assert stepper.states() == {"a": ["ready"]}
    stepper.wait(1.0)
    assert stepper.states() == {"a": ["draining"]}


def test_a_reprieved_worker_goes_on_serving() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, slots=2), model("b", 800, max_wait_s=5.0))
    stepper.serve("1", "a", "alice")
    stepper.arrive("2", "b", "bob")
    stepper.wait(5.0)
    stepper.arrive("3", "a", "carol")
    effects = stepper.cancel("2")
    assert [tell.kind for tell in only(Tell, effects)] == ["reprieved"]
    assert [grant.request_id for grant in only(Grant, effects)] == ["3"]
    assert stepper.states() == {"a": ["ready"]}
    assert stepper.model("b").claim is None


def test_a_worker_that_was_told_to_stop_is_not_called_back() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800))
    stepper.serve("1", "a")
    stepper.finish("1")
    stepper.arrive("2", "b")
    assert only(Tell, stepper.cancel("2")) == []
    assert stepper.states() == {"a": ["stopping"]}
    assert only(Launch, stepper.exit("a")) == []


def test_one_waiters_reprieve_does_not_take_the_room_from_another() -> None:
    """`a` drains for `b`; `c` counts on the same room behind it; when `b` gives up, `a` leaves for `c`."""
    models = (model("a", 800), model("b", 800, max_wait_s=5.0), model("c", 800, max_wait_s=5.0))
    stepper = Stepper([ram(1000)], *models)
    stepper.serve("1", "a", "alice")
    stepper.arrive("2", "b", "bob")
    stepper.arrive("3", "c", "carol")
    stepper.wait(5.0)
    stepper.cancel("2")
    assert stepper.states() == {"a": ["draining"]}
    departure = stepper.worker("a").departure
    assert departure is not None
    assert departure.for_model == "c"


def test_claimed_room_is_not_given_to_a_small_model_that_came_later() -> None:
    models = (model("a", 500), model("large", 900, max_wait_s=5.0), model("small", 300))
    stepper = Stepper([ram(1000)], *models)
    stepper.serve("1", "a", "alice")
    stepper.arrive("2", "large", "bob")
    stepper.wait(5.0)
    assert stepper.model("large").claim is not None
    assert only(Launch, stepper.arrive("3", "small", "carol")) == []
    stepper.finish("1")
    assert [launch.model_id for launch in only(Launch, stepper.exit("a"))] == ["large"]


def test_room_that_no_claim_needs_is_given_at_once() -> None:
    models = (model("a", 500), model("large", 700, max_wait_s=5.0), model("small", 300))
    stepper = Stepper([ram(1000)], *models)
    stepper.serve("1", "a", "alice")
    stepper.arrive("2", "large", "bob")
    stepper.wait(5.0)
    assert [launch.model_id for launch in only(Launch, stepper.arrive("3", "small", "carol"))] == ["small"]


def test_a_large_model_is_not_kept_out_by_small_ones_of_which_one_is_always_loading() -> None:
    models = (*(model(name, 400) for name in ("s1", "s2", "s3")), model("large", 900, max_wait_s=10.0))
    stepper = Stepper([ram(1000)], *models)
    stepper.serve("1", "s1", "alice")
    stepper.arrive("2", "large", "bob")
    stepper.wait(9.0)
    stepper.arrive("3", "s2", "carol")
    assert stepper.states() == {"s1": ["ready"], "s2": ["launching"]}
    stepper.wait(2.0)
    stepper.finish("1")
    effects = stepper.arrive("4", "s3", "dave")
    assert only(Launch, effects) == [], "s3 must not take what s1 left"
    assert only(Launch, stepper.exit("s1")) == []
    stepper.ready("s2")
    assert stepper.states() == {"s2": ["draining"]}, "it serves what it was loaded for, then leaves"
    stepper.finish("3")
    assert [launch.model_id for launch in only(Launch, stepper.exit("s2"))] == ["large"]


def test_a_worker_that_is_loading_is_not_asked_to_leave() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, load_timeout_s=1e6), model("b", 800, max_wait_s=1.0))
    stepper.arrive("1", "a", "alice")
    stepper.arrive("2", "b", "bob")
    assert only(Stop, stepper.wait(300.0)) == []
    assert stepper.states() == {"a": ["launching"]}


def test_a_model_that_has_just_loaded_serves_before_it_leaves() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800, max_wait_s=1.0))
    stepper.arrive("1", "a", "alice")
    stepper.arrive("2", "b", "bob")
    stepper.wait(100.0)
    effects = stepper.ready("a")
    assert [grant.request_id for grant in only(Grant, effects)] == ["1"]
    assert only(Stop, effects) == []


def test_of_two_models_at_their_bound_the_one_that_waited_longer_goes_first() -> None:
    models = (model("a", 800), model("b", 800, max_wait_s=50.0), model("c", 800, max_wait_s=1.0))
    stepper = Stepper([ram(1000)], *models)
    stepper.serve("1", "a")
    stepper.arrive("2", "b", "bob")
    stepper.wait(60.0)
    stepper.arrive("3", "c", "carol")
    stepper.wait(5.0)
    stepper.finish("1")
    assert [launch.model_id for launch in only(Launch, stepper.exit("a"))] == ["b"]


def test_a_model_of_higher_priority_is_helped_first() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("b", 800), model("c", 800, priority=1))
    stepper.serve("1", "a")
    stepper.arrive("2", "b", "bob")
    stepper.arrive("3", "c", "carol")
    effects = stepper.exit("a")
    assert [launch.model_id for launch in only(Launch, effects)] == ["c"]


def test_the_worker_on_the_device_that_is_short_leaves_and_no_other() -> None:
    on_0, on_1 = gpu_model("x", 700, devices=("CUDA0",)), gpu_model("y", 700, devices=("CUDA1",))
    stepper = Stepper([gpu("CUDA0", 1000), gpu("CUDA1", 1000), ram(1000)], on_0, on_1, gpu_model("z", 700))
    stepper.load("x")
    stepper.load("y")
    stepper.wait(5.0)
    stepper.post(ev.ModelsChanged((on_0, on_1, gpu_model("z", 700, devices=("CUDA1",)))))
    stepper.arrive("1", "z")
    assert stepper.states() == {"x": ["ready"], "y": ["stopping"]}


def test_a_pinned_worker_is_never_evicted_and_the_other_is_refused_with_the_sum() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, pin=True), model("b", 800))
    stepper.ready("a")
    stepper.wait(1000.0)
    (reject,) = only(Reject, stepper.arrive("1", "b"))
    assert reject.refusal.kind is RefusalKind.DOES_NOT_FIT
    assert "needs 800 MiB of a budget of 200 MiB" in reject.refusal.message
    assert stepper.states() == {"a": ["ready"]}


def test_pins_that_exclude_each_other_neither_loop_nor_evict() -> None:
    stepper = Stepper([ram(1000)], model("a", 800, pin=True), model("b", 800, pin=True))
    stepper.ready("a")
    assert stepper.wait(3600.0) == []
    assert stepper.states() == {"a": ["ready"]}
    (reject,) = only(Reject, stepper.arrive("1", "b"))
    assert reject.refusal.kind is RefusalKind.DOES_NOT_FIT


def test_a_model_that_can_never_fit_is_refused_at_once_and_evicts_nobody() -> None:
    stepper = Stepper([ram(1000)], model("a", 800), model("huge", 5000))
    stepper.serve("1", "a")
    stepper.finish("1")
    (reject,) = only(Reject, stepper.arrive("2", "huge"))
    assert reject.refusal.kind is RefusalKind.DOES_NOT_FIT
    assert "RAM needs 5,000 MiB of a budget of 1,000 MiB" in reject.refusal.message
    assert reject.refusal.retry_after_s is None
    assert stepper.states() == {"a": ["ready"]}


def test_idle_unload_sends_an_idle_worker_away_and_a_busy_one_never() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, idle_unload_s=30.0), model("b", 400, idle_unload_s=30.0))
    stepper.serve("1", "a")
    stepper.serve("2", "b")
    stepper.finish("1")
    assert only(Stop, stepper.wait(29.9)) == []
    assert [stop.worker_id for stop in only(Stop, stepper.wait(0.1))] == [stepper.worker("a").id]
    stepper.exit("a")
    stepper.wait(60.0)
    assert stepper.states() == {"b": ["ready"]}


def test_a_pinned_worker_is_not_unloaded_for_being_idle() -> None:
    stepper = Stepper([ram(1000)], model("a", 400, pin=True, idle_unload_s=1.0))
    stepper.ready("a")
    assert only(Stop, stepper.wait(100.0)) == []


def test_a_budget_cut_live_sends_away_what_is_over_and_nobody_else() -> None:
    stepper = Stepper([ram(1000)], model("a", 400), model("b", 400))
    stepper.serve("1", "a")
    stepper.load("b")
    effects = stepper.post(ev.DevicesChanged((replace(ram(1000), budget_bytes=500 * MIB),)))
    assert [stop.worker_id for stop in only(Stop, effects)] == [stepper.worker("b").id]
    assert stepper.worker("a").state is WorkerState.READY
    stepper.exit("b")
    assert stepper.ram_mib() == 400


def test_a_budget_cut_below_a_busy_worker_drains_it_and_lets_nothing_new_in() -> None:
    stepper = Stepper([ram(1000)], model("a", 400), model("b", 100))
    stepper.serve("1", "a")
    stepper.post(ev.DevicesChanged((replace(ram(1000), budget_bytes=300 * MIB),)))
    assert stepper.states() == {"a": ["draining"]}
    assert only(Launch, stepper.arrive("2", "b")) == []
    stepper.finish("1")
    assert [launch.model_id for launch in only(Launch, stepper.exit("a"))] == ["b"]


def test_a_budget_cut_spares_the_pinned_while_others_suffice() -> None:
    stepper = Stepper([ram(1000)], model("p", 400, pin=True), model("b", 400))
    stepper.ready("p")
    stepper.serve("1", "b")
    stepper.post(ev.DevicesChanged((replace(ram(1000), budget_bytes=500 * MIB),)))
    assert stepper.states() == {"p": ["ready"], "b": ["draining"]}


def test_a_raised_budget_is_used_at_once() -> None:
    stepper = Stepper([ram(500)], model("a", 400), model("b", 400))
    stepper.serve("1", "a")
    stepper.arrive("2", "b", "bob")
    effects = stepper.post(ev.DevicesChanged((ram(1000),)))
    assert [launch.model_id for launch in only(Launch, effects)] == ["b"]


def test_a_device_that_vanishes_while_it_is_charged_keeps_its_charge_and_takes_nothing_new() -> None:
    stepper = Stepper([gpu("CUDA0", 1000), ram(1000)], gpu_model("x", 400, devices=("CUDA0",)))
    stepper.serve("1", "x")
    stepper.post(ev.DevicesChanged((ram(1000),)))
    assert stepper.ledger.devices["CUDA0"].spec.budget_bytes == 0
    assert stepper.states() == {"x": ["draining"]}
