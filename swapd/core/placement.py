"""Where a model goes in the room there is. Pure and deterministic; never decides who has to leave for it.

In this order: whole on the fullest GPU that holds it; split over the fewest GPUs in proportion to what they have
free; with the experts of as few blocks as need be in RAM; with as many layers on GPUs as fit, when the settings leave
their number open; in RAM. What the settings fix by hand narrows this. Names decide ties, never the order of a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, combinations

from swapd.core.fit import cut, longest_tail
from swapd.core.fixed import has_all, lay_fixed
from swapd.core.layout import Layout, gpu_compute_bytes, gpu_copy_bytes, gpu_weights, lay, layers_by_split, parts
from swapd.core.spec import RAM, LayerCosts, ModelSpec, Placement, Room, SplitMode

MIB = 1024 * 1024

MAX_COMBINED_GPUS = 6
"""With more GPUs than this, of each number only those with the most room are tried together."""

MAX_SUMS = 4
"""Of the ways that do not fit, how many are told."""

MAX_TARGETED_GPUS = 4
"""With more GPUs than this, room is made on one of them or on all."""

ELSEWHERE = Placement(device_bytes={}, n_gpu_layers=0, devices=(), why="elsewhere, without any memory here")
"""Where all models are that a server elsewhere serves."""

SETTLE_SHARE = 1 / 8
"""Of a model that can never be on GPUs as a whole: how much less than the best it may get to be loaded at once."""


def place(spec: ModelSpec, room: Room) -> Placement | None:
    """The best way to put this model into what is free, or None if there is none."""
    if spec.elsewhere:
        return ELSEWHERE
    return _place(spec, tuple(sorted(room.free_bytes.items())), tuple(sorted(room.shares.items())))


# While a model waits it is asked again after every event, and hardly ever with a new answer.
@lru_cache(maxsize=8192)
def _place(
    spec: ModelSpec, free_bytes: tuple[tuple[str, int], ...], shares: tuple[tuple[str, str], ...]
) -> Placement | None:
    room = Room(dict(free_bytes), dict(shares))
    if spec.fixed is not None:
        found = _fixed(spec.fixed, room)
        return found if fits(found.device_bytes, room.free_bytes) else None
    for layout, why in _ways(spec, room):
        found = _placement(spec, room, layout, why)
        if fits(found.device_bytes, room.free_bytes):
            return found
    return None


def preferred(spec: ModelSpec, room: Room) -> Placement:
    """How the model would be laid out if its first choice had all the room it wants: for people, when nothing fits."""
    if spec.elsewhere:
        return ELSEWHERE
    if spec.fixed is not None:
        return _fixed(spec.fixed, room)
    endless = Room(dict.fromkeys(room.free_bytes, 1 << 62) | {RAM: 1 << 62}, room.shares)
    layout, why = next(_ways(spec, endless))
    return _placement(spec, room, layout, why)


def good_enough(found: Placement, best: Placement, costs: LayerCosts) -> bool:
    """Whether to take what is free now, given the best that could be had if every other model left.

    A model that could be on GPUs as a whole does not settle for less because another happens to be there. One of which
    it is not known what it takes waits until it is alone.
    """
    if not has_all(found, best):
        return False
    if found.left_bytes == 0:
        return True
    return best.left_bytes > 0 and found.left_bytes <= best.left_bytes + SETTLE_SHARE * costs.total_bytes


def least_gpu_bytes(spec: ModelSpec, best: Placement) -> int:
    """What any placement that is good enough beside this best one has on GPUs at least."""
    costs = spec.costs
    assert costs is not None
    first = costs.layers - best.n_gpu_layers
    held_bytes = sum(gpu_weights(costs, best.n_cpu_moe)[first:]) + sum(costs.layer_kv_bytes[first:])
    return held_bytes if best.left_bytes == 0 else held_bytes - int(SETTLE_SHARE * costs.total_bytes)


def targets(spec: ModelSpec, room: Room) -> list[tuple[str, ...]]:
    """Sets of GPUs on which this model could concentrate, when others are to leave for it. The last one is of all."""
    gpus = usable_gpus(spec, room)
    if spec.fixed is not None or spec.tensor_split or spec.n_gpu_layers == 0 or not gpus:
        return [tuple(gpus)]
    if spec.split_mode is SplitMode.NONE:
        return [(gpu,) for gpu in gpus]
    sizes = range(1, len(gpus) + 1) if len(gpus) <= MAX_TARGETED_GPUS else (1, len(gpus))
    return [group for size in sizes for group in combinations(gpus, size)]


def usable_gpus(spec: ModelSpec, room: Room) -> list[str]:
    """The GPUs the settings allow. An integrated one counts only beside no other, as in llama.cpp, or when named."""
    names = sorted(room.gpus(), key=_natural)
    if spec.devices:
        names = [name for name in (spec.devices if spec.tensor_split else names) if name in spec.devices]
    else:
        names = [name for name in names if name not in room.shares] or names
    if spec.split_mode is SplitMode.NONE and spec.main_gpu is not None:
        return names[spec.main_gpu : spec.main_gpu + 1]
    return names


@lru_cache(maxsize=256)
def _natural(name: str) -> tuple[str, int]:
    """CUDA2 before CUDA10."""
    number = re.search(r"\d+$", name)
    return (name[: number.start()], int(number[0])) if number else (name, -1)


def _fixed(fixed: Mapping[str, int | None], room: Room) -> Placement:
    sizes = lay_fixed(fixed, room)
    return replace(sizes, why=f"{sizes.why}, {describe(sizes.device_bytes)}")


# -- ways, best first -----------------------------------------------------------------------------------------------


def _ways(spec: ModelSpec, room: Room) -> Iterator[tuple[Layout, str]]:
    """Layouts that the GPUs have room for, with the words for them. Whether RAM suffices is not looked at."""
    costs = spec.costs
    assert costs is not None
    gpus = usable_gpus(spec, room)
    wanted = costs.layers if spec.n_gpu_layers is None else min(spec.n_gpu_layers, costs.layers)
    if wanted == 0 or not gpus:
        yield Layout(), "on the CPU"
        return
    search = _Search(spec, costs, room, gpus)
    given = spec.n_cpu_moe or 0
    whole = "all layers" if wanted == costs.layers else f"the last {wanted} of {costs.layers} layers"
    for layout in search.layouts(wanted, given):
        yield layout, f"{whole} on {search.where(layout)}"
    blocks = _expert_blocks(costs) if spec.n_cpu_moe is None else 0
    for n_cpu_moe in search.fewest_blocks(wanted, blocks):
        for layout in search.layouts(wanted, n_cpu_moe):
            kept = f"the experts of the first {n_cpu_moe} blocks in RAM (the GPUs have no room for more)"
            yield layout, f"{whole} on {search.where(layout)}, {kept}"
    if spec.n_gpu_layers is None:
        most = 0
        # All experts in RAM, or as many as RAM has room for.
        for n_cpu_moe in range(max(given, blocks), given - 1, -1):
            # All of them may have failed for the copies of GPUs that work in turn, which fewer do without.
            n_gpu_layers = min(search.most_layers(n_cpu_moe), wanted - 1)
            most = max(most, n_gpu_layers)
            for layout in search.layouts(n_gpu_layers, n_cpu_moe) if n_gpu_layers else ():
                some = f"the last {n_gpu_layers} of {costs.layers} layers (the GPUs have no room for more)"
                yield layout, f"{some} on {search.where(layout)}{_without(n_cpu_moe, blocks)}"
        yield Layout(), "on the CPU (no GPU has room for a layer)" if most == 0 else "on the CPU"


def _without(n_cpu_moe: int, blocks: int) -> str:
    if n_cpu_moe == 0:
        return ""
    which = "their experts" if n_cpu_moe >= blocks else f"the experts of the first {n_cpu_moe} blocks"
    return f", without {which}"


def _expert_blocks(costs: LayerCosts) -> int:
    """The number of first blocks that hold all the experts there are."""
    return max((layer + 1 for layer, size_bytes in enumerate(costs.layer_expert_bytes) if size_bytes), default=0)


@dataclass(frozen=True, slots=True)
class _Search:
    """One model's layouts in one room."""

    spec: ModelSpec
    costs: LayerCosts
    room: Room
    gpus: Sequence[str]

    def layouts(self, n_gpu_layers: int, n_cpu_moe: int) -> Iterator[Layout]:
        """Ways to put so many layers on GPUs: the fewest that hold them, of these the ones with the least room."""
        if self.spec.tensor_split:
            layout = self.by_hand(n_gpu_layers, n_cpu_moe)
            if self.on_gpus_fits(layout):
                yield layout
            return
        sums = self.sums(n_cpu_moe)
        first = self.costs.layers - n_gpu_layers
        for size in range(1, 1 + (1 if self.spec.split_mode is SplitMode.NONE else len(self.gpus))):
            found = []
            for group in self.groups(size):
                fixed_bytes = self.fixed_bytes(n_gpu_layers, size, n_cpu_moe)
                capacities = [self.room.free_bytes[gpu] - fixed_bytes for gpu in group]
                capacities[0] -= gpu_copy_bytes(self.costs, n_gpu_layers, n_cpu_moe)
                counts = cut(sums, first, capacities)
                if counts is not None and all(counts):
                    found.append((sum(capacities), group, counts))
            for _, group, counts in sorted(found, key=lambda one: (one[0], [_natural(gpu) for gpu in one[1]])):
                layout = Layout(group, counts, n_cpu_moe, self.spec.split_mode is SplitMode.ROW)
                if not layout.by_rows or self.on_gpus_fits(layout):
                    yield layout

    def fewest_blocks(self, n_gpu_layers: int, blocks: int) -> Iterator[int]:
        """The fewest first blocks, of so many, whose experts must be in RAM; none if even all do not suffice."""
        fewest = _first_true(blocks, lambda n_cpu_moe: next(self.layouts(n_gpu_layers, n_cpu_moe), None) is not None)
        if fewest is not None:
            yield fewest

    def most_layers(self, n_cpu_moe: int) -> int:
        """The most last layers that the GPUs have room for."""
        if self.spec.tensor_split:
            counts = range(self.costs.layers, 0, -1)
            return next((count for count in counts if self.on_gpus_fits(self.by_hand(count, n_cpu_moe))), 0)
        copies_bytes = gpu_copy_bytes(self.costs, 0, n_cpu_moe)
        largest = 1 if self.spec.split_mode is SplitMode.NONE else len(self.gpus)
        # Where one of them has the copies, it matters which one is the first, and a further one can be in the way.
        sizes = range(1, largest + 1) if copies_bytes else (largest,)
        return max(self._most_on(group, copies_bytes, n_cpu_moe) for size in sizes for group in self.groups(size))

    def _most_on(self, group: Sequence[str], copies_bytes: int, n_cpu_moe: int) -> int:
        """The most on these GPUs; none if the first, which has the copies, has no room for a layer beside them."""
        sums, fixed_bytes = self.sums(n_cpu_moe), self.fixed_bytes(0, 1, n_cpu_moe)
        capacities = [self.room.free_bytes[gpu] - fixed_bytes for gpu in group]
        capacities[0] -= copies_bytes
        first = longest_tail(sums, capacities)
        if copies_bytes and first == longest_tail(sums, capacities[1:]):
            # The others hold the longest tail by themselves: the first begins with what it can hold of that.
            layers = range(first, self.costs.layers)
            first = next((at for at in layers if sums[at + 1] - sums[at] <= capacities[0]), self.costs.layers)
        return self.costs.layers - first

    def groups(self, size: int) -> Iterator[tuple[str, ...]]:
        if size == 1 or len(self.gpus) <= MAX_COMBINED_GPUS:
            return combinations(self.gpus, size)
        roomy = sorted(self.gpus, key=lambda gpu: (-self.room.free_bytes[gpu], _natural(gpu)))[:size]
        return iter([tuple(sorted(roomy, key=_natural))])

    def fixed_bytes(self, n_gpu_layers: int, gpus: int, n_cpu_moe: int) -> int:
        """What computing on a GPU takes whatever its layers are."""
        by_rows = self.spec.split_mode is SplitMode.ROW
        compute_bytes = gpu_compute_bytes(self.costs, n_gpu_layers, gpus, n_cpu_moe, by_rows=by_rows)
        return compute_bytes + self.costs.gpu_context_bytes

    def sums(self, n_cpu_moe: int) -> list[int]:
        """Running sums of what each layer takes on a GPU."""
        sizes = [w + kv for w, kv in zip(gpu_weights(self.costs, n_cpu_moe), self.costs.layer_kv_bytes, strict=True)]
        sizes[-1] += self.costs.tied_output_bytes
        return list(accumulate(sizes, initial=0))

    def by_hand(self, n_gpu_layers: int, n_cpu_moe: int) -> Layout:
        """The layout that the settings' tensor_split makes."""
        counts = layers_by_split(self.spec.tensor_split, n_gpu_layers)
        used = [(gpu, count) for gpu, count in zip(self.gpus, counts, strict=False) if count]
        devices, layers = zip(*used, strict=True)
        return Layout(devices, layers, n_cpu_moe, self.spec.split_mode is SplitMode.ROW)

    def on_gpus_fits(self, layout: Layout) -> bool:
        found = parts(self.costs, layout)
        return all(found[gpu].total_bytes <= self.room.free_bytes[gpu] for gpu in layout.devices)

    def where(self, layout: Layout) -> str:
        """'CUDA1', 'CUDA1 (the fullest GPU with room)', 'CUDA0 and CUDA1 (20 and 13; no GPU alone has room)'."""
        names = " and ".join(layout.devices)
        if len(layout.devices) > 1:
            counts = " and ".join(map(str, layout.layers))
            return f"{names} ({counts}; {'tensor_split' if self.spec.tensor_split else 'no GPU alone has room'})"
        return f"{names} (the fullest GPU with room)" if len(self.gpus) > 1 and not self.spec.tensor_split else names


def _first_true(most: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number from 1 to `most` for which something holds that holds for all greater ones, too."""
    if most == 0 or not holds(most):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


# -- sums -----------------------------------------------------------------------------------------------------------


def _placement(spec: ModelSpec, room: Room, layout: Layout, why: str) -> Placement:
    assert spec.costs is not None
    sizes = lay(spec.costs, layout, room.shares)
    main_gpu = 0
    if layout.by_rows and spec.main_gpu is not None:
        main = usable_gpus(spec, room)[spec.main_gpu]
        main_gpu = layout.devices.index(main) if main in layout.devices else 0
    return Placement(
        device_bytes=sizes,
        n_gpu_layers=layout.n_gpu_layers,
        devices=layout.devices,
        why=f"{why}, {describe(sizes)}",
        tensor_split=layout.layers,
        n_cpu_moe=layout.n_cpu_moe,
        main_gpu=main_gpu,
        left_bytes=_left_bytes(spec, layout, room),
    )


def _left_bytes(spec: ModelSpec, layout: Layout, room: Room) -> int:
    """Weights and cache that the settings would have on GPUs and that are in RAM."""
    costs = spec.costs
    assert costs is not None
    if not usable_gpus(spec, room):
        return 0
    wanted = costs.layers if spec.n_gpu_layers is None else min(spec.n_gpu_layers, costs.layers)
    meant = sum(gpu_weights(costs, spec.n_cpu_moe or 0)[costs.layers - wanted :])
    got = sum(gpu_weights(costs, layout.n_cpu_moe)[costs.layers - layout.n_gpu_layers :])
    cache = sum(costs.layer_kv_bytes[costs.layers - wanted : costs.layers - layout.n_gpu_layers])
    return meant - got + cache


def fits(sizes: Mapping[str, int], free: Mapping[str, int]) -> bool:
    """Whether every device has room for its share. A device that is not there has none."""
    return all(size_bytes <= free.get(name, 0) for name, size_bytes in sizes.items())


def shortage(sizes: Mapping[str, int], free: Mapping[str, int]) -> dict[str, int]:
    """Bytes that are missing per device, for the devices that are short."""
    missing = {name: size_bytes - free.get(name, 0) for name, size_bytes in sizes.items()}
    return {name: size_bytes for name, size_bytes in missing.items() if size_bytes > 0}


def describe(sizes: Mapping[str, int]) -> str:
    """'CUDA0 5,120 MiB and RAM 310 MiB'."""
    said = [f"{name} {-(-size_bytes // MIB):,} MiB" for name, size_bytes in sorted(sizes.items()) if size_bytes]
    return " and ".join(said) or "nothing"


def misfit(spec: ModelSpec, room: Room) -> str | None:
    """The sentence that says why no way of placing this model can ever fit these budgets, or None if one can."""
    if place(spec, room) is not None:
        return None
    if spec.fixed is not None:
        sizes = _sum(preferred(spec, room).device_bytes, room.free_bytes)
        remedy = "Make it take less and say so in its memory, or raise memory.budget."
        return f"model {spec.id!r} can never fit: {sizes}. {remedy}"
    sums = "; or ".join(_sums(spec, room)[:MAX_SUMS])
    return (
        f"model {spec.id!r} can never fit: {sums}. "
        "Lower its n_ctx or n_gpu_layers, quantize its cache (type_k, type_v), or raise memory.budget."
    )


def _sums(spec: ModelSpec, room: Room) -> list[str]:
    """What it would take on each GPU alone, on all of them, and in RAM, as far as the settings allow."""
    costs = spec.costs
    assert costs is not None
    gpus = usable_gpus(spec, room)
    budgets = room.free_bytes
    alone = [room.only((gpu,)) for gpu in gpus] if not spec.tensor_split and spec.n_gpu_layers != 0 else []
    found = [_sum(preferred(spec, one).device_bytes, budgets) for one in alone or [room]]
    if len(alone) > 1 and spec.split_mode is not SplitMode.NONE:
        sizes = preferred(spec, alone[0]).device_bytes
        one_bytes = gpu_compute_bytes(costs, 0, 1, 0, by_rows=False) + costs.gpu_context_bytes
        together = " and ".join(gpus)
        needed = {together: sizes[gpus[0]] + (len(gpus) - 1) * one_bytes, RAM: sizes[RAM]}
        found.append(_sum(needed, {together: sum(budgets[gpu] for gpu in gpus), RAM: budgets.get(RAM, 0)}))
    if gpus and spec.n_gpu_layers is None:
        found.append(_sum(lay(costs, Layout()), budgets))
    return found


def _sum(sizes: Mapping[str, int], budgets: Mapping[str, int]) -> str:
    return ", ".join(
        f"{name} needs {-(-size_bytes // MIB):,} MiB of a budget of {budgets.get(name, 0) // MIB:,} MiB"
        for name, size_bytes in sorted(sizes.items())
    )
