"""The model keys that all who run GGUF files with llama.cpp share, by its own names, with their defaults and ranges.

Owns the checks that need no file. Must never import an engine.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from backends.base import Settings, Size
from backends.overrides import host_pattern

MAX_AUTO_CACHE_RAM_BYTES = 512 * 2**20

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]

Natural = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Task(Enum):
    """What a loaded model is for. A context is made for one of them."""

    GENERATE = "generate"
    EMBED = "embed"
    RANK = "rank"


class Lora(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One LoRA adapter and how strongly it counts."""

    path: Path
    """A GGUF file. Relative paths are relative to the configuration file."""
    scale: Annotated[float, msgspec.Meta(ge=-100, le=100)] = 1.0
    """Multiplies the adapter's own scale; 0 leaves it without effect."""


class GgufSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one model is loaded and how its context is made. Counts are tokens unless said otherwise."""

    path: Path
    """A GGUF file; the first shard of a split model. Relative paths are relative to the configuration file."""
    lora: Annotated[tuple[Lora, ...], msgspec.Meta(max_length=16)] = ()
    """Adapters that are applied to the model, in all its requests."""
    mmproj: Path | None = None
    """A GGUF file with the model's projector, for images and sound. Relative paths are relative to the configuration
    file."""
    mmproj_offload: bool = True
    """Whether the projector goes on a GPU when the model's output layer does."""
    image_min_tokens: Annotated[int, msgspec.Meta(ge=1, le=65_536)] | None = None
    """Of an image, for projectors that take images in their own size; None asks the file."""
    image_max_tokens: Annotated[int, msgspec.Meta(ge=1, le=65_536)] | None = None
    n_ctx: Annotated[int, msgspec.Meta(ge=256, le=16_777_216)] = 8192
    """Shared by all running sequences (unified KV cache)."""
    n_parallel: Annotated[int, msgspec.Meta(ge=1, le=128)] = 4
    """Sequences that run at once."""
    cache_ram: Size | Literal["auto"] = "auto"
    """RAM for the caches of finished and preempted sequences; auto is the size of the KV cache, at most 512 MiB."""
    embeddings: bool | Literal["auto"] = "auto"
    """True makes a worker that answers /v1/embeddings, or /v1/rerank, and nothing else; auto asks the file."""
    pooling: Literal["auto", "mean", "cls", "last", "rank"] = "auto"
    """How token embeddings become one vector; auto asks the file, else mean. Rank makes a worker for /v1/rerank."""
    n_gpu_layers: Natural | Literal["auto", "all"] = "auto"
    devices: tuple[str, ...] = ()
    """Device names as llama.cpp prints them; empty leaves the choice to placement."""
    tensor_split: tuple[Annotated[float, msgspec.Meta(ge=0)], ...] = ()
    """Shares of the devices, in their order; empty leaves them to placement."""
    main_gpu: Natural | Literal["auto"] = "auto"
    """With split_mode none the one GPU to use, with row the one for what is not split; counted among the devices."""
    split_mode: Literal["none", "layer", "row"] = "layer"
    n_cpu_moe: Natural | Literal["auto"] = "auto"
    """Blocks, from the first, whose expert weights stay in RAM; auto is as many as need be."""
    override_tensor: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    """Tensors that stay in RAM wherever their layer goes, each `PATTERN=CPU`, matched anywhere in a tensor's name."""
    flash_attn: Literal["auto"] | bool = "auto"
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    n_batch: Positive = 2048
    n_ubatch: Positive = 512
    n_threads: Positive | Literal["auto"] = "auto"
    """Auto is the number of physical cores this process may use."""
    use_mmap: bool = True
    use_mlock: bool = False
    use_extra_bufts: bool = True
    """Repacked weights for faster CPU kernels; false avoids instructions that some virtual CPUs only claim to have."""
    chat_template: str | None = None
    """A Jinja template in place of the file's own."""

    def __post_init__(self) -> None:
        if self.n_ubatch > self.n_batch:
            raise ValueError(f"n_ubatch is {self.n_ubatch}; it must not exceed n_batch ({self.n_batch})")
        if (self.image_min_tokens or 1) > (self.image_max_tokens or 65_536):
            raise ValueError(
                f"image_min_tokens is {self.image_min_tokens}; it must not exceed image_max_tokens "
                f"({self.image_max_tokens})"
            )
        if self.pooling == "rank" and self.embeddings is False:
            raise ValueError("pooling rank makes a reranking worker; it needs embeddings true or auto")
        if self.flash_attn is False and self.type_v not in ("f32", "f16", "bf16"):
            raise ValueError(f"type_v {self.type_v} needs flash_attn: llama.cpp quantizes V with it only")
        for entry in self.override_tensor:
            host_pattern(entry)

    @property
    def host_patterns(self) -> tuple[str, ...]:
        """Regular expressions of `override_tensor`."""
        return tuple(host_pattern(entry) for entry in self.override_tensor)

    def cache_ram_bytes(self, kv_bytes: int) -> int:
        """`cache_ram` with auto resolved for a KV cache of this size."""
        return min(kv_bytes, MAX_AUTO_CACHE_RAM_BYTES) if self.cache_ram == "auto" else self.cache_ram

    @property
    def embedding_batch(self) -> int:
        """Tokens of one batch of an embeddings worker: each is an output, and an input is never split."""
        return min(self.n_ubatch, self.n_ctx)

    @property
    def embedding_sequences(self) -> int:
        """Inputs of one batch of an embeddings worker.

        A divisor of the batch: llama.cpp reserves its graph for a multiple of the sequences, but for no more
        outputs than the batch, and aborts over the difference when it pools (llama_context::graph_reserve).
        """
        batch = self.embedding_batch
        return max(count for count in range(1, min(self.n_parallel, batch) + 1) if batch % count == 0)
