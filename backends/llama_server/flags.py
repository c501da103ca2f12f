"""Settings, placement and context as llama-server's command line. Pure.

Owns which flags are ever passed: what is not here cannot be. Its own wishes about memory (`--fit`), devices and the
network are switched off, because they are the daemon's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from backends.base import InvalidModelError, Offload
from backends.footprint import ContextPlan
from backends.gguf_settings import Task
from backends.llama_server.settings import LlamaServerSettings

MIB = 1024 * 1024

Flag = tuple[str, ...]
"""A flag and its value, if it has one."""

_OPTIONAL = frozenset(("--offline", "--no-webui", "--no-ui", "--fit", "--metrics", "--slots", "--verbosity"))
"""Older and newer binaries may lack these: nothing that was set depends on them."""


def command_line(
    settings: LlamaServerSettings,
    plan: ContextPlan,
    task: Task,
    offload: Offload,
    known: Collection[str],
    *,
    cache_ram_bytes: int = 0,
) -> tuple[str, ...]:
    """The arguments but for who is served where: `known` are the binary's own flags.

    Raises `InvalidModelError` if it lacks one that the settings need.
    """
    flags = [
        *_model(settings),
        *_context(settings, plan),
        *_placed(settings, offload),
        *_loading(settings, known),
        *_task(settings, plan, task, cache_ram_bytes),
        *_house(known),
    ]
    missing = sorted({flag[0] for flag in flags} - set(known))
    lacking = [name for name in missing if name not in _OPTIONAL]
    if lacking:
        raise InvalidModelError(
            f"this llama-server knows no {', '.join(lacking)}, which the model's settings need; use a newer one"
        )
    return tuple(word for flag in flags if flag[0] not in missing for word in flag)


def serving(address: Path, model_id: str) -> tuple[str, ...]:
    """Where to listen, and the name that answers carry. A path that ends in .sock is a Unix socket to llama-server."""
    return ("--host", str(address), "--alias", model_id)


def _model(settings: LlamaServerSettings) -> Iterator[Flag]:
    yield "--model", str(settings.path)
    if settings.lora:
        yield "--lora-scaled", ",".join(f"{lora.path}:{lora.scale!r}" for lora in settings.lora)
    if settings.mmproj is not None:
        yield "--mmproj", str(settings.mmproj)
        if not settings.mmproj_offload:
            yield ("--no-mmproj-offload",)
        if settings.image_min_tokens is not None:
            yield "--image-min-tokens", str(settings.image_min_tokens)
        if settings.image_max_tokens is not None:
            yield "--image-max-tokens", str(settings.image_max_tokens)


def _context(settings: LlamaServerSettings, plan: ContextPlan) -> Iterator[Flag]:
    yield "--ctx-size", str(plan.n_ctx)
    yield "--parallel", str(plan.n_seq_max)
    yield ("--kv-unified",)
    yield "--batch-size", str(plan.n_batch)
    yield "--ubatch-size", str(plan.n_ubatch)
    yield "--cache-type-k", plan.type_k
    yield "--cache-type-v", plan.type_v
    yield "--flash-attn", "auto" if settings.flash_attn == "auto" else "on" if settings.flash_attn else "off"
    if settings.n_threads != "auto":
        yield "--threads", str(settings.n_threads)


def _placed(settings: LlamaServerSettings, offload: Offload) -> Iterator[Flag]:
    """All of it, always: what is left out, llama-server would decide."""
    yield "--device", ",".join(offload.devices) or "none"
    yield "--n-gpu-layers", str(offload.n_gpu_layers)
    yield "--split-mode", settings.split_mode
    yield "--main-gpu", str(offload.main_gpu)
    if offload.tensor_split:
        yield "--tensor-split", ",".join(f"{share:g}" for share in offload.tensor_split)
    if offload.n_cpu_moe:
        yield "--n-cpu-moe", str(offload.n_cpu_moe)
    if settings.host_patterns:
        yield "--override-tensor", ",".join(f"{pattern}=CPU" for pattern in settings.host_patterns)
    yield "--fit", "off"


def _loading(settings: LlamaServerSettings, known: Collection[str]) -> Iterator[Flag]:
    if not settings.use_extra_bufts:
        yield ("--no-repack",)
    if "--load-mode" in known:
        mode = "+".join(["mmap"] * settings.use_mmap + ["mlock"] * settings.use_mlock)
        yield "--load-mode", mode or "none"
        return
    if not settings.use_mmap:
        yield ("--no-mmap",)
    if settings.use_mlock:
        yield ("--mlock",)


def _task(settings: LlamaServerSettings, plan: ContextPlan, task: Task, cache_ram_bytes: int) -> Iterator[Flag]:
    if task is Task.GENERATE:
        yield "--cache-ram", str(cache_ram_bytes // MIB)
        yield ("--jinja",)
        yield "--reasoning-format", "deepseek"
        if settings.chat_template is not None:
            yield "--chat-template", settings.chat_template
        return
    yield ("--rerank",) if task is Task.RANK else ("--embeddings",)
    if task is Task.RANK or settings.pooling != "auto" or plan.pools_mean:
        yield "--pooling", "rank" if task is Task.RANK else "mean" if plan.pools_mean else settings.pooling


def _house(known: Collection[str]) -> Iterator[Flag]:
    """What every worker has: figures to read, nothing for people to look at, nothing fetched from anywhere."""
    yield ("--metrics",)
    yield ("--slots",)
    # At the next lower one it does not tell of its buffers. Prompts are in none of these lines.
    yield "--verbosity", "4"
    yield ("--no-webui",) if "--no-webui" in known else ("--no-ui",)
    yield ("--offline",)
