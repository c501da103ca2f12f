"""Where a model's bytes can go. Pure sums over `LayerCosts`; never decides who has to leave.

First version: the whole demand on one GPU, or on the CPU. Splitting over several GPUs is not done here yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from swapd.core.spec import RAM, LayerCosts, ModelSpec, Placement

MIB = 1024 * 1024


def lay(costs: LayerCosts, gpu: str | None, n_gpu_layers: int) -> dict[str, int]:
    """Bytes per device with the last `n_gpu_layers` layers (the output layer counts as one) on one GPU.

    Source: llama.cpp, llama_model::load_tensors: layer i is on the GPU iff i >= max(L + 1 - ngl, 0).
    """
    layers = len(costs.layer_weights_bytes)
    moved = 0 if gpu is None else min(n_gpu_layers, layers)
    first = layers - moved
    weights, kv = costs.layer_weights_bytes, costs.layer_kv_bytes
    ram = sum(weights[:first]) + sum(kv[:first]) + costs.host_bytes
    if moved < layers:
        ram += costs.compute_bytes
    sizes = {RAM: ram}
    if gpu is not None and moved:
        sizes[gpu] = sum(weights[first:]) + sum(kv[first:]) + costs.compute_bytes + costs.tied_output_bytes
    return sizes


def options(spec: ModelSpec, device_names: Sequence[str]) -> list[Placement]:
    """Every way this model may be placed, best first, whatever is free now.

    GPUs come in the order given. The CPU alone is a way when the settings ask for it, or when no GPU is
    theirs to use.
    """
    assert spec.costs is not None
    layers = len(spec.costs.layer_weights_bytes)
    gpus = [name for name in device_names if name != RAM and (not spec.devices or name in spec.devices)]
    wanted = layers if spec.n_gpu_layers is None else min(spec.n_gpu_layers, layers)
    if wanted == 0 or not gpus:
        sizes = lay(spec.costs, None, 0)
        return [Placement(sizes, 0, (), f"on the CPU, {describe(sizes)}")]
    found = []
    for gpu in gpus:
        sizes = lay(spec.costs, gpu, wanted)
        what = "all layers" if wanted == layers else f"the last {wanted} of {layers} layers"
        found.append(Placement(sizes, wanted, (gpu,), f"{what} on {gpu}, {describe(sizes)}"))
    return found


def fits(sizes: Mapping[str, int], free: Mapping[str, int]) -> bool:
    """Whether every device has room for its share. A device that is not there has none."""
    return all(size_bytes <= free.get(name, 0) for name, size_bytes in sizes.items())


def place(candidates: Sequence[Placement], free: Mapping[str, int]) -> Placement | None:
    """The candidate that leaves the least behind: the fullest device that still holds it, ties by name."""
    fitting = [candidate for candidate in candidates if fits(candidate.device_bytes, free)]
    if not fitting:
        return None
    return min(fitting, key=lambda one: (_left_over(one, free), one.devices))


def _left_over(candidate: Placement, free: Mapping[str, int]) -> int:
    devices = candidate.devices or (RAM,)
    return sum(free[name] - candidate.device_bytes.get(name, 0) for name in devices)


def shortage(sizes: Mapping[str, int], free: Mapping[str, int]) -> dict[str, int]:
    """Bytes that are missing per device, for the devices that are short."""
    missing = {name: size_bytes - free.get(name, 0) for name, size_bytes in sizes.items()}
    return {name: size_bytes for name, size_bytes in missing.items() if size_bytes > 0}


def describe(sizes: Mapping[str, int]) -> str:
    """'CUDA0 5,120 MiB and RAM 310 MiB'."""
    parts = [f"{name} {-(-size_bytes // MIB):,} MiB" for name, size_bytes in sorted(sizes.items()) if size_bytes]
    return " and ".join(parts) or "nothing"


def misfit(spec: ModelSpec, budgets: Mapping[str, int]) -> str | None:
    """The sentence that says why no way of placing this model can ever fit, or None if one can."""
    candidates = options(spec, list(budgets))
    if any(fits(candidate.device_bytes, budgets) for candidate in candidates):
        return None
    sums = "; or ".join(
        ", ".join(
            f"{name} needs {-(-size_bytes // MIB):,} MiB of a budget of {budgets.get(name, 0) // MIB:,} MiB"
            for name, size_bytes in sorted(candidate.device_bytes.items())
        )
        for candidate in candidates
    )
    return (
        f"model {spec.id!r} can never fit: {sums}. "
        "Lower its n_ctx or n_gpu_layers, quantize its cache (type_k, type_v), or raise memory.budget."
    )
