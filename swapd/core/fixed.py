"""Where a worker goes whose engine places itself: so many bytes on each device by name, no layers to move. Pure sums.

Of a device for which it is not known what the worker takes, it is given all there is, and so has it alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from swapd.core.spec import RAM, Placement, Room


def lay_fixed(fixed: Mapping[str, int | None], room: Room) -> Placement:
    """The one way there is. Whether it fits is for the caller to see; `whole` names the devices it has to itself."""
    whole = tuple(sorted(name for name, size_bytes in fixed.items() if size_bytes is None))
    sizes = {
        name: max(0, room.free_bytes.get(name, 0)) if size_bytes is None else size_bytes
        for name, size_bytes in fixed.items()
    }
    for name, memory in room.shares.items():
        # What it has of a GPU that is carved out of RAM counts there; all of RAM has that in it.
        if name in fixed and memory not in whole:
            sizes[memory] = sizes.get(memory, 0) + sizes[name]
    gpus = tuple(name for name in fixed if name != RAM and sizes[name])
    alone = f", alone on {' and '.join(whole)} until it is known what it takes" if whole else ""
    return Placement(sizes, n_gpu_layers=0, devices=gpus, why=f"as its program has it{alone}", whole=whole)


def has_all(found: Placement, best: Placement) -> bool:
    """Whether a placement has all that could be had of the devices that it is to have to itself."""
    return all(0 < best.device_bytes[name] <= found.device_bytes[name] for name in found.whole)
