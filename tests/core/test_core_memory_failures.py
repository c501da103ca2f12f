"""A load that runs out of memory is tried once more with less, and then answered with the sum."""

from __future__ import annotations

from dataclasses import replace

from support.simulation import MIB, deep_costs, gpu, model, ram
from support.stepper import Stepper, only

from swapd.core import events as ev
from swapd.core.effects import Launch, RefusalKind, Reject, ReportLoad, Tell
from swapd.core.events import ExitKind
from swapd.core.spec import LayerCosts, ModelSpec, Placement


def layered(model_id: str, layers: int, **settings: object) -> ModelSpec:
    costs = LayerCosts((100 * MIB,) * layers, (0,) * layers, host_bytes=10 * MIB, compute_bytes=0)
    return ModelSpec(model_id, "1", 2, costs, **settings)  # type: ignore[arg-type]


def run_out(stepper: Stepper, model_id: str, device: str | None) -> list:
    """The loading worker ends for want of memory; where it had some on a GPU, that is seen back."""
    worker = stepper.worker(model_id)
    if worker.state.value == "launching":
        stepper.post(ev.WorkerStarted(worker.id))
    for name in worker.placement.devices:
        stepper.post(ev.MemorySampled(name, 0))
    effects = stepper.post(ev.WorkerExited(worker.id, ExitKind.OUT_OF_MEMORY, "cudaMalloc failed", device))
    for name in worker.placement.devices:
        effects += stepper.post(ev.MemorySampled(name, stepper.ledger.devices[name].spec.total_bytes))
    return effects


def placement_of(effects: list) -> Placement:
    (launch,) = only(Launch, effects)
    return launch.placement


def test_it_is_loaded_once_more_with_less_where_it_was_short() -> None:
    stepper = Stepper([gpu("CUDA0", 1000), gpu("CUDA1", 1000), ram(5000)], layered("m", 16))
    assert placement_of(stepper.arrive("1", "m")).tensor_split == (8, 8)
    effects = run_out(stepper, "m", "CUDA1")
    assert [tell.kind for tell in only(Tell, effects)] == ["memory_retry", "loading"]
    assert only(Reject, effects) == []
    assert placement_of(effects).tensor_split == (9, 7)
    assert [report.outcome for report in only(ReportLoad, effects)] == ["out_of_memory"]


def test_the_next_lower_placement_may_be_another_gpu() -> None:
    stepper = Stepper([gpu("CUDA0", 800), gpu("CUDA1", 1000), ram(5000)], layered("m", 8))
    assert placement_of(stepper.arrive("1", "m")).devices == ("CUDA0",)
    assert placement_of(run_out(stepper, "m", "CUDA0")).devices == ("CUDA1",)


def test_or_experts_in_ram() -> None:
    experts = replace(model("m", 1200, gpu=True), costs=deep_costs(1200, experts=True))
    stepper = Stepper([gpu("CUDA0", 2000), ram(5000)], experts)
    assert placement_of(stepper.arrive("1", "m")).n_cpu_moe == 0
    assert placement_of(run_out(stepper, "m", "CUDA0")).n_cpu_moe > 0


def test_or_fewer_layers() -> None:
    stepper = Stepper([gpu("CUDA0", 800), ram(5000)], layered("m", 8))
    assert placement_of(stepper.arrive("1", "m")).n_gpu_layers == 8
    assert placement_of(run_out(stepper, "m", "CUDA0")).n_gpu_layers == 7


def test_where_it_was_short_is_not_known_so_it_takes_less_on_every_gpu() -> None:
    stepper = Stepper([gpu("CUDA0", 1000), gpu("CUDA1", 1000), ram(5000)], layered("m", 16))
    stepper.arrive("1", "m")
    effects = run_out(stepper, "m", None)
    assert placement_of(effects).tensor_split == (7, 7)
    assert placement_of(effects).n_gpu_layers == 14


def test_the_second_time_it_has_failed_and_the_answer_has_the_sum() -> None:
    stepper = Stepper([gpu("CUDA0", 800), ram(5000)], layered("m", 8))
    stepper.arrive("1", "m")
    run_out(stepper, "m", "CUDA0")
    effects = run_out(stepper, "m", "CUDA0")
    (reject,) = only(Reject, effects)
    assert reject.refusal.kind is RefusalKind.LOAD_FAILED
    assert reject.refusal.retry_after_s == 2.0
    assert reject.refusal.message == (
        "model 'm' ran out of memory: 700 MiB were reserved for it on CUDA0, which showed 0 MiB free, "
        "and it was tried before with more there. cudaMalloc failed"
    )
    assert stepper.model("m").failures == 1


def test_without_a_lower_placement_it_has_failed_at_once() -> None:
    stepper = Stepper([ram(1000)], model("m", 500))
    stepper.arrive("1", "m")
    (reject,) = only(Reject, run_out(stepper, "m", "RAM"))
    assert "500 MiB were reserved for it on RAM, and no placement takes less there" in reject.refusal.message


def test_what_the_settings_demand_is_not_lowered() -> None:
    stepper = Stepper([gpu("CUDA0", 800), ram(5000)], layered("m", 8, n_gpu_layers=8))
    stepper.arrive("1", "m")
    assert len(only(Reject, run_out(stepper, "m", "CUDA0"))) == 1


def test_the_retry_waits_until_the_memory_is_seen_back() -> None:
    stepper = Stepper([gpu("CUDA0", 800), ram(5000)], layered("m", 8))
    stepper.arrive("1", "m")
    worker = stepper.worker("m")
    stepper.post(ev.WorkerStarted(worker.id))
    stepper.post(ev.MemorySampled("CUDA0", 0))
    effects = stepper.post(ev.WorkerExited(worker.id, ExitKind.OUT_OF_MEMORY, "no", "CUDA0"))
    assert only(Launch, effects) == []
    assert only(Launch, stepper.post(ev.MemorySampled("CUDA0", 500 * MIB))) == []
    assert len(only(Launch, stepper.post(ev.MemorySampled("CUDA0", 700 * MIB)))) == 1


def test_a_load_that_succeeds_forgives_all() -> None:
    stepper = Stepper([gpu("CUDA0", 800), ram(5000)], layered("m", 8))
    stepper.arrive("1", "m")
    run_out(stepper, "m", "CUDA0")
    stepper.ready("m")
    assert stepper.model("m").ceilings == {}
    assert stepper.model("m").failures == 0


def test_a_budget_cut_between_the_tries_does_not_leave_it_waiting_for_ever() -> None:
    """With less RAM there is no lower placement any more, so the old one is tried again."""
    stepper = Stepper([gpu("CUDA0", 800), ram(5000)], layered("m", 8))
    stepper.arrive("1", "m")
    worker = stepper.worker("m")
    stepper.post(ev.WorkerStarted(worker.id))
    stepper.post(ev.MemorySampled("CUDA0", 0))
    stepper.post(ev.WorkerExited(worker.id, ExitKind.OUT_OF_MEMORY, "no", "CUDA0"))
    stepper.post(ev.DevicesChanged((gpu("CUDA0", 800), ram(50))))
    effects = stepper.post(ev.MemorySampled("CUDA0", 800 * MIB))
    assert placement_of(effects).n_gpu_layers == 8


def test_an_out_of_memory_end_of_a_serving_worker_ends_only_its_requests() -> None:
    stepper = Stepper([ram(1000)], model("m", 400), model("n", 400))
    stepper.serve("1", "m")
    stepper.serve("2", "n")
    effects = stepper.exit("m", ExitKind.OUT_OF_MEMORY, "killed")
    assert [tell.kind for tell in only(Tell, effects)] == ["worker_lost"]
    assert set(stepper.ledger.running) == {"2"}
    assert stepper.states() == {"n": ["ready"]}
    assert len(only(Launch, stepper.arrive("3", "m"))) == 1
