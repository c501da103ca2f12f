"""What holds for every model and machine: never over what is free, nothing better overlooked, more never hurts."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, combinations_with_replacement, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from swapd.core.layout import Layout, lay
from swapd.core.placement import place
from swapd.core.spec import RAM, LayerCosts, ModelSpec, Placement, Room, SplitMode

GPUS = ("CUDA0", "CUDA1", "Vulkan0")


@st.composite
def costs(draw: st.DrawFn) -> LayerCosts:
    count = draw(st.integers(1, 6))
    size = st.integers(0, 40)

    def each() -> tuple[int, ...]:
        return tuple(draw(st.lists(size, min_size=count, max_size=count)))

    weights = tuple(1 + size_bytes for size_bytes in each())
    shares = draw(st.lists(st.integers(0, 100), min_size=count, max_size=count))
    experts = tuple(whole * share // 110 for whole, share in zip(weights, shares, strict=True))
    compute_bytes = draw(size)
    kept, of_experts, of_layers = draw(st.sampled_from([(0, 0, 0), (0, 5, 5), (0, 3, 12), (2, 7, 30)]))
    return LayerCosts(
        weights,
        each(),
        host_bytes=draw(size),
        compute_bytes=compute_bytes,
        tied_output_bytes=draw(st.sampled_from([0, 0, 15])),
        host_weights_bytes=draw(size),
        layer_expert_bytes=experts if draw(st.booleans()) else (),
        gpu_compute_bytes=draw(size),
        gpu_host_compute_bytes=draw(st.integers(0, compute_bytes)),
        gpu_pipeline_bytes=draw(st.sampled_from([0, 0, 12])),
        gpu_context_bytes=draw(st.integers(0, 10)),
        gpu_layer_copy_bytes=of_layers,
        gpu_expert_copy_bytes=of_experts,
        gpu_kept_copy_bytes=kept,
    )


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    found = draw(costs())
    return ModelSpec(
        "m",
        "1",
        1,
        found,
        n_gpu_layers=draw(st.none() | st.integers(0, found.layers)),
        devices=draw(st.sampled_from([(), (), ("CUDA1",), ("CUDA1", "CUDA0")])),
        split_mode=draw(st.sampled_from([SplitMode.LAYER, SplitMode.LAYER, SplitMode.NONE])),
        n_cpu_moe=draw(st.none() | st.integers(0, found.layers)),
    )


by_hand = st.builds(
    lambda spec, split, mode: replace(spec, tensor_split=split, split_mode=mode, devices=()),
    specs(),
    st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any).map(lambda pair: tuple(map(float, pair))),
    st.sampled_from([SplitMode.LAYER, SplitMode.ROW]),
)
rows = st.builds(lambda spec: replace(spec, split_mode=SplitMode.ROW), specs())
free = st.fixed_dictionaries({name: st.integers(0, 300) for name in (*GPUS, RAM)})
shared = st.sampled_from([{}, {}, {"Vulkan0": RAM}])


@given(specs() | by_hand | rows, free, shared)
def test_a_placement_never_takes_more_than_is_free(
    spec: ModelSpec, free: dict[str, int], shares: dict[str, str]
) -> None:
    found = place(spec, Room(free, shares))
    if found is not None:
        assert all(size <= free[name] for name, size in found.device_bytes.items())


@given(specs() | by_hand | rows, free, shared)
def test_what_is_reserved_is_what_the_layers_on_each_device_take(
    spec: ModelSpec, free: dict[str, int], shares: dict[str, str]
) -> None:
    found = place(spec, Room(free, shares))
    if found is not None:
        assert spec.costs is not None
        assert found.n_gpu_layers == sum(found.tensor_split)
        layout = Layout(found.devices, found.tensor_split, found.n_cpu_moe, spec.split_mode is SplitMode.ROW)
        assert found.device_bytes == lay(spec.costs, layout, shares)


@given(specs() | by_hand | rows, free, shared)
def test_what_the_settings_fix_is_kept(spec: ModelSpec, free: dict[str, int], shares: dict[str, str]) -> None:
    found = place(spec, Room(free, shares))
    if found is None:
        return
    assert spec.costs is not None
    if spec.devices:
        assert set(found.devices) <= set(spec.devices)
    if spec.n_gpu_layers is not None:
        assert found.n_gpu_layers == spec.n_gpu_layers
    if spec.n_cpu_moe is not None and found.devices:
        assert found.n_cpu_moe == spec.n_cpu_moe
    if spec.split_mode is SplitMode.NONE:
        assert len(found.devices) <= 1


@given(specs() | by_hand | rows, free, shared, st.randoms())
def test_the_order_of_devices_does_not_matter(
    spec: ModelSpec, free: dict[str, int], shares: dict[str, str], random: st.randoms
) -> None:
    names = list(free)
    random.shuffle(names)
    assert place(spec, Room({name: free[name] for name in names}, shares)) == place(spec, Room(free, shares))
    if not spec.tensor_split:
        backwards = replace(spec, devices=spec.devices[::-1])
        assert place(backwards, Room(free, shares)) == place(spec, Room(free, shares))


def rank(found: Placement | None) -> tuple[int, int]:
    """Less is better: bytes that should be on GPUs and are not, then the number of GPUs."""
    return (1 << 30, 0) if found is None else (found.left_bytes, len(found.devices))


@given(specs(), free, free)
def test_more_memory_never_makes_a_placement_worse(spec: ModelSpec, free: dict[str, int], more: dict[str, int]) -> None:
    roomier = {name: size + more[name] for name, size in free.items()}
    assert rank(place(spec, Room(roomier))) <= rank(place(spec, Room(free)))


@given(specs() | rows | by_hand, free, free)
def test_what_has_a_place_keeps_one_when_there_is_more_memory(
    spec: ModelSpec, free: dict[str, int], more: dict[str, int]
) -> None:
    roomier = {name: size + more[name] for name, size in free.items()}
    if place(spec, Room(free)) is not None:
        assert place(spec, Room(roomier)) is not None


def every_layout(spec: ModelSpec) -> list[Layout]:
    """All that llama.cpp could be told to do within the settings, by counting them out."""
    assert spec.costs is not None
    layers = spec.costs.layers
    gpus = [name for name in GPUS if not spec.devices or name in spec.devices]
    counts = range(layers + 1) if spec.n_gpu_layers is None else [spec.n_gpu_layers]
    # Blocks without experts could be told to keep them in RAM too, which only ends the work in turns.
    blocks = max((layer + 1 for layer, size in enumerate(spec.costs.layer_expert_bytes) if size), default=0)
    experts = range(blocks + 1) if spec.n_cpu_moe is None else [spec.n_cpu_moe]
    found = []
    for size in range(1, 1 + (1 if spec.split_mode is SplitMode.NONE else len(gpus))):
        for group in combinations(gpus, size):
            for count in counts:
                for bounds in combinations_with_replacement(range(1, count), size - 1):
                    edges = [0, *bounds, count]
                    pieces = tuple(end - start for start, end in pairwise(edges))
                    if all(pieces):
                        found += [Layout(group, pieces, n_cpu_moe) for n_cpu_moe in experts]
    return found + [Layout()] * (0 in counts)


@settings(max_examples=150, deadline=None)
@given(specs(), free)
def test_no_better_way_is_overlooked(spec: ModelSpec, free: dict[str, int]) -> None:
    """Against every layout there is: one is found if any fits, and a whole one on the fewest GPUs if any is whole."""
    assert spec.costs is not None
    found = place(spec, Room(free))
    possible = [
        layout
        for layout in every_layout(spec)
        if all(size <= free[name] for name, size in lay(spec.costs, layout).items())
    ]
    given_experts = spec.n_cpu_moe or 0
    wanted = spec.costs.layers if spec.n_gpu_layers is None else spec.n_gpu_layers
    whole = [one for one in possible if one.n_gpu_layers == wanted and one.n_cpu_moe == given_experts]
    with_experts_in_ram = [one for one in possible if one.n_gpu_layers == wanted]
    if whole:
        assert found is not None
        assert (found.n_gpu_layers, found.n_cpu_moe) == (wanted, given_experts)
        assert len(found.devices) == min(len(one.devices) for one in whole)
    elif with_experts_in_ram:
        assert found is not None
        assert found.n_gpu_layers == wanted
        assert found.n_cpu_moe == min(one.n_cpu_moe for one in with_experts_in_ram)
    elif spec.n_gpu_layers is not None or not possible:
        assert found is None
    else:
        assert found is not None
        blocks = max(one.n_cpu_moe for one in possible)
        assert found.n_gpu_layers == max(
            one.n_gpu_layers for one in possible if one.n_cpu_moe == blocks or not one.devices
        )
