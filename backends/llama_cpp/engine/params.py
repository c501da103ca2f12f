"""Turns settings into llama.cpp's parameter structs. Loads nothing and opens no device by itself.

Owns the mapping of every model key to its field. Must never guess: a device that does not exist is an error.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp._ggml as ggml
import llama_cpp.llama_cpp as llama

from backends.base import Offload
from backends.llama_cpp.engine.types import Task
from backends.llama_cpp.settings import LlamaCppSettings

_SPLIT_MODES = {
    "none": llama.LLAMA_SPLIT_MODE_NONE,
    "layer": llama.LLAMA_SPLIT_MODE_LAYER,
    "row": llama.LLAMA_SPLIT_MODE_ROW,
}
_POOLING_TYPES = {
    "mean": llama.LLAMA_POOLING_TYPE_MEAN,
    "cls": llama.LLAMA_POOLING_TYPE_CLS,
    "last": llama.LLAMA_POOLING_TYPE_LAST,
    "rank": llama.LLAMA_POOLING_TYPE_RANK,
}
_LOAD_MODES = {
    (False, False): llama.LLAMA_LOAD_MODE_NONE,
    (True, False): llama.LLAMA_LOAD_MODE_MMAP,
    (False, True): llama.LLAMA_LOAD_MODE_MLOCK,
    (True, True): llama.LLAMA_LOAD_MODE_MMAP_MLOCK,
}
# enum ggml_type of ggml.h; the bindings' own list ends before bf16.
CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
_HOST_DEVICES = frozenset({"CPU", "RAM"})

_lib = ggml.libggml
_lib.ggml_backend_dev_by_name.argtypes = [ctypes.c_char_p]
_lib.ggml_backend_dev_by_name.restype = ctypes.c_void_p
_lib.ggml_backend_cpu_buffer_type.argtypes = []
_lib.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p


class ModelLoadError(Exception):
    """The model cannot be loaded. `invalid` marks a verdict about the file or its settings that time won't change."""

    def __init__(self, message: str, *, invalid: bool) -> None:
        super().__init__(message)
        self.invalid = invalid


class BufferOverride(ctypes.Structure):
    """`llama_model_tensor_buft_override`: tensors whose name matches the pattern go to this buffer type."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class ModelParams:
    """A filled `llama_model_params` and the arrays it points into, which must live as long as it is used."""

    struct: Any
    devices: Any | None
    overrides: Any | None
    tensor_split: Any | None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the loaded file says that its context depends on."""

    embeddings: bool = False
    pooling_type: int = llama.LLAMA_POOLING_TYPE_UNSPECIFIED
    """One of llama.cpp's, only looked at for embeddings."""
    causal: bool = True
    per_sequence_cache: bool = False
    """Recurrent state or a sliding window: the cache of a sequence cannot be cut or shared in the middle."""
    sliding_window: bool = False
    """Sliding-window layers, which `swa_full` gives an ordinary cache."""

    @property
    def task(self) -> Task:
        """What the context is made for."""
        if not self.embeddings:
            return Task.GENERATE
        return Task.RANK if self.pooling_type == llama.LLAMA_POOLING_TYPE_RANK else Task.EMBED

    @property
    def pools_last_token(self) -> bool:
        """Whether the last token alone decides, so that a model with a cache can take an input in pieces
        (server-context.cpp can_split)."""
        if self.pooling_type == llama.LLAMA_POOLING_TYPE_RANK:
            return self.causal
        return self.pooling_type == llama.LLAMA_POOLING_TYPE_LAST


def model_params(settings: LlamaCppSettings, offload: Offload, portable: bool) -> ModelParams:
    """The parameters of the load. Raises `ModelLoadError` for an unknown device or too many of them.

    What goes where is `offload`'s word alone: placement has taken the settings into account, and reserved just that.
    """
    struct = llama.llama_model_default_params()
    struct.n_gpu_layers = offload.n_gpu_layers
    struct.split_mode = _SPLIT_MODES[settings.split_mode]
    struct.main_gpu = offload.main_gpu
    struct.load_mode = _LOAD_MODES[settings.use_mmap, settings.use_mlock]
    struct.use_extra_bufts = settings.use_extra_bufts and not portable
    devices = _devices(offload.devices, offload.n_gpu_layers)
    overrides = _overrides(settings.host_patterns, offload.n_cpu_moe)
    tensor_split = _tensor_split(offload.tensor_split)
    if devices is not None:
        struct.devices = ctypes.addressof(devices)
    if overrides is not None:
        struct.tensor_buft_overrides = ctypes.addressof(overrides)
    if tensor_split is not None:
        struct.tensor_split = tensor_split
    return ModelParams(struct, devices, overrides, tensor_split)


def projector_device(settings: LlamaCppSettings, offload: Offload) -> tuple[bool, Any | None]:
    """Whether the model's projector goes on a GPU, and on which; None leaves that to llama.cpp.

    It lies with the output layer, which llama.cpp puts on the last device.
    """
    if not settings.mmproj_offload or offload.n_gpu_layers == 0:
        return False, None
    devices = _devices(offload.devices, offload.n_gpu_layers)
    return True, None if devices is None else devices[len(devices) - 2]


def context_params(settings: LlamaCppSettings, facts: ModelFacts, n_threads: int) -> Any:
    """The `llama_context_params`. `n_threads` is what "auto" stands for."""
    struct = llama.llama_context_default_params()
    struct.n_ctx = settings.n_ctx
    struct.n_seq_max = n_seq_max(settings, facts)
    struct.n_batch = max(settings.n_batch, settings.n_parallel)
    struct.n_ubatch = settings.n_ubatch
    struct.n_outputs_max = n_outputs_max(settings, facts)
    struct.n_threads = struct.n_threads_batch = n_threads if settings.n_threads == "auto" else settings.n_threads
    struct.flash_attn_type = _flash_attn_type(settings)
    struct.type_k = CACHE_TYPES[settings.type_k]
    struct.type_v = CACHE_TYPES[settings.type_v]
    struct.kv_unified = True
    struct.swa_full = facts.sliding_window and _wants_prefixes(settings)
    if facts.embeddings:
        # Every token is an output, and one without causal attention or with pooling must see its whole input
        # in one micro-batch, so a batch is never larger than that.
        struct.n_batch = struct.n_ubatch = settings.embedding_batch
        struct.n_seq_max = settings.embedding_sequences
        struct.embeddings = True
        struct.pooling_type = facts.pooling_type
    return struct


def n_seq_max(settings: LlamaCppSettings, facts: ModelFacts) -> int:
    """Sequences the context has room for; no room for retired ones where they cost memory and nobody asked."""
    return settings.n_parallel if not keeps_prefixes(settings, facts) else settings.n_seq_max


def n_outputs_max(settings: LlamaCppSettings, facts: ModelFacts) -> int:
    """Rows of logits that one batch may ask for: one for each running sequence, and one for each guessed token.

    llama.cpp also reserves rows for n_seq_max and aborts the process if the limit is lower than that
    (llama_context::output_reserve). Every token of an embeddings batch is an output.
    """
    if facts.embeddings:
        return settings.embedding_batch
    return n_seq_max(settings, facts) + (settings.draft_rows if keeps_prefixes(settings, facts) else 0)


def keeps_prefixes(settings: LlamaCppSettings, facts: ModelFacts) -> bool:
    """Whether finished sequences are worth keeping: the cache can be cut, and it may grow for it."""
    if not facts.per_sequence_cache:
        return True
    return facts.sliding_window and _wants_prefixes(settings)


def pooling_type(settings: LlamaCppSettings, in_file: int | None) -> int:
    """llama.cpp's pooling type: the settings', else the file's, else mean."""
    if settings.pooling != "auto":
        return _POOLING_TYPES[settings.pooling]
    if in_file is None or in_file == llama.LLAMA_POOLING_TYPE_NONE:
        return llama.LLAMA_POOLING_TYPE_MEAN
    return in_file


def usable_cores(cpus: Iterable[int], siblings: Mapping[int, str]) -> int:
    """Physical cores among `cpus`. `siblings` has each CPU's thread siblings; a CPU without counts for itself."""
    return max(1, len({siblings.get(cpu, f"cpu{cpu}") for cpu in cpus}))


def count_usable_cores() -> int:
    """Physical cores this process may run on, from its affinity and the kernel's topology files."""
    cpus = os.sched_getaffinity(0)
    siblings: dict[int, str] = {}
    for cpu in cpus:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings[cpu] = path.read_text().strip()
        except OSError:
            continue
    return usable_cores(cpus, siblings)


def _wants_prefixes(settings: LlamaCppSettings) -> bool:
    return settings.prefix_slots not in ("auto", 0)


def _flash_attn_type(settings: LlamaCppSettings) -> int:
    if settings.flash_attn == "auto":
        return llama.LLAMA_FLASH_ATTN_TYPE_AUTO
    return llama.LLAMA_FLASH_ATTN_TYPE_ENABLED if settings.flash_attn else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED


def _devices(names: tuple[str, ...], n_gpu_layers: int) -> Any | None:
    """A NULL-terminated array of devices; None leaves all to llama.cpp.

    Without layers on a GPU the array is empty, because llama.cpp otherwise opens a context on every GPU.
    """
    names = tuple(name for name in names if name not in _HOST_DEVICES)
    if not names and n_gpu_layers != 0:
        return None
    found = []
    for name in names:
        device = _lib.ggml_backend_dev_by_name(name.encode())
        if not device:
            raise ModelLoadError(f"devices: llama.cpp knows no device named {name!r} on this machine", invalid=False)
        found.append(device)
    return (ctypes.c_void_p * (len(found) + 1))(*found, None)


def _overrides(patterns: tuple[str, ...], n_cpu_moe: int) -> Any | None:
    """Keeps what the patterns match in RAM, and the expert weights of the first `n_cpu_moe` blocks (the patterns of
    llama.cpp's common.h)."""
    if n_cpu_moe + len(patterns) == 0:
        return None
    if n_cpu_moe + len(patterns) >= (limit := llama.llama_max_tensor_buft_overrides()):
        raise ModelLoadError(f"n_cpu_moe is {n_cpu_moe}; llama.cpp takes fewer than {limit}", invalid=True)
    host = _lib.ggml_backend_cpu_buffer_type()
    experts = (rf"blk\.{block}\.ffn_(up|down|gate|gate_up)_(ch|)exps" for block in range(n_cpu_moe))
    overrides = (BufferOverride * (n_cpu_moe + len(patterns) + 1))()
    for index, pattern in enumerate((*patterns, *experts)):
        overrides[index] = BufferOverride(pattern.encode(), host)
    return overrides


def _tensor_split(shares: tuple[float, ...]) -> Any | None:
    if not shares:
        return None
    limit = llama.llama_max_devices()
    if len(shares) > limit:
        raise ModelLoadError(f"tensor_split has {len(shares)} entries; llama.cpp takes at most {limit}", invalid=True)
    return (ctypes.c_float * limit)(*shares)
