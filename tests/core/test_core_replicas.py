"""Several workers of one model: when further ones are loaded, who gets what, and who leaves first."""

from __future__ import annotations

from dataclasses import replace

from support.simulation import MIB, gpu, model, ram
from support.stepper import Stepper, gpu_model, only

from swapd.core import events as ev
from swapd.core.effects import Answer, Effect, Grant, Launch, Reject, Stop
from swapd.core.lifecycle import WorkerState
from swapd.core.records import Worker
from swapd.core.replicas import next_may_load
from swapd.core.spec import DeviceSpec, ModelSpec

HOT = model("hot", 300, slots=1, replicas=2, stall_timeout_s=1e6)


def both_busy(*others: ModelSpec, ram_mib: int = 1000) -> Stepper:
    """`hot` has two workers, which run `1` and `2`."""
    stepper = Stepper([ram(ram_mib)], HOT, *others)
    stepper.serve("1", "hot", "alice")
    stepper.serve("2", "hot", "bob")
    return stepper


def workers(stepper: Stepper, model_id: str = "hot") -> list[Worker]:
    return list(stepper.ledger.workers_of(model_id))


def exit_of(stepper: Stepper, worker: Worker, kind: ev.ExitKind = ev.ExitKind.FAILED) -> list[Effect]:
    return stepper.post(ev.WorkerExited(worker.id, kind, "it broke"))


def test_one_more_is_loaded_when_all_slots_are_taken_and_requests_wait() -> None:
    stepper = Stepper([ram(1000)], HOT)
    stepper.serve("1", "hot")
    assert stepper.states() == {"hot": ["ready"]}
    assert [launch.model_id for launch in only(Launch, stepper.arrive("2", "hot"))] == ["hot"]
    assert [grant.request_id for grant in only(Grant, stepper.ready("hot"))] == ["2"]
    assert only(Launch, stepper.arrive("3", "hot")) == [], "it has as many as it may"
    assert stepper.ram_mib() == 600


def test_they_are_loaded_one_after_the_other() -> None:
    stepper = Stepper([ram(2000)], replace(HOT, replicas=3))
    stepper.serve("1", "hot")
    effects = [effect for number in range(2, 6) for effect in stepper.arrive(f"{number}", "hot")]
    assert len(only(Launch, effects)) == 1
    assert len(only(Launch, stepper.ready("hot"))) == 1


def test_without_room_the_requests_wait_for_the_workers_there_are() -> None:
    stepper = Stepper([ram(500)], HOT)
    stepper.serve("1", "hot")
    assert only(Launch, stepper.arrive("2", "hot")) == []
    assert [grant.request_id for grant in only(Grant, stepper.finish("1"))] == ["2"]


def test_a_request_goes_to_the_worker_that_runs_least_and_to_the_oldest_of_equals() -> None:
    stepper = Stepper([ram(1000)], replace(HOT, slots=2))
    for number in range(4):
        stepper.serve(f"{number}", "hot")
    first, second = workers(stepper)
    assert (set(first.running), set(second.running)) == ({"0", "1"}, {"2", "3"})
    for request_id in ("0", "2", "3"):
        stepper.finish(request_id)
    granted = [only(Grant, stepper.arrive(name, "hot"))[0].worker_id for name in ("a", "b", "c")]
    assert granted == [second.id, first.id, second.id]


def test_each_is_placed_by_itself_on_a_gpu_without_another_of_them_if_there_is_one() -> None:
    devices = [gpu("CUDA0", 1000), gpu("CUDA1", 2000), ram(1000)]
    stepper = Stepper(devices, gpu_model("hot", 300, slots=1, replicas=3))
    for number in range(3):
        stepper.serve(f"{number}", "hot")
    assert [worker.placement.devices for worker in workers(stepper)] == [("CUDA0",), ("CUDA1",), ("CUDA0",)]


def test_one_that_would_be_slower_than_the_first_is_not_loaded() -> None:
    spec = replace(model("hot", 600, gpu=True, slots=1, replicas=2))
    stepper = Stepper([gpu("CUDA0", 1000), ram(2000)], spec)
    stepper.serve("1", "hot")
    assert workers(stepper)[0].placement.left_bytes == 0
    assert only(Launch, stepper.arrive("2", "hot")) == [], "there is room in RAM, and only there"


def test_a_model_without_a_worker_is_helped_before_one_that_wants_another() -> None:
    stepper = Stepper([ram(700)], replace(HOT, priority=5), model("b", 300), model("x", 100))
    stepper.serve("x", "x")
    stepper.serve("1", "hot")
    stepper.serve("b", "b")
    stepper.arrive("2", "hot")
    stepper.arrive("3", "b", "bob")
    stepper.finish("b")
    assert stepper.states() == {"x": ["ready"], "hot": ["ready"], "b": ["ready"]}


def test_no_worker_leaves_for_a_replica_that_was_used_within_its_turn() -> None:
    stepper = Stepper([ram(600)], HOT, model("cold", 300, turn_s=10.0))
    stepper.serve("c", "cold", "carol")
    stepper.finish("c")
    stepper.serve("1", "hot")
    effects = stepper.arrive("2", "hot")
    effects += stepper.wait(9.0)
    effects += stepper.arrive("3", "hot")
    assert only(Stop, effects) == []


def test_no_worker_leaves_for_a_replica_while_it_is_expected_to_be_asked_for() -> None:
    """carol asks every half minute: she is not made to wait for a load each time."""
    stepper = Stepper([ram(600)], HOT, model("cold", 300, turn_s=10.0))
    for number in range(8):
        stepper.serve(f"c{number}", "cold", "carol")
        stepper.finish(f"c{number}")
        stepper.wait(30.0)
    stepper.serve("1", "hot")
    assert only(Stop, stepper.arrive("2", "hot")) == []
    stepper.finish("1")
    stepper.wait(600.0)
    assert [worker.model_id for worker in stepper.ledger.workers.values()] == ["cold", "hot"]
    stepper.arrive("4", "hot")
    assert stepper.states() == {"cold": ["stopping"], "hot": ["ready"]}, "since then she has not been seen"


def test_a_pinned_or_a_busy_worker_never_leaves_for_a_replica() -> None:
    stepper = Stepper([ram(900)], HOT, model("pinned", 300, pin=True), model("busy", 300))
    stepper.ready("pinned")
    stepper.serve("b", "busy", "carol")
    stepper.serve("1", "hot")
    stepper.wait(100.0)
    stepper.arrive("2", "hot")
    assert stepper.states() == {"pinned": ["ready"], "busy": ["ready"], "hot": ["ready"]}


def test_the_surplus_worker_is_the_first_to_leave_and_the_busier_one_stays() -> None:
    stepper = both_busy(model("cold", 300), model("b", 300))
    stepper.load("cold")
    stepper.finish("1")
    first, second = workers(stepper)
    assert [stop.worker_id for stop in only(Stop, stepper.arrive("3", "b", "carol"))] == [first.id]
    assert second.state is WorkerState.READY
    eviction = stepper.model("hot").last_eviction
    assert eviction is not None
    assert "it had been idle" in eviction.why


def test_a_busy_surplus_worker_has_no_turn_but_finishes_what_it_runs() -> None:
    stepper = both_busy(model("b", 300), ram_mib=700)
    assert only(Stop, stepper.arrive("3", "b", "carol")) == []
    assert [worker.state for worker in workers(stepper)] == [WorkerState.READY, WorkerState.DRAINING]
    eviction = stepper.model("hot").last_eviction
    assert eviction is not None
    assert "another worker of it stays, and this one finishes the 1 requests it runs first" in eviction.why
    (stop,) = only(Stop, stepper.finish("2"))
    assert [launch.model_id for launch in only(Launch, exit_of(stepper, stepper.ledger.workers[stop.worker_id]))] == [
        "b"
    ]


def test_one_that_has_not_loaded_yet_is_stopped_for_who_has_no_worker_at_all() -> None:
    stepper = Stepper([ram(700)], HOT, model("b", 300))
    stepper.serve("1", "hot")
    stepper.arrive("2", "hot")
    first, second = workers(stepper)
    assert [stop.worker_id for stop in only(Stop, stepper.arrive("3", "b", "carol"))] == [second.id]
    assert [launch.model_id for launch in only(Launch, exit_of(stepper, second))] == ["b"]
    assert stepper.model("hot").failures == 0
    assert (first.state, set(stepper.model("hot").waiting)) == (WorkerState.READY, {"2"})


def test_both_leave_for_a_model_that_needs_the_room_of_both() -> None:
    stepper = both_busy(model("large", 900, max_wait_s=5.0))
    stepper.arrive("3", "large", "carol")
    stepper.wait(5.0)
    assert [worker.state for worker in workers(stepper)] == [WorkerState.DRAINING] * 2


def test_a_draining_worker_is_not_called_back_into_a_place_that_is_taken() -> None:
    """One of two drains for `b`; meanwhile `hot` may have one only, and has it."""
    stepper = both_busy(model("b", 300), ram_mib=700)
    stepper.arrive("3", "b", "carol")
    stepper.post(ev.ModelsChanged((replace(HOT, replicas=1), model("b", 300))))
    stepper.cancel("3")
    assert [worker.state for worker in workers(stepper)] == [WorkerState.READY, WorkerState.DRAINING]


def test_idle_unload_counts_for_each_worker() -> None:
    stepper = Stepper([ram(1000)], replace(HOT, idle_unload_s=30.0))
    stepper.serve("1", "hot")
    stepper.serve("2", "hot")
    stepper.finish("2")
    first, second = workers(stepper)
    assert [stop.worker_id for stop in only(Stop, stepper.wait(30.0))] == [second.id]
    assert first.state is WorkerState.READY


def test_of_a_pinned_models_workers_one_is_pinned() -> None:
    stepper = Stepper([ram(700)], replace(HOT, pin=True), model("b", 300), model("large", 500))
    stepper.ready("hot")
    stepper.serve("1", "hot")
    stepper.serve("2", "hot")
    stepper.finish("1")
    stepper.finish("2")
    first, second = workers(stepper)
    stepper.arrive("3", "b", "carol")
    assert (first.state, second.state) == (WorkerState.READY, WorkerState.STOPPING)
    (reject,) = only(Reject, stepper.arrive("4", "large", "carol"))
    assert "RAM needs 500 MiB of a budget of 400 MiB" in reject.refusal.message


def test_a_crash_of_one_leaves_the_others_serving() -> None:
    stepper = both_busy()
    first, second = workers(stepper)
    exit_of(stepper, first)
    assert set(stepper.ledger.running) == {"2"}
    assert only(Reject, stepper.arrive("3", "hot")) == []
    assert [grant.request_id for grant in only(Grant, stepper.finish("2"))] == ["3"]
    assert second.state is WorkerState.READY


def test_a_load_of_one_more_that_fails_refuses_nobody_and_is_backed_off() -> None:
    stepper = Stepper([ram(1000)], HOT)
    stepper.serve("1", "hot")
    for number, backoff_s in enumerate((2.0, 4.0, 8.0)):
        stepper.arrive(f"w{number}", "hot")
        (second,) = (worker for worker in workers(stepper) if worker.state is WorkerState.LAUNCHING)
        effects = exit_of(stepper, second)
        assert only(Reject, effects) + only(Launch, effects) == []
        assert stepper.model("hot").retry_at_s == stepper.now_s + backoff_s
        # A request of the worker that was there already says nothing of the next load.
        (running,) = stepper.ledger.running
        stepper.finish(running)
        stepper.wait(backoff_s)
    stepper.cancel("w2")
    assert stepper.model("hot").failures == 3


def test_one_more_that_finds_the_file_invalid_or_runs_out_of_memory_does_not_condemn_the_model() -> None:
    for kind in (ev.ExitKind.INVALID_MODEL, ev.ExitKind.OUT_OF_MEMORY):
        stepper = Stepper([ram(1000)], HOT)
        stepper.serve("1", "hot")
        stepper.arrive("2", "hot")
        effects = exit_of(stepper, workers(stepper)[1], kind)
        assert only(Reject, effects) == []
        assert stepper.model("hot").verdict is None
        assert stepper.model("hot").ceilings == {}
        assert [grant.request_id for grant in only(Grant, stepper.finish("1"))] == ["2"]


def test_load_by_hand_gives_one_and_unload_takes_all() -> None:
    stepper = both_busy()
    assert [answer.ask_id for answer in only(Answer, stepper.post(ev.LoadAsked("load", "hot")))] == ["load"]
    assert len(workers(stepper)) == 2
    stepper.finish("1")
    effects = stepper.post(ev.UnloadAsked("unload", "hot"))
    first, second = workers(stepper)
    assert (first.state, second.state) == (WorkerState.STOPPING, WorkerState.DRAINING)
    assert only(Answer, effects) == []
    assert only(Answer, exit_of(stepper, first)) == []
    stepper.finish("2")
    assert [answer.ask_id for answer in only(Answer, exit_of(stepper, second))] == ["unload"]


def test_an_edit_replaces_all_of_them_and_the_new_ones_come_on_demand() -> None:
    stepper = both_busy(ram_mib=2000)
    stepper.post(ev.ModelsChanged((replace(HOT, launch_key="2"),)))
    assert [worker.state for worker in workers(stepper)] == [WorkerState.DRAINING] * 2
    assert len(only(Launch, stepper.arrive("3", "hot"))) == 1


def test_a_lower_number_takes_effect_at_once_without_touching_what_runs_most() -> None:
    stepper = both_busy()
    stepper.finish("1")
    effects = stepper.post(ev.ModelsChanged((replace(HOT, replicas=1),)))
    first, second = workers(stepper)
    assert [stop.worker_id for stop in only(Stop, effects)] == [first.id]
    assert second.state is WorkerState.READY


def test_a_device_that_is_handed_over_takes_the_workers_on_it_and_no_other() -> None:
    devices: list[DeviceSpec] = [gpu("CUDA0", 1000), gpu("CUDA1", 1000), ram(1000)]
    stepper = Stepper(devices, gpu_model("hot", 300, slots=1, replicas=2))
    stepper.serve("1", "hot")
    stepper.serve("2", "hot")
    stepper.post(ev.PauseAsked("pause", "CUDA0"))
    assert [worker.state for worker in workers(stepper)] == [WorkerState.DRAINING, WorkerState.READY]
    assert stepper.ledger.charged_bytes("CUDA1") == 300 * MIB


def test_the_next_request_may_cause_a_load_where_there_is_no_worker_or_all_are_full() -> None:
    stepper = Stepper([ram(1000)], HOT)
    assert next_may_load(stepper.ledger, "hot")
    stepper.load("hot")
    assert not next_may_load(stepper.ledger, "hot")
    stepper.serve("1", "hot")
    assert next_may_load(stepper.ledger, "hot")
    assert next_may_load(stepper.ledger, "unknown")
