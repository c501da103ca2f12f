"""Tiny multimodal projectors with random weights that llama.cpp's libmtmd loads, and tiny media to show them.

One writer per way of seeing or hearing that the engine treats differently: `llava` (an image is a run of ordinary
positions), `gemma3` (attention inside an image looks ahead), `qwen2vl` (M-RoPE: fewer positions than tokens) and
`ultravox` (audio). Weights are drawn from a seeded generator, so a file is the same every time.
"""

from __future__ import annotations

import io
import math
import struct
import wave
import zlib
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

PATCH_SIZE = 14
N_LAYER = 2
N_MEL = 80
AUDIO_FRAMES = 1500
STACK = 20

_F32 = gguf.GGMLQuantizationType.F32


@dataclass(frozen=True)
class Encoder:
    """The shape of a generated encoder. `image_size` is pixels, a multiple of `PATCH_SIZE`."""

    image_size: int = 112
    n_embd: int = 32
    n_ff: int = 64
    n_head: int = 2

    @property
    def patches(self) -> int:
        """Patches of one side."""
        return self.image_size // PATCH_SIZE


class _File:
    """A GGUF file of architecture clip in the making."""

    def __init__(self, path: Path, seed: int, encoder: Encoder) -> None:
        self.writer = gguf.GGUFWriter(path, "clip")
        self.writer.add_type("mmproj")
        self.encoder = encoder
        self._rng = np.random.default_rng(seed)

    def random(self, name: str, *shape: int, scale: float | None = None) -> None:
        """A matrix of (rows, columns), scaled to keep the size of what it multiplies unless told otherwise."""
        values = self._rng.normal(0.0, scale or shape[-1] ** -0.5, shape).astype(np.float32)
        self.writer.add_tensor(name, values, raw_dtype=_F32)

    def random_f16(self, name: str, *shape: int) -> None:
        """The kernel of a convolution."""
        values = self._rng.normal(0.0, math.prod(shape[1:]) ** -0.5, shape).astype(np.float16)
        self.writer.add_tensor(name, values)

    def ones(self, name: str, length: int) -> None:
        self.writer.add_tensor(name, np.ones(length, np.float32), raw_dtype=_F32)

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def write_llava(path: Path, n_embd_text: int = 64, *, encoder: Encoder = Encoder(), seed: int = 0) -> Path:
    """LLaVA's: any image becomes one square one, and each of its 8 x 8 patches a token."""
    file = _File(path, seed, encoder)
    _vision(file, "mlp", n_embd_text)
    file.random_f16("v.patch_embd.weight", encoder.n_embd, 3, PATCH_SIZE, PATCH_SIZE)
    _layers(file, "v")
    _mlp(file, "mm.0", encoder.n_embd, n_embd_text)
    _mlp(file, "mm.2", n_embd_text, n_embd_text)
    file.close()
    return path


def write_gemma3(path: Path, n_embd_text: int = 64, *, encoder: Encoder = Encoder(), seed: int = 0) -> Path:
    """Gemma 3's: pooled two by two to 16 tokens, which attend to each other in both directions."""
    file = _File(path, seed, encoder)
    _vision(file, "gemma3", n_embd_text)
    file.writer.add_uint32("clip.vision.projector.scale_factor", 2)
    file.random_f16("v.patch_embd.weight", encoder.n_embd, 3, PATCH_SIZE, PATCH_SIZE)
    _layers(file, "v")
    file.ones("mm.soft_emb_norm.weight", encoder.n_embd)
    file.random("mm.input_projection.weight", encoder.n_embd, n_embd_text, scale=encoder.n_embd**-0.5)
    file.close()
    return path


def write_qwen2vl(path: Path, n_embd_text: int = 64, *, encoder: Encoder = Encoder(), seed: int = 0) -> Path:
    """Qwen2-VL's: an image of W x H pixels becomes W / 28 * H / 28 tokens, which take max(W, H) / 28 positions."""
    file = _File(path, seed, encoder)
    _vision(file, "qwen2vl_merger", n_embd_text)
    for name in ("v.patch_embd.weight", "v.patch_embd.weight.1"):
        file.random_f16(name, encoder.n_embd, 3, PATCH_SIZE, PATCH_SIZE)
    _layers(file, "v", positions=False)
    _mlp(file, "mm.0", 4 * encoder.n_embd, n_embd_text)
    _mlp(file, "mm.2", n_embd_text, n_embd_text)
    file.close()
    return path


def write_qwen3vl(path: Path, n_embd_text: int = 64, *, encoder: Encoder = Encoder(), seed: int = 0) -> Path:
    """Qwen3-VL's: like Qwen2-VL's, with features of the first layer beside each token's embedding."""
    file = _File(path, seed, encoder)
    _vision(file, "qwen3vl_merger", n_embd_text)
    merged = 4 * encoder.n_embd
    for name in ("v.patch_embd.weight", "v.patch_embd.weight.1"):
        file.random_f16(name, encoder.n_embd, 3, PATCH_SIZE, PATCH_SIZE)
    file.random("v.patch_embd.bias", encoder.n_embd, scale=0.1)
    _layers(file, "v", fused=True)
    file.ones("v.deepstack.0.norm.weight", merged)
    file.random("v.deepstack.0.norm.bias", merged, scale=0.1)
    _mlp(file, "v.deepstack.0.fc1", merged, merged)
    _mlp(file, "v.deepstack.0.fc2", merged, n_embd_text)
    _mlp(file, "mm.0", merged, merged)
    _mlp(file, "mm.2", merged, n_embd_text)
    file.close()
    return path


def write_ultravox(
    path: Path, n_embd_text: int = 64, *, encoder: Encoder = Encoder(), seed: int = 0, stack: int = STACK
) -> Path:
    """Ultravox's: each begun thirty seconds of sound become 1500 / `stack`, 75 tokens."""
    file = _File(path, seed, encoder)
    n_embd = encoder.n_embd
    file.writer.add_bool("clip.has_audio_encoder", True)
    file.writer.add_string("clip.projector_type", "ultravox")
    _encoder(file, "audio", n_embd_text)
    file.writer.add_uint32("clip.audio.num_mel_bins", N_MEL)
    file.writer.add_uint32("clip.audio.projector.stack_factor", stack)
    file.random_f16("a.conv1d.1.weight", n_embd, N_MEL, 3)
    file.random_f16("a.conv1d.2.weight", n_embd, n_embd, 3)
    for name in ("a.conv1d.1.bias", "a.conv1d.2.bias"):
        file.random(name, n_embd, 1)
    file.random("a.position_embd.weight", AUDIO_FRAMES, n_embd)
    _layers(file, "a", positions=False, k_bias=False)
    file.ones("mm.a.norm_pre.weight", n_embd * stack)
    file.random("mm.a.mlp.1.weight", 2 * n_embd_text, n_embd * stack)
    file.ones("mm.a.norm_mid.weight", n_embd_text)
    file.random("mm.a.mlp.2.weight", n_embd_text, n_embd_text)
    file.close()
    return path


def _vision(file: _File, projector: str, n_embd_text: int) -> None:
    writer = file.writer
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", projector)
    _encoder(file, "vision", n_embd_text)
    writer.add_uint32("clip.vision.image_size", file.encoder.image_size)
    writer.add_uint32("clip.vision.patch_size", PATCH_SIZE)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.25, 0.25, 0.25])


def _encoder(file: _File, prefix: str, n_embd_text: int) -> None:
    writer, encoder = file.writer, file.encoder
    writer.add_uint32(f"clip.{prefix}.embedding_length", encoder.n_embd)
    writer.add_uint32(f"clip.{prefix}.feed_forward_length", encoder.n_ff)
    writer.add_uint32(f"clip.{prefix}.block_count", N_LAYER)
    writer.add_uint32(f"clip.{prefix}.attention.head_count", encoder.n_head)
    writer.add_uint32(f"clip.{prefix}.projection_dim", n_embd_text)
    writer.add_float32(f"clip.{prefix}.attention.layer_norm_epsilon", 1e-5)


def _layers(file: _File, prefix: str, *, positions: bool = True, k_bias: bool = True, fused: bool = False) -> None:
    n_embd, n_ff = file.encoder.n_embd, file.encoder.n_ff
    if positions:
        file.random(f"{prefix}.position_embd.weight", file.encoder.patches**2, n_embd)
    for layer in range(N_LAYER):
        block = f"{prefix}.blk.{layer}"
        for norm in ("ln1", "ln2"):
            file.ones(f"{block}.{norm}.weight", n_embd)
            file.random(f"{block}.{norm}.bias", n_embd, scale=0.1)
        for part in ("attn_qkv", "attn_out") if fused else ("attn_q", "attn_k", "attn_v", "attn_out"):
            rows = 3 * n_embd if part == "attn_qkv" else n_embd
            file.random(f"{block}.{part}.weight", rows, n_embd)
            if part != "attn_k" or k_bias:
                file.random(f"{block}.{part}.bias", rows, scale=0.1)
        file.random(f"{block}.ffn_up.weight", n_ff, n_embd)
        file.random(f"{block}.ffn_up.bias", n_ff, scale=0.1)
        file.random(f"{block}.ffn_down.weight", n_embd, n_ff)
        file.random(f"{block}.ffn_down.bias", n_embd, scale=0.1)


def _mlp(file: _File, name: str, columns: int, rows: int) -> None:
    file.random(f"{name}.weight", rows, columns)
    file.random(f"{name}.bias", rows, scale=0.1)


def png(width: int = 40, height: int = 40, *, seed: int = 0) -> bytes:
    """A PNG of coloured squares, another one for each seed."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 256, (4, 4, 3), np.uint8)
    rows = np.arange(height) * 4 // height
    columns = np.arange(width) * 4 // width
    pixels = squares[rows][:, columns]
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    return png_of(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compress(raw))


def png_of(header: bytes, compressed: bytes) -> bytes:
    """A PNG of an IHDR chunk's content and the compressed rows."""
    parts = ((b"IHDR", header), (b"IDAT", compressed), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bmp(width: int = 8, height: int = 8) -> bytes:
    """A BMP of 24 bits a pixel, all of one colour. A negative height puts the first row on top."""
    row = b"\x20\x80\xe0" * width
    data = (row + b"\0" * (-len(row) % 4)) * abs(height)
    header = struct.pack("<2sIHHI", b"BM", 54 + len(data), 0, 0, 54)
    return header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(data), 2835, 2835, 0, 0) + data


def wav(seconds: float = 0.5, *, hertz: float = 440.0, rate: int = 16_000, channels: int = 1) -> bytes:
    """A tone, 16 bits a sample."""
    samples = np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate) * 20_000
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(samples.astype("<i2"), channels).tobytes())
    return target.getvalue()


def gif(width: int, height: int) -> bytes:
    """The beginning of a GIF."""
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0"


def jpeg_head(width: int, height: int, *, frame: int = 0xC0, filling: bytes = b"") -> bytes:
    """A JPEG up to its frame header, with `filling` between its segments."""
    segment = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0" + bytes(9)
    head = b"\xff" + bytes([frame]) + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\0"
    return b"\xff\xd8" + segment + filling + head


def mp3_frame(version: int = 3) -> bytes:
    """A silent MP3 frame of 128 (MPEG 1) or 80 kbit/s, the first rate of its version."""
    kbits_index, rate, samples = (9, 44_100, 1152) if version == 3 else (9, 22_050 if version == 2 else 11_025, 576)
    kbits = 128 if version == 3 else 80
    head = bytes([0xFF, 0xE0 | version << 3 | 1 << 1 | 1, kbits_index << 4, 0xC0])
    return head + bytes(samples // 8 * kbits * 1000 // rate - 4)


def mp3(frames: int, *, version: int = 3) -> bytes:
    return mp3_frame(version) * frames
