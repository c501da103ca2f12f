"""What the tests of media share: a tiny model with a tiny projector, and prompts with images and sounds for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from support.engine_driver import SEED, load, settings_for
from support.gguf_files import Shape, write_model

from backends.base import Offload
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.mtmd import Projector
from backends.llama_cpp.media.images import image_size
from backends.llama_cpp.media.parts import Medium
from backends.llama_cpp.media.reader import MediaReader, Prompt
from backends.llama_cpp.media.sounds import sound
from backends.llama_cpp.requests import Limits
from backends.llama_cpp.settings import LlamaCppSettings

BEFORE = "<|im_start|>user\nLook: "
AFTER = " what?<|im_end|>\n<|im_start|>assistant\n"


def image(data: bytes, param: str = "image") -> Medium:
    return Medium(param, data, hashlib.sha256(data).digest(), image_size(data))


def heard(data: bytes, param: str = "sound") -> Medium:
    return Medium(param, sound(data).data, hashlib.sha256(data).digest())


TEXT_MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2vl": {"qwen2vl.rope.dimension_sections": [2, 3, 3, 0]},
    "qwen3vl": {"qwen3vl.rope.dimension_sections": [2, 3, 3, 0], "qwen3vl.n_deepstack_layers": 1},
}
"""Further metadata of each architecture."""


def write_text_model(path: Path, architecture: str = "llama") -> Path:
    """A tiny model of 32-bit floats, whose greedy answers do not depend on who else is in the batch."""
    shape = Shape(weight_type=gguf.GGMLQuantizationType.F32, architecture=architecture)
    return write_model(path, shape, seed=SEED, metadata=TEXT_MODELS[architecture])


def seeing_settings(
    directory: Path, write_projector: Callable[[Path], Path], *, architecture: str = "llama", **keys: Any
) -> LlamaCppSettings:
    """Settings for a tiny model that sees, or hears."""
    return settings_for(
        path=write_text_model(directory / "tiny.gguf", architecture),
        mmproj=write_projector(directory / "mmproj.gguf"),
        **{"type_k": "f32", "type_v": "f32", "flash_attn": False, **keys},
    )


@dataclass(frozen=True)
class Seeing:
    """A loaded model and what reads media for it."""

    model: Model
    projector: Projector
    reader: MediaReader

    def prompt(self, *parts: str | Medium) -> Prompt:
        """One turn of a user's."""
        return self.reader.read([BEFORE, *parts, AFTER], add_special=True, stop=bool)


@contextmanager
def seeing(settings: LlamaCppSettings, **reader_keys: Any) -> Iterator[Seeing]:
    model = load(settings)
    try:
        projector = Projector.load(model, settings, Offload())
        assert projector is not None
        limits = Limits(
            n_parallel=settings.n_parallel,
            n_vocab=model.n_vocab,
            n_ctx=model.n_ctx_request,
            n_embd=model.n_embd,
            n_batch=model.n_batch,
            n_input=model.longest_input,
        )
        try:
            yield Seeing(model, projector, MediaReader(projector, model, limits, n_whole=model.n_ubatch, **reader_keys))
        finally:
            projector.close()
    finally:
        model.close()
