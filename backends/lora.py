"""LoRA adapters as files: whether one fits a model, and what it takes beside it. Pure, over headers already read.

Owns the verdicts that llama.cpp would give while it loads an adapter (src/llama-adapter.cpp
`llama_adapter_lora_init_impl`), so that a list with a wrong one is refused before any process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from backends.base import Footprint, InvalidModelError
from backends.footprint import is_host_tensor, layer_of
from backends.gguf import GgufHeader, Tensor

_A, _B = ".lora_a", ".lora_b"
_IGNORED = "_norm.weight"
_FLIPPED = "token_embd.weight"
_ALPHA = "adapter.lora.alpha"
_INVOCATION = "adapter.alora.invocation_tokens"


def check_adapter(adapter: GgufHeader, model: GgufHeader) -> None:
    """Raise `InvalidModelError` unless `adapter` is a LoRA adapter made for a model like `model`."""
    path = adapter.path
    kind = adapter.string("general.type")
    if kind != "adapter":
        what = f"a {kind}" if kind else "a file that does not say so (general.type)"
        raise InvalidModelError(f"{path}: is not a LoRA adapter but {what}; name an adapter's file under lora")
    if adapter.string("adapter.type") != "lora":
        raise InvalidModelError(f"{path}: is an adapter of another type than lora (adapter.type), which is not served")
    if adapter.architecture != model.architecture:
        raise InvalidModelError(
            f"{path}: was made for {adapter.architecture[:60] or 'no'} models, but {model.path.name} is a "
            f"{model.architecture} model"
        )
    alpha = adapter.metadata.get(_ALPHA)
    if alpha is not None and not (isinstance(alpha, float) and math.isfinite(alpha)):
        raise InvalidModelError(f"{path}: its {_ALPHA} should be a number, found {str(alpha)[:60]}")
    if _INVOCATION in adapter.metadata:
        raise InvalidModelError(f"{path}: is an activated LoRA (aLoRA), which is not served")
    if len(adapter.files) > 1:
        raise InvalidModelError(f"{path}: is split into several files, which llama.cpp cannot load as an adapter")
    _check_tensors(adapter, model)


def _check_tensors(adapter: GgufHeader, model: GgufHeader) -> None:
    known = {tensor.name: tensor for tensor in model.tensors}
    pairs: dict[str, dict[str, Tensor]] = {}
    for tensor in adapter.tensors:
        name, part = tensor.name[: -len(_A)], tensor.name[-len(_A) :]
        if part in (_A, _B):
            pairs.setdefault(name, {})[part] = tensor
        elif not tensor.name.endswith(_IGNORED):
            raise InvalidModelError(f"{adapter.path}: tensor {tensor.name!r} is none of a LoRA adapter")
    if not pairs:
        raise InvalidModelError(f"{adapter.path}: holds no tensors; get the whole adapter")
    for name, pair in pairs.items():
        if len(pair) < 2:
            raise InvalidModelError(f"{adapter.path}: tensor {name!r} has only one half of its pair")
        if name not in known:
            raise InvalidModelError(
                f"{adapter.path}: changes {name!r}, which {model.path.name} does not have; it is for another model"
            )
        if not _suits(name, known[name], pair):
            raise InvalidModelError(
                f"{adapter.path}: the pair for {name!r} has another shape than {model.path.name} needs; "
                "it is for another model"
            )


def _suits(name: str, base: Tensor, pair: Mapping[str, Tensor]) -> bool:
    """The shape rules of llama.cpp: A and B multiply to the base tensor; the token embedding's are the other way."""
    (columns, rows), a, b = _two(base), _two(pair[_A]), _two(pair[_B])
    if name.endswith(_FLIPPED):
        return columns == b[1] and rows == a[1]
    return columns == a[0] and rows == b[1] and a[1] == b[0]


def _two(tensor: Tensor) -> tuple[int, int]:
    first, second = (*tensor.dims, 1, 1)[:2]
    return first, second


def with_adapters(footprint: Footprint, adapters: Sequence[GgufHeader], n_tokens: int) -> Footprint:
    """The footprint of a model that `check_adapter` found to suit these adapters, with all of them loaded.

    Each pair of tensors lies beside the tensor it changes. `n_tokens` are those of one micro-batch: the graph's
    widest moment grows by one product of A in F32 at most (llama-graph.cpp build_lora_mm); compared with llama.cpp's
    own compute buffers for models of several shapes, the products of B found room in what is there anyway.
    """
    layers = list(footprint.layer_weights_bytes)
    host = footprint.host_weights_bytes
    rank = 0
    for adapter in adapters:
        for tensor in adapter.tensors:
            name, part = tensor.name[: -len(_A)], tensor.name[-len(_A) :]
            if part not in (_A, _B):
                continue
            if is_host_tensor(name):
                host += tensor.size_bytes
            else:
                layers[layer_of(name, len(layers) - 1)] += tensor.size_bytes
            if part == _B:
                rank = max(rank, _two(tensor)[0])
    return replace(
        footprint,
        layer_weights_bytes=tuple(layers),
        host_weights_bytes=host,
        compute_bytes=footprint.compute_bytes + 4 * n_tokens * rank,
    )
