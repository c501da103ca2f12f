"""Which sounds are taken, and that what is handed on claims no more than there is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mmproj_files import mp3, mp3_frame, wav

from backends.llama_cpp.media.images import MediaError
from backends.llama_cpp.media.sounds import sound


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (wav(0.5), 0.5),
        (wav(0.25, rate=44_100, channels=2), 0.25),
        (wav(0.5)[:44] + wav(0.5)[44:8044], 0.25),
        (mp3(100), 100 * 1152 / 44_100),
        (mp3(100, version=2), 100 * 576 / 22_050),
        (mp3(100, version=0), 100 * 576 / 11_025),
        (b"ID3\x03\0\0\0\0\0\x14" + bytes(20) + mp3(100), 100 * 1152 / 44_100),
        (mp3(100) + b"TAG" + bytes(125), 100 * 1152 / 44_100),
        (mp3(100)[:-50], 99 * 1152 / 44_100),
    ],
)
def test_a_sound_is_as_long_as_its_samples(data: bytes, seconds: float) -> None:
    assert sound(data).seconds == pytest.approx(seconds, rel=1e-4)


def test_a_wav_that_claims_more_samples_than_it_has_is_handed_on_with_those_it_has() -> None:
    data = wav(0.5)
    lying = data[:40] + struct.pack("<I", 0xFFFFFFFF) + data[44:]
    assert sound(lying) == sound(data)


def test_a_wavs_other_chunks_are_left_out() -> None:
    data = wav(0.5)
    listed = data[:12] + b"LIST" + struct.pack("<I", 5) + b"hello\0" + data[12:]
    assert sound(listed) == sound(data)


def test_an_mp3s_header_that_states_a_number_of_frames_is_left_out() -> None:
    """miniaudio would allocate what it says: sixteen gigabytes for this one."""
    info = bytearray(mp3_frame())
    info[36:48] = b"Xing" + struct.pack(">II", 1, 0xFFFFFFFE)
    assert sound(bytes(info) + mp3(20)) == sound(mp3(20))
    assert b"Xing" not in sound(bytes(info) + mp3(20)).data


WRONG: list[tuple[bytes, str]] = [
    (b"", "is no sound that is known; WAV and MP3 are read"),
    (b"fLaC" + bytes(100), "is no sound that is known"),
    (b"OggS" + bytes(100), "is no sound that is known"),
    (b"RIFF\0\0\0\0WAVE", "is a WAV without sound"),
    (wav(0.5)[:36], "is a WAV without sound"),
    (b"RIFF\0\0\0\0WAVEdata\x04\0\0\0\0\0\0\0", "does not say what its samples are"),
    (wav(0.5)[:20] + b"\x02\0" + wav(0.5)[22:], "is a WAV of format 2 with 16 bits"),
    (wav(0.5)[:34] + b"\x0c\0" + wav(0.5)[36:], "with 12 bits a sample"),
    (wav(0.5)[:22] + b"\0\0" + wav(0.5)[24:], "has 0 channels"),
    (wav(0.5)[:24] + struct.pack("<I", 3) + wav(0.5)[28:], "of 3 samples per second"),
    (wav(0.05), "lasts 0.050 seconds; at least 0.1"),
    (wav(301, rate=4000), "lasts 301 seconds; at most 300"),
    (mp3(12_000), "at most 300"),
    (b"ID3\x03\0\0\0\0\0\x14" + bytes(50), "is an MP3 without sound"),
    (mp3(100) + b"x" * 5000, "is an MP3 that is damaged after 2.6 seconds"),
]


@pytest.mark.parametrize(("data", "says"), WRONG, ids=range(len(WRONG)))
def test_what_is_no_sound_or_too_long_is_refused_with_the_reason(data: bytes, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        sound(data)


@given(st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"ID3", b"\xff\xfb\x90\0"]), st.binary(max_size=300))
def test_any_bytes_are_judged(beginning: bytes, rest: bytes) -> None:
    try:
        found = sound(beginning + rest)
    except MediaError:
        return
    assert found.data
