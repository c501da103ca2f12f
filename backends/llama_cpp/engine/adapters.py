"""LoRA adapters in llama.cpp: loaded with the model, set on its context once.

Owns nothing: llama.cpp frees an adapter with its model. All must be loaded before the context is made (llama.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as llama

from backends.gguf_settings import Lora
from backends.llama_cpp.engine import logs
from backends.llama_cpp.engine.params import ModelLoadError


def load_adapters(model: Any, loras: Sequence[Lora]) -> list[Any]:
    """Load each adapter beside the model's tensors. Raises `ModelLoadError` with llama.cpp's reason."""
    loaded = []
    for lora in loras:
        with logs.collect_errors() as errors:
            adapter = llama.llama_adapter_lora_init(model, bytes(lora.path))
        if not adapter:
            invalid = not logs.is_memory_trouble(errors)
            raise ModelLoadError(f"{lora.path}: llama.cpp cannot load it: {logs.reason(errors)}", invalid=invalid)
        loaded.append(adapter)
    return loaded


def apply_adapters(ctx: Any, adapters: Sequence[Any], loras: Sequence[Lora]) -> None:
    """Have every batch of the context run with the adapters, each at its scale; 0 leaves one out."""
    if not adapters:
        return
    pointers = (llama.llama_adapter_lora_p_ctypes * len(adapters))(
        *(ctypes.cast(adapter, llama.llama_adapter_lora_p_ctypes) for adapter in adapters)
    )
    scales = (ctypes.c_float * len(adapters))(*(lora.scale for lora in loras))
    code = llama.llama_set_adapters_lora(ctx, pointers, len(adapters), scales)
    assert code == 0, f"llama_set_adapters_lora returned {code}"
