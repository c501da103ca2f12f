"""What a GGUF file and the settings say of a model before it runs, for every backend that has llama.cpp run it.

Owns the verdicts that need no process: no model file, settings the file contradicts; and the sums. Reads nothing but
GGUF headers; must never import an engine.
"""

from __future__ import annotations

import re
from pathlib import Path

from backends.architectures import ARCHITECTURES, NOT_SERVED, WITHOUT_CACHE
from backends.base import Capabilities, Footprint, Inspection, InvalidModelError
from backends.footprint import ContextPlan, Dimensions, are_mapped, footprint, reserved_tokens
from backends.gguf import GgufHeader, shard_paths
from backends.gguf_cache import HeaderCache
from backends.gguf_format import FILE_TYPES, MAX_SHARDS, TENSOR_TYPES_BY_NAME
from backends.gguf_settings import GgufSettings, Task
from backends.lora import check_adapter, with_adapters
from backends.mmproj import Projector, read_projector, with_projector

_POOLING_NONE = 0
_POOLING_MEAN = 1
_POOLING_RANK = 4
_CLASSIFIERS = frozenset(("cls.weight", "cls.output.weight"))
_SHARD_NAME = re.compile(r"-00001-of-(\d{5})\.gguf$")
_HEADERS = HeaderCache()


def read_model(settings: GgufSettings) -> GgufHeader:
    """The header of the model's file. Raises `InvalidModelError` if it has none that is whole."""
    return _HEADERS.read(model_files(settings))


def all_files(settings: GgufSettings) -> tuple[Path, ...]:
    """The model's files, by name alone: all shards if it is that of a first shard, adapters and projector."""
    mmproj = (settings.mmproj,) if settings.mmproj is not None else ()
    return (*model_files(settings), *(lora.path for lora in settings.lora), *mmproj)


def inspection(
    header: GgufHeader, dims: Dimensions, settings: GgufSettings, task: Task, plan: ContextPlan, *, slots: int
) -> Inspection:
    """What a worker of this model needs that makes its context by `plan`, its copies of caches left out.

    Raises `InvalidModelError` for adapters and projectors that do not suit the model.
    """
    n_ctx = min(settings.n_ctx, trained_context(header, dims))
    projector = read_mmproj(settings, task)
    return Inspection(
        footprint=_needs(header, dims, settings, plan, projector),
        slots=slots,
        capabilities=Capabilities(
            chat=task is Task.GENERATE,
            completions=task is Task.GENERATE,
            embeddings=task is Task.EMBED,
            rerank=task is Task.RANK,
            tools=task is Task.GENERATE,
            vision=projector is not None and projector.sees,
            audio=projector is not None and projector.hears,
        ),
        n_ctx=n_ctx,
        n_gpu_layers=_demanded_gpu_layers(settings, dims),
        devices=settings.devices,
        architecture=header.architecture,
        description=describe(header, dims),
        n_ctx_train=trained_context(header, dims),
        tensor_split=settings.tensor_split,
        split_mode=settings.split_mode,
        main_gpu=None if settings.main_gpu == "auto" else settings.main_gpu,
        n_cpu_moe=None if settings.n_cpu_moe == "auto" else settings.n_cpu_moe,
        maps_weights=are_mapped(header, plan),
        # Adapters and projectors are read into memory of the worker's own; overrides choose tensors by patterns.
        shares_weights=are_mapped(header, plan) and not (settings.lora or settings.mmproj or settings.override_tensor),
    )


def _needs(
    header: GgufHeader, dims: Dimensions, settings: GgufSettings, plan: ContextPlan, projector: Projector | None
) -> Footprint:
    needs = with_adapters(footprint(header, dims, plan), read_adapters(header, settings), reserved_tokens(plan))
    if projector is None:
        return needs
    return with_projector(
        needs,
        projector,
        offload=settings.mmproj_offload,
        embedding_bytes=4 * min(settings.n_ctx, trained_context(header, dims)) * dims.n_embd,
    )


def model_files(settings: GgufSettings) -> tuple[Path, ...]:
    """The files of the model alone, by name."""
    match = _SHARD_NAME.search(settings.path.name)
    count = int(match[1]) if match else 1
    return shard_paths(settings.path, 0, count) if 1 < count <= MAX_SHARDS else (settings.path,)


def check_is_model(header: GgufHeader, *, any_architecture: bool = False) -> None:
    """Raise `InvalidModelError` unless the file is a whole model of a kind that is served.

    `any_architecture`: it need not be one that the llama.cpp of the pinned bindings knows.
    """
    path, architecture = header.path, header.architecture
    kind = header.string("general.type")
    if architecture == "clip" or kind == "mmproj":
        raise InvalidModelError(
            f"{path}: is the projector of a multimodal model; name the model's own file and this one under mmproj"
        )
    if kind in ("adapter", "imatrix"):
        hint = " and list this one under lora" if kind == "adapter" else ""
        raise InvalidModelError(f"{path}: is not a model but an {kind}; name the model's own file{hint}")
    if not architecture:
        raise InvalidModelError(f"{path}: names no architecture (general.architecture); it is not a model")
    if architecture not in ARCHITECTURES and not any_architecture:
        raise InvalidModelError(
            f"{path}: architecture {architecture[:60]!r} is unknown to this llama.cpp; "
            "the model needs a newer llama-cpp-python, or the file is damaged"
        )
    if architecture in NOT_SERVED:
        raise InvalidModelError(f"{path}: is {NOT_SERVED[architecture]} ({architecture}), which is not served")
    if not header.tensors:
        raise InvalidModelError(f"{path}: holds no tensors, only metadata; get the whole model")
    if not header.length("tokenizer.ggml.tokens"):
        raise InvalidModelError(f"{path}: holds no vocabulary (tokenizer.ggml.tokens); get a complete model file")


def read_adapters(header: GgufHeader, settings: GgufSettings) -> tuple[GgufHeader, ...]:
    """The headers of the settings' LoRA adapters. Raises `InvalidModelError` for one that does not suit the model."""
    adapters = tuple(_HEADERS.read((lora.path,)) for lora in settings.lora)
    for adapter in adapters:
        check_adapter(adapter, header)
    return adapters


def read_mmproj(settings: GgufSettings, task: Task) -> Projector | None:
    """The settings' projector, if there is one. Raises `InvalidModelError` for one that cannot be used."""
    if settings.mmproj is None:
        return None
    if task is not Task.GENERATE:
        raise InvalidModelError(f"{settings.path}: is served for embeddings, which takes no images; leave out mmproj")
    return read_projector(_HEADERS.read((settings.mmproj,)), image_max_tokens=settings.image_max_tokens)


def task_of(header: GgufHeader, settings: GgufSettings) -> Task:
    """What the worker is for: the settings' word, else the file's.

    Raises `InvalidModelError` for a file that cannot do it.
    """
    architecture = header.architecture
    pooling = header.integer(f"{architecture}.pooling_type")
    pools = pooling not in (None, _POOLING_NONE) or settings.pooling == "rank"
    causal = header.metadata.get(f"{architecture}.attention.causal") is not False
    embeddings = (pools or not causal) if settings.embeddings == "auto" else settings.embeddings
    if not embeddings and architecture in WITHOUT_CACHE:
        raise InvalidModelError(
            f"{header.path}: a {architecture} model cannot generate text; `embeddings: true` serves its embeddings"
        )
    if not embeddings:
        return Task.GENERATE
    if settings.pooling != "rank" and (settings.pooling != "auto" or pooling != _POOLING_RANK):
        return Task.EMBED
    if _CLASSIFIERS.isdisjoint(tensor.name for tensor in header.tensors):
        raise InvalidModelError(
            f"{header.path}: cannot rerank: it has no classifier (cls.weight or cls.output.weight); "
            "`pooling: mean` serves its embeddings"
        )
    return Task.RANK


def check_settings(header: GgufHeader, dims: Dimensions, settings: GgufSettings) -> None:
    """Raise `InvalidModelError` for cache types the heads do not suit (llama-context.cpp llama_init_from_model)."""
    if dims.latent and settings.type_k != settings.type_v:
        raise InvalidModelError(
            f"{header.path}: type_k {settings.type_k} and type_v {settings.type_v} differ, but the model keeps keys "
            "and values as one (MLA); give both the same type"
        )
    if settings.flash_attn is False:
        return
    for key, kind, sizes in (
        ("type_k", settings.type_k, {layer.key_length for layer in dims.layers}),
        ("type_v", settings.type_v, {layer.value_length for layer in dims.layers}),
    ):
        block = TENSOR_TYPES_BY_NAME[kind].block_size
        for head_size in sorted(sizes):
            if head_size % block:
                raise InvalidModelError(
                    f"{header.path}: {key} {kind} needs heads in multiples of {block} elements, "
                    f"the model's have {head_size}; use f16"
                )


def context(
    header: GgufHeader,
    settings: GgufSettings,
    *,
    embeddings: bool,
    n_seq_max: int,
    n_outputs_max: int,
    swa_full: bool = False,
) -> ContextPlan:
    """How a worker makes its context, for so many sequences, which one for embeddings chooses by itself.

    Flash attention `auto` counts as on: llama.cpp turns it off only for grok and where a device has no kernel for it.
    """
    architecture = header.architecture
    n_batch, n_ubatch = max(settings.n_batch, settings.n_parallel), settings.n_ubatch
    if embeddings:
        n_batch = n_ubatch = n_outputs_max = settings.embedding_batch
        n_seq_max = settings.embedding_sequences
    return ContextPlan(
        n_ctx=settings.n_ctx,
        n_seq_max=n_seq_max,
        n_outputs_max=n_outputs_max,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        type_k=settings.type_k,
        type_v=settings.type_v,
        flash_attn=settings.flash_attn is not False and architecture != "grok",
        embeddings=embeddings,
        pools_mean=pools_mean(header, settings),
        causal=header.metadata.get(f"{architecture}.attention.causal") is not False,
        swa_full=swa_full,
        use_extra_bufts=settings.use_extra_bufts,
        use_mmap=settings.use_mmap,
        host_patterns=settings.host_patterns,
        has_cache=architecture not in WITHOUT_CACHE,
    )


def pools_mean(header: GgufHeader, settings: GgufSettings) -> bool:
    """Whether an embedding is the mean of its tokens': the settings' word, else the file's, else so."""
    if settings.pooling != "auto":
        return settings.pooling == "mean"
    return header.integer(f"{header.architecture}.pooling_type") in (None, _POOLING_NONE, _POOLING_MEAN)


def trained_context(header: GgufHeader, dims: Dimensions) -> int:
    """Tokens the model was trained for, or what its own rope scaling stretches the original context to."""
    prefix = f"{header.architecture}.rope.scaling"
    factor = header.metadata.get(f"{prefix}.factor")
    original = header.integer(f"{prefix}.original_context_length")
    if not isinstance(factor, float) or original is None or not 1.0 <= factor <= 65536.0:
        return dims.n_ctx_train
    return max(dims.n_ctx_train, int(factor * original))


def describe(header: GgufHeader, dims: Dimensions) -> str:
    """A line like "llama 135M Q4_1, 30 layers, trained for 8,192 tokens"."""
    parameters = sum(tensor.elements for tensor in header.tensors)
    kind = FILE_TYPES.get(header.integer("general.file_type") or 0) if "general.file_type" in header.metadata else None
    layers = "1 layer" if dims.n_layer == 1 else f"{dims.n_layer} layers"
    named = " ".join(filter(None, (header.architecture, _human_count(parameters), kind)))
    return f"{named}, {layers}, trained for {dims.n_ctx_train:,} tokens"


def _human_count(number: int) -> str:
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            value = number / size
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return str(number)


def _demanded_gpu_layers(settings: GgufSettings, dims: Dimensions) -> int | None:
    """Layers as llama.cpp counts them, the output layer being one; None when placement decides."""
    if settings.n_gpu_layers == "auto":
        return None
    everything = dims.n_layer + 1
    return everything if settings.n_gpu_layers == "all" else min(settings.n_gpu_layers, everything)
