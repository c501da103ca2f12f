"""Forms with files, as they come: the field `model` found in a body that is not there yet, and what was read given on.

Owns the reading of multipart/form-data (RFC 7578, RFC 2046 section 5.1) as far as that takes. Pure: bytes in, bytes
out. Must never hold more than it was given.
"""

from __future__ import annotations

import re
from email.message import Message

from swapd.errors import BadRequestError

MAX_PART_HEAD_BYTES = 16 * 1024
MAX_NAME_BYTES = 256
"""Of a model."""
_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]")
_NAME = re.compile(rb'[;\s]name="?([^";\r\n]*)"?', re.IGNORECASE)
_DISPOSITION = b"content-disposition:"


class ModelFinder:
    """One body. Feed it until `found`; then `head` is what was fed, for whoever gets the body."""

    def __init__(self, content_type: str) -> None:
        """Raises `BadRequestError` for anything but a form with a boundary."""
        self._delimiter = b"\r\n--" + _boundary(content_type)
        # The first delimiter has no line before it.
        self._data = bytearray(b"\r\n")
        self._at = 0
        """Everything before it is read."""
        self._in_head = False
        self._is_model = False
        self._span: tuple[int, int] | None = None

    @property
    def found(self) -> bool:
        return self._span is not None

    @property
    def model_name(self) -> str:
        assert self._span is not None
        start, end = self._span
        try:
            return self._data[start:end].decode()
        except UnicodeDecodeError:
            raise BadRequestError("model: is not valid UTF-8", param="model") from None

    def head(self, model_id: str) -> bytes:
        """All that was fed, with this id in the place of the model's name."""
        assert self._span is not None
        start, end = self._span
        return bytes(self._data[2:start]) + model_id.encode() + bytes(self._data[end:])

    @property
    def name_bytes(self) -> int:
        """How long the name is that the id takes the place of."""
        assert self._span is not None
        return self._span[1] - self._span[0]

    def feed(self, data: bytes) -> None:
        """Take more of the body. Raises `BadRequestError` for a form that is malformed, or ends without a model."""
        self._data += data
        while self._span is None and self._step():
            pass

    def end(self) -> None:
        """The body has ended. Raises `BadRequestError` unless the model was found."""
        if self._span is None:
            raise BadRequestError("model: this field is required", param="model")

    def _step(self) -> bool:
        """Read one thing more; False if it is not there yet."""
        return self._read_head() if self._in_head else self._skip_content()

    def _skip_content(self) -> bool:
        at = self._data.find(self._delimiter, self._at)
        if at < 0:
            if self._is_model and len(self._data) - self._at > MAX_NAME_BYTES + len(self._delimiter):
                raise BadRequestError(f"model: has more than {MAX_NAME_BYTES} bytes", param="model")
            if not self._is_model:
                self._at = max(self._at, len(self._data) - len(self._delimiter))
            return False
        if self._is_model:
            self._span = (self._at, at)
            return False
        after = at + len(self._delimiter)
        if len(self._data) < after + 2:
            return False
        if self._data[after : after + 2] == b"--":
            raise BadRequestError("model: this field is required", param="model")
        line_end = self._data.find(b"\r\n", after)
        if line_end < 0:
            if len(self._data) - after > MAX_PART_HEAD_BYTES:
                raise BadRequestError("the form is malformed: a boundary's line does not end")
            return False
        self._at, self._in_head = line_end, True
        return True

    def _read_head(self) -> bool:
        end = self._data.find(b"\r\n\r\n", self._at)
        if end < 0 or end - self._at > MAX_PART_HEAD_BYTES:
            if len(self._data) - self._at > MAX_PART_HEAD_BYTES:
                raise BadRequestError(f"the form is malformed: a part's headers exceed {MAX_PART_HEAD_BYTES} bytes")
            return False
        self._is_model = _field_name(bytes(self._data[self._at : end])) == b"model"
        self._at, self._in_head = end + 4, False
        return True


def _field_name(head: bytes) -> bytes:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(_DISPOSITION):
            match = _NAME.search(line)
            return match[1] if match else b""
    return b""


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    if message.get_content_type() != "multipart/form-data" or boundary is None or not _BOUNDARY.fullmatch(boundary):
        raise BadRequestError("the Content-Type must be multipart/form-data with a boundary")
    return boundary.encode()
