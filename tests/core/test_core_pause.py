"""A device handed over: everything of swapd's leaves it, what needs it waits, and it is taken back when it is given."""

from __future__ import annotations

from support.simulation import MIB, gpu, model, ram
from support.stepper import Stepper, gpu_model, only

from swapd.core import events as ev
from swapd.core.effects import Answer, Grant, Launch, RefusalKind, Reject, Stop, Tell
from swapd.core.room import why_waiting
from swapd.core.scheduler import MAX_ASKS


def two_gpus(*models: object) -> Stepper:
    return Stepper([gpu("CUDA0", 1000), gpu("CUDA1", 500), ram(2000)], *models)  # type: ignore[arg-type]


def pause(stepper: Stepper, device: str = "CUDA0", ask_id: str = "p") -> list:
    return stepper.post(ev.PauseAsked(ask_id, device))


def resume(stepper: Stepper, device: str = "CUDA0", ask_id: str = "r") -> list:
    return stepper.post(ev.ResumeAsked(ask_id, device))


def test_an_empty_device_is_handed_over_at_once() -> None:
    stepper = two_gpus()
    effects = pause(stepper)
    assert only(Answer, effects) == [Answer("p", None)]
    assert [tell.kind for tell in only(Tell, effects)] == ["paused"]


def test_the_answer_comes_when_the_process_is_gone_and_its_memory_seen_back() -> None:
    stepper = two_gpus(gpu_model("x", 800))
    stepper.load("x")
    stepper.post(ev.MemorySampled("CUDA0", 200 * MIB))
    effects = pause(stepper)
    assert [stop.worker_id for stop in only(Stop, effects)] == [stepper.worker("x").id]
    assert only(Answer, effects) == []
    assert only(Answer, stepper.exit("x")) == []
    assert only(Answer, stepper.post(ev.MemorySampled("CUDA0", 1000 * MIB))) == [Answer("p", None)]


def test_a_busy_worker_finishes_what_it_runs_for_as_long_as_a_drain_lasts() -> None:
    stepper = two_gpus(gpu_model("x", 800, drain_s=20.0))
    stepper.serve("1", "x")
    assert only(Stop, pause(stepper)) == []
    assert stepper.states() == {"x": ["draining"]}
    assert only(Stop, stepper.wait(19.9)) == []
    assert len(only(Stop, stepper.wait(0.1))) == 1


def test_pinned_and_loading_workers_leave_too() -> None:
    stepper = two_gpus(gpu_model("pinned", 300, pin=True), gpu_model("loads", 900))
    stepper.ready("pinned")
    assert stepper.worker("pinned").placement.devices == ("CUDA1",)
    stepper.arrive("1", "loads")
    pause(stepper, "CUDA1")
    pause(stepper, "CUDA0")
    assert stepper.states() == {"pinned": ["stopping"], "loads": ["stopping"]}


def test_workers_elsewhere_stay() -> None:
    stepper = two_gpus(gpu_model("x", 800), gpu_model("y", 300), model("cpu", 200))
    for name in ("x", "y", "cpu"):
        stepper.load(name)
    pause(stepper)
    assert stepper.states() == {"x": ["stopping"], "y": ["ready"], "cpu": ["ready"]}


def test_requests_wait_meanwhile_and_are_not_pushed_into_ram() -> None:
    stepper = two_gpus(gpu_model("x", 800))
    pause(stepper)
    effects = stepper.arrive("1", "x") + stepper.wait(300.0)
    assert only(Launch, effects) == []
    assert only(Reject, effects) == []
    said = why_waiting(stepper.ledger, stepper.model("x"), stepper.now_s)
    assert said == "waits for CUDA0, handed over to others until it is resumed"


def test_they_go_to_another_gpu_that_holds_them() -> None:
    stepper = two_gpus(gpu_model("y", 300))
    pause(stepper, "CUDA1")
    (launch,) = only(Launch, stepper.arrive("1", "y"))
    assert launch.placement.devices == ("CUDA0",)


def test_nobody_else_is_sent_away_for_a_model_that_waits_for_a_pause_to_end() -> None:
    stepper = two_gpus(gpu_model("x", 800, max_wait_s=5.0), gpu_model("y", 300))
    stepper.load("y")
    pause(stepper)
    stepper.arrive("1", "x")
    assert only(Stop, stepper.wait(100.0)) == []
    assert stepper.states() == {"y": ["ready"]}


def test_a_request_that_waited_too_long_is_told_of_the_pause() -> None:
    stepper = two_gpus(gpu_model("x", 800, queue_timeout_s=60.0))
    pause(stepper)
    stepper.arrive("1", "x")
    (reject,) = only(Reject, stepper.wait(60.0))
    assert reject.refusal.kind is RefusalKind.QUEUE_TIMEOUT
    assert "which waits for CUDA0, handed over" in reject.refusal.message


def test_with_the_resume_what_waited_is_loaded_and_served() -> None:
    stepper = two_gpus(gpu_model("x", 800))
    pause(stepper)
    stepper.arrive("1", "x")
    effects = resume(stepper)
    assert only(Answer, effects) == [Answer("r", None)]
    assert [launch.model_id for launch in only(Launch, effects)] == ["x"]
    assert [grant.request_id for grant in only(Grant, stepper.ready("x"))] == ["1"]


def test_a_pinned_model_is_back_after_the_resume() -> None:
    stepper = two_gpus(gpu_model("pinned", 800, pin=True))
    stepper.ready("pinned")
    pause(stepper)
    stepper.exit("pinned")
    assert only(Launch, stepper.wait(60.0)) == []
    assert [launch.model_id for launch in only(Launch, resume(stepper))] == ["pinned"]


def test_who_waits_for_a_device_is_answered_when_somebody_else_takes_it_back() -> None:
    stepper = two_gpus(gpu_model("x", 800))
    stepper.serve("1", "x")
    pause(stepper)
    assert only(Answer, resume(stepper)) == [Answer("p", None), Answer("r", None)]


def test_asking_twice_is_answered_twice_and_said_once() -> None:
    stepper = two_gpus()
    pause(stepper)
    effects = pause(stepper, ask_id="p2")
    assert only(Answer, effects) == [Answer("p2", None)]
    assert only(Tell, effects) == []
    resume(stepper)
    assert only(Tell, resume(stepper, ask_id="r2")) == []


def test_a_device_nobody_has_is_refused_with_those_there_are() -> None:
    (answer,) = only(Answer, pause(two_gpus(), "CUDA7"))
    assert answer.refusal is not None
    assert answer.refusal.kind is RefusalKind.UNKNOWN_DEVICE
    assert answer.refusal.message == "there is no device 'CUDA7'; this machine has CUDA0, CUDA1, RAM"


def test_a_pause_survives_a_reload_of_the_budgets() -> None:
    stepper = two_gpus(gpu_model("x", 800))
    pause(stepper)
    stepper.post(ev.DevicesChanged((gpu("CUDA0", 1000), ram(2000))))
    assert only(Launch, stepper.arrive("1", "x")) == []


def test_a_shutdown_answers_who_waits_for_a_device() -> None:
    stepper = two_gpus(gpu_model("x", 800))
    stepper.serve("1", "x")
    pause(stepper)
    (answer,) = only(Answer, stepper.post(ev.ShutdownAsked()))
    assert answer.refusal is not None
    assert answer.refusal.kind is RefusalKind.SHUTTING_DOWN


def test_ram_can_be_handed_over_like_any_device() -> None:
    stepper = two_gpus(gpu_model("x", 800), model("cpu", 200))
    stepper.load("x")
    stepper.load("cpu")
    pause(stepper, "RAM")
    assert stepper.states() == {"x": ["stopping"], "cpu": ["stopping"]}


def test_a_device_that_is_not_there_is_neither_paused_nor_resumed() -> None:
    stepper = two_gpus()
    for effects in (pause(stepper, "CUDA7"), resume(stepper, "CUDA7")):
        (answer,) = only(Answer, effects)
        assert answer.refusal is not None
        assert answer.refusal.kind is RefusalKind.UNKNOWN_DEVICE
        assert "CUDA0, CUDA1, RAM" in answer.refusal.message


def test_nothing_is_paused_or_resumed_by_a_daemon_that_ends() -> None:
    stepper = two_gpus()
    stepper.post(ev.ShutdownAsked())
    for effects in (pause(stepper), resume(stepper)):
        (answer,) = only(Answer, effects)
        assert answer.refusal is not None
        assert answer.refusal.kind is RefusalKind.SHUTTING_DOWN


def test_more_people_than_a_bound_may_not_wait_for_a_device() -> None:
    stepper = two_gpus(gpu_model("x", 800))
    stepper.serve("1", "x")
    for number in range(MAX_ASKS):
        assert only(Answer, pause(stepper, ask_id=f"p{number}")) == []
    (answer,) = only(Answer, pause(stepper, ask_id="one-more"))
    assert answer.refusal is not None
    assert answer.refusal.kind is RefusalKind.QUEUE_FULL
