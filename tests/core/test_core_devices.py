"""Several GPUs: where the scheduler puts a model that waits, whom it sends away, and when it settles for less."""

from __future__ import annotations

from support.simulation import MIB, gpu, ram
from support.stepper import Stepper, gpu_model, only

from swapd.core import events as ev
from swapd.core.effects import Launch, RefusalKind, Reject, Tell
from swapd.core.spec import LayerCosts, ModelSpec


def layered(model_id: str, layers: int, layer_mib: int = 100, **settings: object) -> ModelSpec:
    """A model of equal layers that can be cut anywhere."""
    costs = LayerCosts((layer_mib * MIB,) * layers, (0,) * layers, host_bytes=10 * MIB, compute_bytes=0)
    return ModelSpec(model_id, "1", settings.pop("slots", 2), costs, **settings)  # type: ignore[arg-type]


def machine(*gpu_mib: int, ram_mib: int = 10_000) -> list:
    return [*(gpu(f"CUDA{number}", size_mib) for number, size_mib in enumerate(gpu_mib)), ram(ram_mib)]


def launched(effects: list) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    return {one.model_id: (one.placement.devices, one.placement.tensor_split) for one in only(Launch, effects)}


def test_models_fill_one_gpu_before_the_next() -> None:
    stepper = Stepper(machine(1000, 600), layered("a", 5), layered("b", 5), layered("c", 5))
    assert launched(stepper.arrive("1", "a")) == {"a": (("CUDA1",), (5,))}
    assert launched(stepper.arrive("2", "b")) == {"b": (("CUDA0",), (5,))}
    assert launched(stepper.arrive("3", "c")) == {"c": (("CUDA0",), (5,))}


def test_a_model_that_no_gpu_holds_alone_is_split_and_charged_on_each() -> None:
    stepper = Stepper(machine(1000, 500), layered("a", 12))
    assert launched(stepper.arrive("1", "a")) == {"a": (("CUDA0", "CUDA1"), (8, 4))}
    assert stepper.ledger.charged_bytes("CUDA0") == 800 * MIB
    assert stepper.ledger.charged_bytes("CUDA1") == 400 * MIB


def test_a_split_model_that_is_stopped_gives_back_on_each_gpu_by_itself() -> None:
    stepper = Stepper(machine(1000, 500), layered("a", 12), layered("b", 4))
    stepper.load("a")
    stepper.arrive("1", "b")
    for name, free_mib in (("CUDA0", 200), ("CUDA1", 100)):
        stepper.post(ev.MemorySampled(name, free_mib * MIB))
    stepper.exit("a")
    assert stepper.ledger.charged_bytes("CUDA1") == 400 * MIB
    effects = stepper.post(ev.MemorySampled("CUDA1", 500 * MIB))
    assert launched(effects) == {"b": (("CUDA1",), (4,))}
    assert stepper.ledger.charged_bytes("CUDA0") == 800 * MIB


def test_room_for_a_split_is_made_with_as_few_evictions_as_there_can_be() -> None:
    """`x` and `y` fill a GPU each in part; without `x` there is room for a split beside `y`."""
    stepper = Stepper(machine(1000, 1000), gpu_model("x", 700), gpu_model("y", 400), layered("big", 15))
    stepper.load("x")
    stepper.load("y")
    assert {worker.placement.devices for worker in stepper.ledger.workers.values()} == {("CUDA0",), ("CUDA1",)}
    stepper.arrive("1", "big")
    assert stepper.states() == {"x": ["stopping"], "y": ["ready"]}
    claim = stepper.model("big").claim
    assert claim is not None
    assert sorted(claim.tensor_split) == [6, 9]


def test_one_gpu_is_emptied_rather_than_both_touched() -> None:
    models = [gpu_model(name, 300) for name in ("a", "b", "c", "d")]
    stepper = Stepper(machine(600, 600), *models, layered("big", 5))
    for name in "abcd":
        stepper.load(name)
    stepper.arrive("1", "big")
    leaving = [worker for worker in stepper.ledger.workers.values() if worker.state.value == "stopping"]
    assert len(leaving) == 2
    assert len({worker.placement.devices for worker in leaving}) == 1


def test_an_idle_model_leaves_before_another_is_put_into_ram() -> None:
    stepper = Stepper(machine(1000), layered("a", 8), layered("b", 8))
    stepper.load("a")
    assert launched(stepper.arrive("1", "b")) == {}
    assert stepper.states() == {"a": ["stopping"]}


def test_a_model_that_no_gpu_can_ever_hold_takes_the_layers_that_fit() -> None:
    stepper = Stepper(machine(1000), layered("huge", 20))
    effects = stepper.arrive("1", "huge")
    assert launched(effects) == {"huge": (("CUDA0",), (10,))}
    (tell,) = only(Tell, effects)
    assert "the last 10 of 20 layers (the GPUs have no room for more) on CUDA0" in tell.message


def test_it_settles_for_nearly_as_many_beside_another_model() -> None:
    stepper = Stepper(machine(1000), gpu_model("small", 200), layered("huge", 20))
    stepper.load("small")
    assert launched(stepper.arrive("1", "huge")) == {"huge": (("CUDA0",), (8,))}
    assert stepper.states() == {"small": ["ready"], "huge": ["launching"]}


def test_but_not_for_much_fewer() -> None:
    stepper = Stepper(machine(1000), gpu_model("small", 400), layered("huge", 20))
    stepper.load("small")
    assert launched(stepper.arrive("1", "huge")) == {}
    assert stepper.states() == {"small": ["stopping"]}


def test_a_pinned_model_lowers_what_others_can_hope_for() -> None:
    stepper = Stepper(machine(1000), gpu_model("pinned", 600, pin=True), layered("a", 8))
    stepper.ready("pinned")
    assert launched(stepper.arrive("1", "a")) == {"a": (("CUDA0",), (4,))}


def test_what_can_be_nowhere_is_refused_with_every_sum() -> None:
    stepper = Stepper(machine(1000, 500, ram_mib=300), layered("a", 20, n_gpu_layers=20))
    (reject,) = only(Reject, stepper.arrive("1", "a"))
    assert reject.refusal.kind is RefusalKind.DOES_NOT_FIT
    assert "CUDA0 needs 2,000 MiB of a budget of 1,000 MiB" in reject.refusal.message
    assert "CUDA0 and CUDA1 needs 2,000 MiB of a budget of 1,500 MiB" in reject.refusal.message


def test_a_claim_on_one_gpu_leaves_the_other_to_later_models() -> None:
    models = (gpu_model("busy", 900), layered("waits", 9, max_wait_s=5.0, devices=("CUDA0",)), gpu_model("late", 300))
    stepper = Stepper(machine(1000, 500), *models)
    stepper.serve("1", "busy", "alice")
    stepper.arrive("2", "waits", "bob")
    stepper.wait(5.0)
    assert stepper.states() == {"busy": ["draining"]}
    assert launched(stepper.arrive("3", "late", "carol")) == {"late": (("CUDA1",), (1,))}
