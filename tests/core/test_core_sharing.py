"""Workers of one file whose weights are mapped: the pages count once, as long as one of them is there."""

from __future__ import annotations

from dataclasses import replace

from support.simulation import MIB, gpu, model, ram
from support.stepper import Stepper, only

from swapd.core import events as ev
from swapd.core.effects import Launch, RefusalKind, Reject, Stop
from swapd.core.pages import Pages, held_bytes, needed_bytes, pages_of
from swapd.core.placement import place
from swapd.core.spec import LayerCosts, ModelSpec, Room

WEIGHTS_MIB, OWN_MIB = 400, 100


def variant(model_id: str, *, files: str | None = "file", **settings: object) -> ModelSpec:
    """A model in RAM of 400 MiB of weights, and 100 MiB for each worker besides."""
    quarter = WEIGHTS_MIB * MIB // 4
    costs = LayerCosts((quarter,) * 3, (0,) * 3, host_bytes=OWN_MIB * MIB, compute_bytes=0, host_weights_bytes=quarter)
    return replace(model(model_id, 1, slots=1), costs=costs, mapped_files=files, **settings)  # type: ignore[arg-type]


def test_the_weights_of_variants_of_one_file_count_once() -> None:
    stepper = Stepper([ram(2000)], variant("a"), variant("b"), variant("c"))
    for number, name in enumerate("abc"):
        stepper.serve(name, name)
        assert stepper.ram_mib() == WEIGHTS_MIB + (number + 1) * OWN_MIB


def test_those_of_replicas_do_too() -> None:
    stepper = Stepper([ram(600)], variant("a", replicas=2))
    stepper.serve("1", "a")
    stepper.serve("2", "a")
    assert stepper.ram_mib() == WEIGHTS_MIB + 2 * OWN_MIB


def test_weights_of_other_files_and_those_that_are_not_mapped_count_each() -> None:
    stepper = Stepper([ram(2000)], variant("a"), variant("b", files="other"), variant("c", files=None))
    for name in "abc":
        stepper.serve(name, name)
    assert stepper.ram_mib() == 3 * (WEIGHTS_MIB + OWN_MIB)


def test_they_count_until_the_last_one_has_gone_whoever_came_first() -> None:
    stepper = Stepper([ram(2000)], variant("a"), variant("b"))
    stepper.serve("1", "a")
    stepper.serve("2", "b")
    stepper.exit("a")
    assert stepper.ram_mib() == WEIGHTS_MIB + OWN_MIB
    stepper.exit("b")
    assert stepper.ram_mib() == 0


def test_a_variant_fits_where_there_is_room_for_what_is_its_own() -> None:
    stepper = Stepper([ram(600)], variant("a"), variant("b"), variant("c", files="other"))
    stepper.serve("1", "a")
    assert [launch.model_id for launch in only(Launch, stepper.arrive("2", "b", "bob"))] == ["b"]
    assert only(Launch, stepper.arrive("3", "c", "carol")) == []


def test_a_variant_does_not_count_on_pages_of_one_that_is_leaving() -> None:
    stepper = Stepper([ram(550)], variant("a"), variant("b"))
    stepper.serve("1", "a")
    stepper.finish("1")
    stepper.post(ev.UnloadAsked("unload", "a"))
    assert only(Launch, stepper.arrive("2", "b")) == []
    assert [launch.model_id for launch in only(Launch, stepper.exit("a"))] == ["b"]


def test_one_that_leaves_for_a_variant_gives_back_only_what_is_its_own() -> None:
    """`b` is short of 50 MiB, which are in `a`'s own 100."""
    stepper = Stepper([ram(550)], variant("a"), variant("b"))
    stepper.serve("1", "a")
    stepper.finish("1")
    stepper.arrive("2", "b")
    assert stepper.states() == {"a": ["stopping"]}
    assert [launch.model_id for launch in only(Launch, stepper.exit("a"))] == ["b"]
    assert stepper.ram_mib() == WEIGHTS_MIB + OWN_MIB


def test_for_a_stranger_all_leave_that_map_the_pages_it_needs() -> None:
    stepper = Stepper([ram(700)], variant("a"), variant("b"), model("large", 600))
    for name in "ab":
        stepper.load(name)
    stepper.wait(1.0)
    effects = stepper.arrive("3", "large")
    assert len(only(Stop, effects)) == 2
    stepper.exit("a")
    assert [launch.model_id for launch in only(Launch, stepper.exit("b"))] == ["large"]


def test_for_a_stranger_that_needs_less_one_of_them_is_enough() -> None:
    stepper = Stepper([ram(700)], variant("a"), variant("b"), model("small", 150))
    for name in "ab":
        stepper.load(name)
    stepper.wait(1.0)
    assert len(only(Stop, stepper.arrive("3", "small"))) == 1


def test_a_cut_budget_sends_away_as_many_as_it_takes() -> None:
    stepper = Stepper([ram(1000)], variant("a"), variant("b"))
    for name in "ab":
        stepper.load(name)
    stepper.post(ev.DevicesChanged((replace(ram(1000), budget_bytes=450 * MIB),)))
    assert stepper.states() == {"a": ["stopping"], "b": ["stopping"]}


def test_a_variant_of_a_pinned_model_is_not_refused_for_weights_that_it_would_share() -> None:
    stepper = Stepper([ram(600)], variant("a", pin=True), variant("b"), variant("c", files="other"))
    stepper.ready("a")
    assert [launch.model_id for launch in only(Launch, stepper.arrive("1", "b"))] == ["b"]
    (reject,) = only(Reject, stepper.arrive("2", "c"))
    assert reject.refusal.kind is RefusalKind.DOES_NOT_FIT


def test_only_workers_with_the_same_tensors_in_ram_share() -> None:
    spec = replace(variant("a"), n_gpu_layers=None)
    everything = place(spec, Room({"RAM": 1000 * MIB}))
    some = place(spec, Room({"RAM": 1000 * MIB, "CUDA0": 250 * MIB}))
    whole = place(spec, Room({"RAM": 1000 * MIB, "CUDA0": 1000 * MIB}))
    assert everything is not None
    assert some is not None
    assert whole is not None
    pages = [pages_of(spec, one) for one in (everything, some, whole)]
    assert pages == [
        Pages("file", 3, 0, 400 * MIB),
        Pages("file", 1, 0, 200 * MIB),
        Pages("file", 0, 0, 100 * MIB),
    ]
    assert needed_bytes(spec, some, {pages[0], pages[2]}) == some.device_bytes  # type: ignore[arg-type]
    assert needed_bytes(spec, whole, {pages[2]})["RAM"] == OWN_MIB * MIB  # type: ignore[arg-type]


def test_what_is_on_gpus_is_never_shared() -> None:
    spec = replace(variant("a", replicas=2), n_gpu_layers=3)
    stepper = Stepper([gpu("CUDA0", 1000), ram(2000)], spec)
    stepper.serve("1", "a")
    stepper.serve("2", "a")
    assert stepper.ledger.charged_bytes("CUDA0") == 2 * 300 * MIB
    assert stepper.ram_mib() == 100 + 2 * OWN_MIB
    assert held_bytes([], "RAM") == 0
