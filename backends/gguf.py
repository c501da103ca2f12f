"""Reads the header of a GGUF file: metadata and tensor table, never the weights.

Owns the verdict whether a file is sound. Every defect is an `InvalidModelError` that names the file and, where there
is one, the remedy. Must never read past the header, allocate by what a file claims, or follow it without bounds; large
arrays (the vocabulary) are stepped over and only their length is kept. Layout and rules: ggml/src/gguf.cpp
`gguf_init_from_reader`; split files: src/llama-model-loader.cpp and src/llama.cpp `llama_split_path`.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from backends import gguf_format as fmt
from backends.base import InvalidModelError
from backends.gguf_format import TensorType, ValueType
from backends.gguf_reader import HeaderReader


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array that was stepped over: any array of strings, and numbers beyond `MAX_KEPT_ELEMENTS`."""

    length: int


_TENSOR_ENTRIES = tuple(struct.Struct(f"<{n_dims}QIQ") for n_dims in range(fmt.MAX_DIMS + 1))
"""The dimensions of a tensor, its type and its place."""

Value = bool | int | float | str | tuple[bool | int | float, ...] | LongArray


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the tensor table. `dims` are elements, the row length first; `offset` counts from the data."""

    name: str
    dims: tuple[int, ...]
    type: TensorType
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        product = 1
        for dim in self.dims:
            product *= dim
        return product


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a model's file says before its weights. `tensors` are those of all shards, `files` all shards in order."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    alignment: int
    data_offset: int
    files: tuple[Path, ...]

    @property
    def architecture(self) -> str:
        """`general.architecture`, the prefix of the model's own keys; empty when absent."""
        return self.string("general.architecture") or ""

    def string(self, key: str) -> str | None:
        """The text under `key`, None when absent. Raises `InvalidModelError` when it is no text."""
        value = self.metadata.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._bad_value(key, value, "text")

    def integer(self, key: str) -> int | None:
        """The number 0 <= n < 2**63 under `key`, None when absent. Raises `InvalidModelError` for anything else."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
            return value
        raise self._bad_value(key, value, "a whole number that is not negative")

    def per_layer(self, key: str, n_layer: int) -> tuple[int, ...] | None:
        """One number per layer, from an array (at least `n_layer` long) or one number for all; None when absent."""
        value = self.metadata.get(key)
        if not isinstance(value, tuple):
            one = self.integer(key)
            return None if one is None else (one,) * n_layer
        if len(value) < n_layer:
            raise self._bad_value(key, f"{len(value)} numbers", f"one number for each of {n_layer} layers")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int) or item < 0:
                raise self._bad_value(key, item, "whole numbers that are not negative")
        return tuple(int(item) for item in value[:n_layer])

    def flags(self, key: str, n_layer: int) -> tuple[bool, ...] | None:
        """One truth value per layer from an array, False past its end; None when there is no array."""
        value = self.metadata.get(key)
        if not isinstance(value, tuple):
            return None
        return tuple(bool(item) for item in value[:n_layer]) + (False,) * (n_layer - len(value))

    def length(self, key: str) -> int | None:
        """Entries of the array under `key`, None when it is absent or no array."""
        value = self.metadata.get(key)
        if isinstance(value, tuple):
            return len(value)
        return value.length if isinstance(value, LongArray) else None

    def _bad_value(self, key: str, value: object, wanted: str) -> InvalidModelError:
        shown = f"{value.length} entries" if isinstance(value, LongArray) else repr(value)[:60]
        return InvalidModelError(f"{self.path}: metadata key {key} should be {wanted}, found {shown}")


def read_header(path: Path) -> GgufHeader:
    """Read the header of a model, of all its shards when it is split.

    `path` is the only, or the first, file. Raises `InvalidModelError` for anything that is not a sound, whole model.
    """
    first = _read_file(path)
    count = first.integer("split.count") or 1
    if count == 1:
        return first
    files = shard_paths(path, first.integer("split.no") or 0, count)
    tensors = list(first.tensors)
    for index, file in enumerate(files[1:], start=1):
        if not os.access(file, os.F_OK):
            raise InvalidModelError(
                f"{path}: the model is split into {count} files and {file.name} is missing beside it; download it too"
            )
        shard = _read_file(file)
        if shard.integer("split.no") != index:
            raise InvalidModelError(f"{file}: holds another part of the model than its name says; download it again")
        tensors += shard.tensors
    _check_whole(path, first, tensors)
    return replace(first, tensors=tuple(tensors), files=files)


def shard_paths(path: Path, number: int, count: int) -> tuple[Path, ...]:
    """All files of a model split into `count`, given the first of them (llama.cpp: llama_split_path)."""
    if count > fmt.MAX_SHARDS:
        raise InvalidModelError(f"{path}: claims to be split into {count} files; {fmt.MAX_SHARDS} is the most")
    if number != 0:
        start = re.sub(r"-\d{5}-of-\d{5}\.gguf$", f"-00001-of-{count:05d}.gguf", path.name)
        raise InvalidModelError(f"{path}: is part {number + 1} of {count} of a split model; name the first, {start}")
    suffix = f"-00001-of-{count:05d}.gguf"
    if not path.name.endswith(suffix):
        raise InvalidModelError(
            f"{path}: is the first of {count} files of a split model, so its name must end in {suffix}; "
            "give the files back their names"
        )
    prefix = path.name.removesuffix(suffix)
    return tuple(path.with_name(f"{prefix}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count))


def _check_whole(path: Path, first: GgufHeader, tensors: list[Tensor]) -> None:
    promised = first.integer("split.tensors.count")
    if promised is not None and promised != len(tensors):
        raise InvalidModelError(
            f"{path}: the model should have {promised} tensors, its files have {len(tensors)}; download them again"
        )
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise InvalidModelError(f"{path}: two of the model's files hold the same tensor; download them again")


def _read_file(path: Path) -> GgufHeader:
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidModelError(f"{path}: is not a regular file")
            return parse_header(file, status.st_size, path)
    except FileNotFoundError:
        raise InvalidModelError(f"{path}: no such file; check `path`") from None
    except PermissionError:
        raise InvalidModelError(f"{path}: this user may not read the file; check its permissions") from None
    except IsADirectoryError:
        raise InvalidModelError(f"{path}: is a directory; name the .gguf file in it") from None
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"{path}: cannot be read: {error}") from None


def _open_without_waiting(path: str, flags: int) -> int:
    """Opening a FIFO would otherwise wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def parse_header(file: BinaryIO, size_bytes: int, path: Path) -> GgufHeader:
    """Parse one file's header. `file` stands at its start and holds `size_bytes`; `path` is for messages.

    Raises `InvalidModelError` for whatever llama.cpp would refuse, and for what exceeds the bounds of `gguf_format`.
    """
    reader = HeaderReader(file, size_bytes, path)
    version = _read_preamble(reader)
    n_tensors = reader.count("tensors", fmt.MAX_TENSORS)
    n_entries = reader.count("metadata entries", fmt.MAX_METADATA_ENTRIES)
    metadata = _read_metadata(reader, n_entries)
    alignment = _alignment(reader, metadata)
    tensors = _read_tensors(reader, n_tensors, alignment)
    data_offset = _padded(reader.position, alignment) if tensors else reader.position
    end = data_offset + max((t.offset + t.size_bytes for t in tensors), default=0)
    if end > size_bytes:
        raise InvalidModelError(
            f"{path}: truncated: its header promises {end - data_offset:,} bytes of tensors, "
            f"the file has {max(0, size_bytes - data_offset):,}; download it again"
        )
    return GgufHeader(path, version, metadata, tuple(tensors), alignment, data_offset, (path,))


def _read_preamble(reader: HeaderReader) -> int:
    """Check the magic and return the version."""
    if reader.size_bytes == 0:
        raise InvalidModelError(f"{reader.path}: is empty; download it again")
    head = reader.peek(24)
    if not head.startswith(fmt.MAGIC):
        for prefix, meaning in fmt.NOT_GGUF:
            if head.startswith(prefix):
                raise InvalidModelError(f"{reader.path}: not a GGUF file but {meaning}")
        raise InvalidModelError(f"{reader.path}: not a GGUF file: it begins with {head[:4]!r} instead of b'GGUF'")
    reader.skip(len(fmt.MAGIC))
    version = reader.u32()
    if version & 0xFFFF == 0 and version != 0:
        raise InvalidModelError(
            f"{reader.path}: a big-endian GGUF file; get the little-endian one, "
            "or convert it with gguf_convert_endian.py"
        )
    if version == 1:
        raise InvalidModelError(f"{reader.path}: GGUF version 1, which llama.cpp no longer reads; get a newer file")
    if version not in fmt.SUPPORTED_VERSIONS:
        raise InvalidModelError(
            f"{reader.path}: GGUF version {version}; this llama.cpp reads {fmt.SUPPORTED_VERSIONS[0]} "
            f"to {fmt.SUPPORTED_VERSIONS[-1]}"
        )
    return version


def _read_metadata(reader: HeaderReader, n_entries: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(n_entries):
        key = reader.text("a metadata key", fmt.MAX_KEY_BYTES)
        if not key or key in metadata:
            raise reader.damaged(f"metadata key {key[:60]!r} appears twice" if key else "a metadata key is empty")
        metadata[key] = _read_value(reader, key, reader.u32())
    return metadata


def _read_value(reader: HeaderReader, key: str, kind: int) -> Value:
    if kind == ValueType.STRING:
        return reader.text(f"metadata value {key[:60]}", fmt.MAX_STRING_BYTES)
    if kind == ValueType.ARRAY:
        return _read_array(reader, key)
    code = fmt.SCALAR_FORMATS.get(kind)
    if code is None:
        raise reader.damaged(f"metadata key {key[:60]!r} has the unknown type {kind}")
    value: bool | int | float = struct.unpack("<" + code, reader.take(struct.calcsize("<" + code)))[0]
    return value


def _read_array(reader: HeaderReader, key: str) -> Value:
    kind = reader.u32()
    length = reader.u64()
    if kind == ValueType.STRING:
        reader.skip_strings(length)
        return LongArray(length)
    code = fmt.SCALAR_FORMATS.get(kind)
    if code is None:
        raise reader.damaged(f"metadata key {key[:60]!r} is an array of the unknown or nested type {kind}")
    n_bytes = length * struct.calcsize("<" + code)
    if length > fmt.MAX_KEPT_ELEMENTS:
        reader.skip(n_bytes)
        return LongArray(length)
    return struct.unpack(f"<{length}{code}", reader.take(n_bytes))


def _alignment(reader: HeaderReader, metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", fmt.DEFAULT_ALIGNMENT)
    if isinstance(alignment, int) and 0 < alignment <= fmt.MAX_ALIGNMENT and alignment & (alignment - 1) == 0:
        return int(alignment)
    raise reader.damaged(f"general.alignment is {str(alignment)[:60]}, not a power of two")


def _read_tensors(reader: HeaderReader, n_tensors: int, alignment: int) -> list[Tensor]:
    tensors: list[Tensor] = []
    seen: set[str] = set()
    offset = 0
    for _ in range(n_tensors):
        tensor = _read_tensor(reader)
        if tensor.name in seen:
            raise reader.damaged(f"tensor {tensor.name!r} appears twice")
        if tensor.offset != offset:
            raise reader.damaged(f"tensor {tensor.name!r} lies at {tensor.offset:,}, it should lie at {offset:,}")
        seen.add(tensor.name)
        tensors.append(tensor)
        offset = _padded(offset + tensor.size_bytes, alignment)
    return tensors


def _read_tensor(reader: HeaderReader) -> Tensor:
    name = reader.text("a tensor name", fmt.MAX_TENSOR_NAME_BYTES)
    n_dims = reader.u32()
    if n_dims > fmt.MAX_DIMS:
        raise reader.damaged(f"tensor {name!r} has {n_dims} dimensions, {fmt.MAX_DIMS} is the most")
    *sizes, kind_number, offset = reader.unpack(_TENSOR_ENTRIES[n_dims])
    dims = tuple(sizes)
    kind = fmt.TENSOR_TYPES.get(kind_number)
    if kind is None:
        raise InvalidModelError(
            f"{reader.path}: tensor {name!r} has type {kind_number}, which this llama.cpp does not know; "
            "get the model in another quantization"
        )
    if dims and max(dims) > fmt.MAX_TENSOR_BYTES:
        raise reader.damaged(f"tensor {name!r} has the dimensions {dims}")
    row = dims[0] if dims else 1
    if row % kind.block_size:
        raise reader.damaged(f"tensor {name!r} has rows of {row} elements, not a multiple of {kind.block_size}")
    size_bytes = kind.row_bytes(row)
    for dim in dims[1:]:
        size_bytes *= dim
    if size_bytes > fmt.MAX_TENSOR_BYTES:
        raise reader.damaged(f"tensor {name!r} of {size_bytes:,} bytes")
    return Tensor(name, dims, kind, offset, size_bytes)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
