"""What llama.cpp itself says a context takes, per kind of buffer, read out of its C++ map without trusting it.

Owns the walk over `llama_get_memory_breakdown` (src/llama-ext.h): a function of no stable interface, whose result is
a std::map of libstdc++. Every address is read through the kernel, which refuses instead of crashing, and the tree must
be sound in every respect, or there is no answer. The map is never freed: for processes that end soon.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llama_cpp._ggml as ggml
import llama_cpp.llama_cpp as llama

SYMBOL = "_Z26llama_get_memory_breakdownPK13llama_context"
MAX_KINDS = 64
MAX_BYTES = 1 << 50
_NODE = struct.Struct("<8Q")
"""Colour, parent, left, right (std::_Rb_tree_node_base), buffer type, and bytes of model, context and compute."""
_COLOURS = (0, 1)

_lib = ggml.libggml
for _name in ("ggml_backend_buft_name", "ggml_backend_dev_name"):
    getattr(_lib, _name).argtypes = [ctypes.c_void_p]
    getattr(_lib, _name).restype = ctypes.c_char_p
_lib.ggml_backend_buft_is_host.argtypes = [ctypes.c_void_p]
_lib.ggml_backend_buft_is_host.restype = ctypes.c_bool
_lib.ggml_backend_buft_get_device.argtypes = [ctypes.c_void_p]
_lib.ggml_backend_buft_get_device.restype = ctypes.c_void_p

Read = Callable[[int, int], bytes]
"""Reads so many bytes at an address. Raises `OSError` where nothing can be read."""


@dataclass(frozen=True, slots=True)
class BufferUse:
    """Bytes in one kind of buffer. `address` is llama.cpp's `ggml_backend_buffer_type`."""

    address: int
    model_bytes: int
    context_bytes: int
    compute_bytes: int


class _Map(ctypes.Structure):
    """std::map: the comparator, then the header node (colour, root, first, last), then the number of entries."""

    _fields_ = (("words", ctypes.c_uint64 * 6),)


def read_breakdown(ctx: Any) -> tuple[BufferUse, ...] | None:
    """The context's use of each kind of buffer; None where this llama.cpp does not say it in a way known here."""
    try:
        function = getattr(llama._lib, SYMBOL)  # noqa: SLF001 - the bindings have no other handle on their library
    except AttributeError:
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], _Map
    words = list(function(ctypes.cast(ctx, ctypes.c_void_p)).words)
    with _own_memory() as read:
        return walk(words[2], words[5], read)


def walk(root: int, count: int, read: Read) -> tuple[BufferUse, ...] | None:
    """The entries of a red-black tree in order, or None unless it is one of `count` entries. Pure but for `read`."""
    if not 0 < count <= MAX_KINDS:
        return None
    found: list[BufferUse] = []
    pending: list[tuple[int, int, bool]] = [(root, 0, False)]
    while pending:
        address, parent, is_between = pending.pop()
        if not address:
            continue
        node = _read_node(address, read)
        if node is None or len(found) + len(pending) > 2 * MAX_KINDS:
            return None
        _, up, left, right, *values = node
        if parent and up != parent:
            return None
        if is_between:
            found.append(BufferUse(*values))
        else:
            pending += [(right, address, False), (address, parent, True), (left, address, False)]
    addresses = [use.address for use in found]
    is_sound = len(found) == count and addresses == sorted(set(addresses))
    return tuple(found) if is_sound and all(_is_plausible(use, read) for use in found) else None


def _read_node(address: int, read: Read) -> tuple[int, ...] | None:
    if address % 8:
        return None
    try:
        node: tuple[int, ...] = _NODE.unpack(read(address, _NODE.size))
    except (OSError, OverflowError, struct.error):
        return None
    return node if node[0] & 0xFFFFFFFF in _COLOURS else None


def _is_plausible(use: BufferUse, read: Read) -> bool:
    if max(use.model_bytes, use.context_bytes, use.compute_bytes) > MAX_BYTES:
        return False
    try:
        return use.address % 8 == 0 and len(read(use.address, 64)) == 64
    except (OSError, OverflowError):
        return False


@contextmanager
def _own_memory() -> Iterator[Read]:
    """This process's memory as a file: reading where nothing is mapped is an error, no signal."""
    descriptor = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield lambda address, size: os.pread(descriptor, size, address)
    finally:
        os.close(descriptor)


def device_of(use: BufferUse) -> str:
    """llama.cpp's name of the device whose memory it is; RAM for host memory, pinned or not."""
    if _lib.ggml_backend_buft_is_host(use.address):
        return "RAM"
    device = _lib.ggml_backend_buft_get_device(use.address)
    name: bytes = _lib.ggml_backend_dev_name(device) if device else b"CPU"
    return "RAM" if name == b"CPU" else name.decode("utf-8", "replace")


def kind_of(use: BufferUse) -> str:
    """llama.cpp's name of the kind of buffer, such as CPU, CPU_REPACK or CUDA_Host."""
    name: bytes = _lib.ggml_backend_buft_name(use.address)
    return name.decode("utf-8", "replace")
