"""Which images are taken, judged by their bytes alone."""

from __future__ import annotations

import contextlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mmproj_files import bmp, gif, jpeg_head, png, png_of

from backends.llama_cpp.media.images import ImageSize, MediaError, image_size
from backends.mmproj import MAX_IMAGE_PIXELS


def png_header(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png(40, 30), (40, 30)),
        (bmp(9, 5), (9, 5)),
        (bmp(9, -5), (9, 5)),
        (b"BM" + bytes(12) + struct.pack("<IHH", 12, 7, 6) + bytes(40), (7, 6)),
        (gif(12, 34), (12, 34)),
        (jpeg_head(640, 480), (640, 480)),
        (jpeg_head(640, 480, frame=0xC2), (640, 480)),
        (jpeg_head(640, 480, filling=b"\0\0\0\xff"), (640, 480)),
    ],
)
def test_the_size_is_read_from_the_header(data: bytes, size: tuple[int, int]) -> None:
    assert image_size(data) == ImageSize(*size)


@pytest.mark.parametrize("bits", [(1, 0), (2, 3), (4, 0), (8, 0), (8, 2), (8, 4), (8, 6), (16, 2), (16, 6)])
@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 17)])
def test_the_pixels_of_every_kind_of_png_are_counted(
    bits: tuple[int, int], interlace: int, size: tuple[int, int]
) -> None:
    """The passes of an interlaced image, counted pixel by pixel."""
    (depth, colour), (width, height) = bits, size
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    starts = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = 0
    for x, y, dx, dy in starts if interlace else [(0, 0, 1, 1)]:
        columns, rows = len(range(x, width, dx)), len(range(y, height, dy))
        raw += rows * (1 + (columns * channels * depth + 7) // 8) if columns else 0
    header = png_header(width, height, depth, colour, interlace)
    assert image_size(png_of(header, zlib.compress(bytes(raw)))) == ImageSize(width, height)
    for wrong in (raw - 1, raw + 1):
        with pytest.raises(MediaError):
            image_size(png_of(header, zlib.compress(bytes(wrong))))


HUGE = 10_000
WRONG: list[tuple[bytes, str]] = [
    (b"", "is no image that is known; PNG, JPEG, GIF and BMP are read"),
    (b"hello", "is no image that is known"),
    (b"RIFF\0\0\0\0WEBPVP8 ", "is a WebP image"),
    (b"RIFF\0\0\0\0WAVEfmt ", "is a sound"),
    (b"II*\0" + bytes(20), "is a TIFF image"),
    (b"\0\0\0\x18ftypheic", "is an HEIC or AVIF image"),
    (b"<svg xmlns=", "is an SVG drawing"),
    (b"%PDF-1.7", "is a PDF document"),
    (png()[:20], "is cut off within its header"),
    (png()[:60], "is a PNG that is cut off"),
    (png_of(png_header(40, 40), b"not deflated"), "its pixels do not unpack"),
    (png_of(png_header(40, 40, depth=3), b""), "is a damaged PNG"),
    (png_of(png_header(0, 40), b""), "is 0 x 40 pixels"),
    (png_of(png_header(HUGE, HUGE), b""), r"is 10000 x 10000 pixels \(100.0 megapixels\); at most 25 megapixels"),
    (png_of(png_header(2**31, 2**31), b""), "megapixels"),
    (jpeg_head(HUGE, HUGE), "100.0 megapixels"),
    (gif(HUGE, HUGE), "100.0 megapixels"),
    (bmp(1, 1)[:18] + struct.pack("<ii", HUGE, -HUGE) + bytes(40), "100.0 megapixels"),
    (bmp(1, 1)[:18] + struct.pack("<ii", -5, 5) + bytes(40), "is -5 x 5 pixels"),
    (gif(40_000, 10), "32768 pixels a side"),
    (gif(2000, 10), "one side must not be longer than 100 times the other"),
    (jpeg_head(640, 480, frame=0xC3), "JPEG of a rare kind"),
    (jpeg_head(640, 480, frame=0xC9), "JPEG of a rare kind"),
    (b"\xff\xd8\xff\xe0\x00\x01", "is a damaged JPEG"),
    (b"\xff\xd8" + bytes(100), "is a damaged JPEG"),
    (b"\xff\xd8\xff\xc0\x00", "is cut off within its header"),
    (jpeg_head(64, 48) + b"\xff\xda\0\x02" * 1001, "more than 1000 scans"),
    (b"\xff\xd8" + b"\xff\xe0\x00\x02" * 10_001 + jpeg_head(64, 48)[2:], "is a damaged JPEG"),
]


@pytest.mark.parametrize(("data", "says"), WRONG, ids=range(len(WRONG)))
def test_what_is_no_image_or_too_large_is_refused_with_the_reason(data: bytes, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        image_size(data)


def test_a_few_bytes_that_unpack_to_megabytes_are_refused_before_they_do() -> None:
    """A thousand zeros take a byte: at most the promised pixels and one more piece are ever unpacked."""
    bomb = png_of(png_header(64, 64), zlib.compress(bytes(8 * 2**20)))
    assert len(bomb) < 2**14
    with pytest.raises(MediaError, match="unpacks to more than its size allows"):
        image_size(bomb)


def test_the_largest_image_that_is_taken_is_of_the_limits_very_size() -> None:
    assert image_size(gif(5000, 5000)) == ImageSize(5000, 5000)
    assert MAX_IMAGE_PIXELS == 5000 * 5000
    with pytest.raises(MediaError):
        image_size(gif(5000, 5001))


@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF"]), st.binary(max_size=300)
)
def test_any_bytes_are_judged(beginning: bytes, rest: bytes) -> None:
    try:
        size = image_size(beginning + rest)
    except MediaError:
        return
    assert 0 < size.width * size.height <= MAX_IMAGE_PIXELS


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_png_with_one_wrong_byte_is_judged(at: int, byte: int) -> None:
    data = bytearray(png(40, 30))
    data[at % len(data)] = byte
    with contextlib.suppress(MediaError):
        image_size(bytes(data))
