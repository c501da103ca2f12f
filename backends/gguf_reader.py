"""Reads the primitive values of a GGUF header through a small window that only moves forward.

Owns the bounds of reading: no byte is read and nothing allocated because of a claim that was not checked first.
Must never know what the values mean; that is `backends.gguf`.
"""

from __future__ import annotations

import struct
from operator import length_hint
from pathlib import Path
from typing import BinaryIO

from backends import gguf_format as fmt
from backends.base import InvalidModelError

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_CHUNK_BYTES = 1024 * 1024


class HeaderReader:
    """One file's header. `file` stands at its start and holds `size_bytes`; `path` is for messages.

    Every method raises `InvalidModelError` when the file, or the bounds of `gguf_format`, do not hold what is asked.
    """

    def __init__(self, file: BinaryIO, size_bytes: int, path: Path) -> None:
        self._file = file
        self._limit = min(size_bytes, fmt.MAX_HEADER_BYTES)
        self.size_bytes = size_bytes
        self._buffer = b""
        self._start = 0
        self._at = 0
        self._strings_left = fmt.MAX_STRING_ELEMENTS
        self._text_left = fmt.MAX_KEPT_STRING_BYTES
        self.path = path

    @property
    def position(self) -> int:
        """Bytes from the start of the file."""
        return self._start + self._at

    def damaged(self, what: str) -> InvalidModelError:
        """The error to raise for a header that says what cannot be."""
        return InvalidModelError(f"{self.path}: damaged header: {what}; download it again")

    def check_room(self, n_bytes: int) -> None:
        """Raise unless the header can hold `n_bytes` more."""
        if n_bytes <= self._limit - self.position:
            return
        if self._limit < self.size_bytes:
            raise self.damaged(f"it is longer than {fmt.MAX_HEADER_BYTES:,} bytes")
        raise InvalidModelError(
            f"{self.path}: truncated inside its header: the file ends after {self.size_bytes:,} bytes; "
            "download it again"
        )

    def peek(self, n_bytes: int) -> bytes:
        """The next bytes without moving; fewer at the end of the file."""
        self._fill(min(n_bytes, self.size_bytes - self.position))
        return self._buffer[self._at : self._at + n_bytes]

    def take(self, n_bytes: int) -> bytes:
        self._fill(n_bytes)
        begin = self._at
        self._at = begin + n_bytes
        return self._buffer[begin : self._at]

    def u32(self) -> int:
        self._fill(4)
        value: int = _U32.unpack_from(self._buffer, self._at)[0]
        self._at += 4
        return value

    def u64(self) -> int:
        self._fill(8)
        value: int = _U64.unpack_from(self._buffer, self._at)[0]
        self._at += 8
        return value

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The values that `layout` describes."""
        self._fill(layout.size)
        values: tuple[int, ...] = layout.unpack_from(self._buffer, self._at)
        self._at += layout.size
        return values

    def count(self, what: str, most: int) -> int:
        """A u64 that counts `what`, at most `most` of them."""
        number = self.u64()
        if number > most:
            raise self.damaged(f"it claims {number:,} {what}, {most:,} is the most")
        return number

    def text(self, what: str, most: int) -> str:
        """A string of at most `most` bytes; bytes that are no UTF-8 are replaced."""
        length = self.u64()
        if length > most:
            raise self.damaged(f"{what} of {length:,} bytes, {most:,} is the most")
        self._text_left -= length
        if self._text_left < 0:
            raise self.damaged("its texts are too long together")
        return self.take(length).decode("utf-8", "replace")

    def skip(self, n_bytes: int) -> None:
        """Step over bytes without reading them."""
        self.check_room(n_bytes)
        self._at += n_bytes

    def skip_strings(self, n_strings: int) -> None:
        """Step over an array of strings: the loop that a vocabulary of 250,000 tokens goes through."""
        self._strings_left -= n_strings
        if self._strings_left < 0:
            raise self.damaged(f"it claims more than {fmt.MAX_STRING_ELEMENTS:,} strings in arrays")
        self.check_room(n_strings * 8)
        unpack = _U64.unpack_from
        while n_strings:
            self._fill(8)
            buffer, at, left = self._buffer, self._at, iter(range(n_strings))
            n_strings = 0
            try:
                for _ in left:
                    at += 8 + unpack(buffer, at)[0]
            except (struct.error, OverflowError):  # the next one begins beyond the window
                n_strings = length_hint(left) + 1
            begin, self._at = self._at, at
            if self.position > self._limit:
                self._at = begin
                self.check_room(at - begin)

    def _fill(self, n_bytes: int) -> None:
        """Have at least `n_bytes` in the window; also moves the window up to a position that was skipped to."""
        if self._at + n_bytes <= len(self._buffer):
            return
        self.check_room(n_bytes)
        position = self.position
        if self._at > len(self._buffer):
            self._file.seek(position)
            kept = b""
        else:
            kept = self._buffer[self._at :]
        wanted = min(max(n_bytes, _CHUNK_BYTES), self._limit - position)
        parts = [kept]
        have = len(kept)
        while have < wanted and (part := self._file.read(wanted - have)):
            parts.append(part)
            have += len(part)
        self._buffer, self._start, self._at = b"".join(parts), position, 0
        if have < n_bytes:
            raise self.damaged("the file became shorter while it was read")
