"""Ollama's documents about models: which there are, which are loaded, what one is. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from swapd.api.ollama.answer import timestamp
from swapd.pool.status import ListedModel

API_VERSION = "0.12.6"
"""Of Ollama, whose API this follows: clients ask for it to know what they may use."""

LATEST = ":latest"
FOREVER_S = 100 * 365 * 24 * 3600.0
"""Far enough for a model that stays, and a date that every client can hold."""

_CAPABILITIES = (
    ("chat", "completion"), ("chat", "tools"), ("vision", "vision"), ("thinking", "thinking"), ("insert", "insert"),
    ("embeddings", "embedding"),
)  # fmt: skip
"""By ours Ollama's. Whatever chats takes tools: a template that knows none is told of them in words."""


def name_of(model: ListedModel) -> str:
    """A model's name as Ollama has them, with a tag. Clients put `:latest` behind names without one before they look
    for them in these lists."""
    return model.id if ":" in model.id else model.id + LATEST


def candidates(name: str) -> tuple[str, ...]:
    """The names that a client may mean, as our list may have them."""
    return (name, name.removesuffix(LATEST) if name.endswith(LATEST) else name + LATEST)


def tags_document(models: Iterable[ListedModel]) -> dict[str, Any]:
    """The answer to GET /api/tags: all models."""
    return {"models": [_entry(model) | {"capabilities": _capabilities(model)} for model in models]}


def ps_document(models: Iterable[ListedModel], now: float) -> dict[str, Any]:
    """The answer to GET /api/ps: those that are loaded. `now` is a Unix time in seconds."""
    return {"models": [_loaded(model, now) for model in models if model.state == "ready"]}


def show_document(model: ListedModel) -> dict[str, Any]:
    """The answer to POST /api/show."""
    info: dict[str, Any] = {"general.architecture": model.architecture, "general.basename": model.id}
    if model.parameters:
        info["general.parameter_count"] = model.parameters
    if model.n_ctx:
        info[f"{model.architecture or 'general'}.context_length"] = model.n_ctx
    return {
        "modelfile": f"# {model.id} is served from swapd's model list; there is no Modelfile.\n",
        "parameters": "",
        "template": "",
        "license": "",
        "details": _details(model),
        "model_info": info,
        "capabilities": _capabilities(model),
        "modified_at": timestamp(model.modified_at),
    }


def _entry(model: ListedModel) -> dict[str, Any]:
    name = name_of(model)
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(model.modified_at),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": _details(model),
    }


def _loaded(model: ListedModel, now: float) -> dict[str, Any]:
    stays_s = FOREVER_S if model.unload_in_s is None else min(model.unload_in_s, FOREVER_S)
    entry = _entry(model)
    del entry["modified_at"]
    return {
        **entry,
        "size": model.reserved_bytes,
        "size_vram": model.reserved_gpu_bytes,
        "expires_at": timestamp(now + stays_s),
        "context_length": model.n_ctx,
    }


def _details(model: ListedModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf" if model.architecture else "",
        "family": model.architecture,
        "families": [model.architecture] if model.architecture else [],
        "parameter_size": _parameter_size(model.parameters),
        "quantization_level": model.quantization,
    }


def _parameter_size(parameters: int) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.1f}{unit}" if unit in "TB" else f"{parameters / size:.2f}{unit}"
    return str(parameters) if parameters else ""


def _capabilities(model: ListedModel) -> list[str]:
    return [theirs for ours, theirs in _CAPABILITIES if ours in model.capabilities]
