"""Looks at an image before anything decodes it: which kind it is, how large it will be, and whether that is allowed.

Owns the bounds on images. libmtmd decodes them with stb_image, which trusts a file's own claims and allocates by them,
so everything that would make it take more than the bounds is found here, in the bytes alone. Pure: must never decode.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from backends.mmproj import MAX_IMAGE_PIXELS

MAX_SIDE = 2**15
MAX_RATIO = 100
"""Of the longer side to the shorter: beyond it a resized image has no height left."""

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 100_000
_INFLATE_BYTES = 2**20
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of each colour type."""
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row and steps of each pass of an interlaced PNG."""
_JPEG_MARKER = re.compile(rb"\xff+[^\xff]")
_JPEG_SCAN = b"\xff\xda"
_MAX_SEGMENTS = 10_000
_MAX_SCANS = 1000
"""Each is a walk over the whole image, and may take a few bytes only."""
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
"""Start-of-frame markers of the kinds that stb_image knows."""
_JPEG_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xCB, 0xCC, 0xCD, 0xCE, 0xCF)
_UNREAD = (
    (b"RIFF....WEBP", "a WebP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"....ftyp", "an HEIC or AVIF image, or a video"),
    (b"%PDF-", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document"),
    (b"RIFF....WAVE", "a sound"),
    (b"ID3", "a sound"),
)
"""Beginnings of what people send instead; a dot stands for any byte."""


class MediaError(Exception):
    """This image or sound is not taken; the message says why and what would be."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Pixels, as the file's header says and its decoder will find."""

    width: int
    height: int


def image_size(data: bytes) -> ImageSize:
    """The size of a PNG, JPEG, GIF or BMP. Raises `MediaError` for anything else, and for more than the bounds."""
    for prefix, read in _READERS:
        if data.startswith(prefix):
            try:
                return read(data)
            except struct.error:
                raise MediaError("is cut off within its header") from None
    found = next((what for pattern, what in _UNREAD if _matches(data, pattern)), "no image that is known")
    raise MediaError(f"is {found}; PNG, JPEG, GIF and BMP are read")


def _matches(data: bytes, pattern: bytes) -> bool:
    return len(data) >= len(pattern) and all(
        want in (ord("."), byte) for byte, want in zip(data, pattern, strict=False)
    )


def _checked(width: int, height: int) -> ImageSize:
    if width < 1 or height < 1:
        raise MediaError(f"is {width} x {height} pixels, which is no image")
    if max(width, height) > MAX_SIDE or width * height > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"is {width} x {height} pixels ({width * height / 1e6:.1f} megapixels); at most {MAX_IMAGE_PIXELS / 1e6:g} "
            f"megapixels and {MAX_SIDE} pixels a side are taken: send it smaller"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise MediaError(f"is {width} x {height} pixels; one side must not be longer than {MAX_RATIO} times the other")
    return ImageSize(width, height)


def _png(data: bytes) -> ImageSize:
    length, kind, width, height, depth, colour, _, _, interlace = struct.unpack_from(">I4sIIBBBBB", data, len(_PNG))
    if kind != b"IHDR" or length != 13 or colour not in _PNG_CHANNELS or depth not in (1, 2, 4, 8, 16):
        raise MediaError("is a damaged PNG")
    size = _checked(width, height)
    bits = _PNG_CHANNELS[colour] * depth
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    rows = sum(_pass_bytes(size, bits, *one) for one in passes)
    _check_inflated(data, rows)
    return size


def _pass_bytes(size: ImageSize, bits: int, first_x: int, first_y: int, step_x: int, step_y: int) -> int:
    """Bytes of one pass: each row of pixels has one for its filter in front."""
    columns = -(-(size.width - first_x) // step_x) if size.width > first_x else 0
    rows = -(-(size.height - first_y) // step_y) if size.height > first_y else 0
    return rows * (1 + -(-columns * bits // 8)) if columns else 0


def _check_inflated(data: bytes, expected: int) -> None:
    """A few bytes can inflate to gigabytes, whatever the header says, and stb_image would keep them all."""
    inflater = zlib.decompressobj()
    total = 0
    for chunk in _idat_chunks(data):
        waiting: bytes | memoryview = chunk
        while waiting and not inflater.eof:
            try:
                total += len(inflater.decompress(waiting, _INFLATE_BYTES))
            except zlib.error:
                raise MediaError("is a damaged PNG: its pixels do not unpack") from None
            waiting = inflater.unconsumed_tail
            if total > expected:
                raise MediaError("is a damaged PNG: it unpacks to more than its size allows")
    if total < expected:
        raise MediaError("is a PNG that is cut off")


def _idat_chunks(data: bytes) -> list[memoryview]:
    view, at = memoryview(data), len(_PNG)
    found: list[memoryview] = []
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return found
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"CgBI":
            raise MediaError("is a PNG in Apple's own form; send an ordinary one")
        if kind == b"IEND":
            return found
        if kind == b"IDAT":
            found.append(view[at + 8 : at + 8 + length])
        at += 12 + length
    raise MediaError(f"is a PNG of more than {_MAX_CHUNKS} parts")


def _jpeg(data: bytes) -> ImageSize:
    """The first frame header, found the way stb_image finds it: past all segments, and past filling between them."""
    if data.count(_JPEG_SCAN) > _MAX_SCANS:
        raise MediaError(f"is a JPEG of more than {_MAX_SCANS} scans")
    at = 2
    for _ in range(_MAX_SEGMENTS):
        found = _JPEG_MARKER.search(data, at)
        if found is None:
            break
        marker, at = found[0][-1], found.end()
        length = struct.unpack_from(">H", data, at)[0]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return _checked(width, height)
        if marker in _JPEG_OTHER_FRAMES:
            raise MediaError("is a JPEG of a rare kind (lossless or arithmetic coding); send an ordinary one")
        if length < 2:
            break
        at += length
    raise MediaError("is a damaged JPEG: it has no frame")


def _gif(data: bytes) -> ImageSize:
    return _checked(*struct.unpack_from("<HH", data, 6))


def _bmp(data: bytes) -> ImageSize:
    header_bytes = struct.unpack_from("<I", data, 14)[0]
    if header_bytes == 12:
        return _checked(*struct.unpack_from("<HH", data, 18))
    width, height = struct.unpack_from("<ii", data, 18)
    # A negative height says that the rows go from top to bottom.
    return _checked(width, abs(height))


_READERS: tuple[tuple[bytes, Callable[[bytes], ImageSize]], ...] = (
    (_PNG, _png),
    (b"\xff\xd8", _jpeg),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
    (b"BM", _bmp),
)
