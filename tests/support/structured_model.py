"""Small models for constrained answers: one whose vocabulary has the control tokens that families use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from support.engine_driver import SEED, settings_for
from support.gguf_files import Shape, write_model

from backends.llama_cpp.settings import LlamaCppSettings

CONTROL = (
    "<think>",
    "</think>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|constrain|>",
    "<|call|>",
    "<|return|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|tool_call>",
    "<tool_call|>",
    '<|"|>',
)
"""Tokens number 3 to 16. `<|call|>` and `<|return|>` end an answer, which llama.cpp knows by their names."""


def token_of(text: str) -> int:
    return 3 + CONTROL.index(text)


def control_settings(directory: Path, **keys: Any) -> LlamaCppSettings:
    """A random model with these control tokens, as `tiny_settings` makes them."""
    shape = Shape(weight_type=gguf.GGMLQuantizationType.F32, control=CONTROL)
    path = write_model(directory / "control.gguf", shape, seed=SEED)
    return settings_for(path=path, type_k="f32", type_v="f32", flash_attn=False, **keys)
