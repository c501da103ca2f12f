"""The GGUF file format as llama.cpp reads it: constants, value types, tensor types, and the bounds we hold a file to.

Owns numbers only. Sources: ggml/include/gguf.h and ggml/src/gguf.cpp (layout, limits), ggml/src/ggml.c
`type_traits` (block sizes) and include/llama.h `llama_ftype` (file types) of the pinned llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Larger than any model in circulation, small enough that no file can cost more than moments and megabytes.
MAX_HEADER_BYTES = 128 * 1024 * 1024
MAX_METADATA_ENTRIES = 16_384
MAX_TENSORS = 131_072
MAX_SHARDS = 1_024
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 4 * 1024 * 1024
MAX_KEPT_STRING_BYTES = 64 * 1024 * 1024
"""All scalar strings of one file together."""
MAX_STRING_ELEMENTS = 4_000_000
"""Strings in all arrays of one file together."""
MAX_KEPT_ELEMENTS = 1_024
"""An array of numbers up to this long is kept whole; llama.cpp knows no more than 512 layers."""
MAX_ALIGNMENT = 1024 * 1024
MAX_DIMS = 4
MAX_TENSOR_NAME_BYTES = 63
MAX_TENSOR_BYTES = 2**63 - 1


class ValueType(IntEnum):
    """Types of metadata values (enum gguf_type)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALAR_FORMATS: dict[int, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
"""`struct` codes of the value types that have a fixed size."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """One of ggml's storage types: `block_size` elements take `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row, rounded up to whole blocks (ggml_row_size)."""
        return -(-elements // self.block_size) * self.block_bytes


TENSOR_TYPES: dict[int, TensorType] = {
    0: TensorType("f32", 1, 4),
    1: TensorType("f16", 1, 2),
    2: TensorType("q4_0", 32, 18),
    3: TensorType("q4_1", 32, 20),
    6: TensorType("q5_0", 32, 22),
    7: TensorType("q5_1", 32, 24),
    8: TensorType("q8_0", 32, 34),
    9: TensorType("q8_1", 32, 36),
    10: TensorType("q2_K", 256, 84),
    11: TensorType("q3_K", 256, 110),
    12: TensorType("q4_K", 256, 144),
    13: TensorType("q5_K", 256, 176),
    14: TensorType("q6_K", 256, 210),
    15: TensorType("q8_K", 256, 292),
    16: TensorType("iq2_xxs", 256, 66),
    17: TensorType("iq2_xs", 256, 74),
    18: TensorType("iq3_xxs", 256, 98),
    19: TensorType("iq1_s", 256, 50),
    20: TensorType("iq4_nl", 32, 18),
    21: TensorType("iq3_s", 256, 110),
    22: TensorType("iq2_s", 256, 82),
    23: TensorType("iq4_xs", 256, 136),
    24: TensorType("i8", 1, 1),
    25: TensorType("i16", 1, 2),
    26: TensorType("i32", 1, 4),
    27: TensorType("i64", 1, 8),
    28: TensorType("f64", 1, 8),
    29: TensorType("iq1_m", 256, 56),
    30: TensorType("bf16", 1, 2),
    34: TensorType("tq1_0", 256, 54),
    35: TensorType("tq2_0", 256, 66),
    39: TensorType("mxfp4", 32, 17),
    40: TensorType("nvfp4", 64, 36),
    41: TensorType("q1_0", 128, 18),
    42: TensorType("q2_0", 64, 18),
}

TENSOR_TYPES_BY_NAME: dict[str, TensorType] = {kind.name: kind for kind in TENSOR_TYPES.values()}

FILE_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
"""Names of `general.file_type`, the mix of tensor types a quantizer was asked for."""

NOT_GGUF: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page; the download went wrong"),
    (b"<!doctype", "a web page; the download went wrong"),
    (b"<html", "a web page; the download went wrong"),
    (b"PK\x03\x04", "a ZIP archive or a PyTorch checkpoint; convert it with llama.cpp's convert_hf_to_gguf.py"),
    (b"lmgg", "a GGML file from before GGUF; get a GGUF file of the model"),
    (b"tjgg", "a GGJT file from before GGUF; get a GGUF file of the model"),
    (b"fmgg", "a GGMF file from before GGUF; get a GGUF file of the model"),
    (b"\x1f\x8b", "compressed with gzip; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it"),
)
"""What a file's first bytes give away when they are not GGUF's."""
