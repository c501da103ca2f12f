"""Looks at a sound before anything decodes it: how long it is, and the same sound without claims nobody can trust.

Owns the bounds on sound. libmtmd decodes WAV and MP3 with miniaudio, which allocates by the length that a header
states, so what is handed on is put together anew from the samples or frames that are really there. Pure: must never
decode.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from backends.llama_cpp.media.images import MediaError
from backends.mmproj import MAX_SOUND_SECONDS

MIN_SECONDS = 0.1
"""Shorter ones leave some models' spectrograms without a second column, which llama.cpp asserts."""

_MIN_RATE, _MAX_RATE = 4_000, 384_000
_MAX_CHANNELS = 16
_MAX_CHUNKS = 1000
_TAIL_BYTES = 4096
_WAVE_BITS = {1: (8, 16, 24, 32), 3: (32, 64), 6: (8,), 7: (8,)}
"""Bits of a sample by format tag: PCM, float, A-law, mu-law."""
_WAVE_EXTENSIBLE = 0xFFFE

_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""Samples per second by version (3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5) and index."""
_MP3_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MP3_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound that may be decoded. `data` is a whole WAV or MP3 file."""

    seconds: float
    data: bytes


def sound(data: bytes) -> Sound:
    """A WAV or MP3, made safe to decode. Raises `MediaError` for anything else, and for more than the bounds."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _wave(data)
    if data.startswith(b"ID3") or _frame(data, 0) is not None:
        return _mp3(data)
    raise MediaError("is no sound that is known; WAV and MP3 are read")


def _checked(seconds: float, data: bytes) -> Sound:
    if seconds > MAX_SOUND_SECONDS:
        raise MediaError(f"lasts {seconds:.0f} seconds; at most {MAX_SOUND_SECONDS} are taken: send a part of it")
    if seconds < MIN_SECONDS:
        raise MediaError(f"lasts {seconds:.3f} seconds; at least {MIN_SECONDS} are needed")
    return Sound(seconds, data)


def _wave(data: bytes) -> Sound:
    form = b""
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        at += 8
        if kind == b"fmt ":
            form = data[at : at + min(length, 64)]
        elif kind == b"data":
            return _wave_of(form, data[at : at + length])
        at += length + length % 2
    raise MediaError("is a WAV without sound")


def _wave_of(form: bytes, samples: bytes) -> Sound:
    if len(form) < 16:
        raise MediaError("is a WAV that does not say what its samples are")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
    if tag == _WAVE_EXTENSIBLE and len(form) >= 26:
        tag = struct.unpack_from("<H", form, 24)[0]
    if bits not in _WAVE_BITS.get(tag, ()):
        raise MediaError(f"is a WAV of format {tag} with {bits} bits a sample; PCM, float, A-law and mu-law are read")
    if not _MIN_RATE <= rate <= _MAX_RATE or not 1 <= channels <= _MAX_CHANNELS:
        raise MediaError(
            f"has {channels} channels of {rate} samples per second; 1 to {_MAX_CHANNELS} of {_MIN_RATE} to "
            f"{_MAX_RATE} are read"
        )
    frame = channels * bits // 8
    samples = samples[: len(samples) // frame * frame]
    head = struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, bits)
    chunks = b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(samples)) + samples
    return _checked(len(samples) / frame / rate, b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


def _mp3(data: bytes) -> Sound:
    """Only whole frames are kept, and not the first if it is a header of the encoder's."""
    at = _after_tag(data)
    seconds = 0.0
    kept: list[bytes] = []
    while (found := _frame(data, at)) is not None:
        length, frame_seconds = found
        frame = data[at : at + length]
        if len(frame) < length:
            break
        if kept or not _is_encoder_header(frame):
            kept.append(frame)
            seconds += frame_seconds
        if seconds > MAX_SOUND_SECONDS:
            break
        at += length
    if not kept:
        raise MediaError("is an MP3 without sound")
    if seconds <= MAX_SOUND_SECONDS and not _is_tail(data[at:]):
        raise MediaError(f"is an MP3 that is damaged after {seconds:.1f} seconds")
    return _checked(seconds, b"".join(kept))


def _is_tail(rest: bytes) -> bool:
    """Whether what follows the last whole frame is no loss: nothing much, or tags."""
    return len(rest) < _TAIL_BYTES or rest.startswith((b"TAG", b"APETAGEX", b"LYRICS", b"ID3"))


def _after_tag(data: bytes) -> int:
    if not data.startswith(b"ID3") or len(data) < 10:
        return 0
    length = 0
    for byte in data[6:10]:
        length = length << 7 | byte & 0x7F
    return 10 + length + (10 if data[5] & 0x10 else 0)


def _frame(data: bytes, at: int) -> tuple[int, float] | None:
    """Bytes and seconds of the MP3 frame that begins here, or None. Frames without a stated bit rate are not known."""
    if at + 4 > len(data) or data[at] != 0xFF:
        return None
    version, layer = data[at + 1] >> 3 & 3, data[at + 1] >> 1 & 3
    kbits_index, rate_index, padding = data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
    if data[at + 1] & 0xE0 != 0xE0 or version == 1 or layer != 1 or rate_index == 3 or kbits_index in (0, 15):
        return None
    rate = _MP3_RATES[version][rate_index]
    kbits = (_MP3_KBITS_1 if version == 3 else _MP3_KBITS_2)[kbits_index]
    samples = 1152 if version == 3 else 576
    return samples // 8 * kbits * 1000 // rate + padding, samples / rate


def _is_encoder_header(frame: bytes) -> bool:
    """Xing's or LAME's: it states a number of frames that need not be true."""
    return b"Xing" in frame[4:48] or b"Info" in frame[4:48]
