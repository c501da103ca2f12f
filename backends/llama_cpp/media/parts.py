"""The images and sounds of a chat: taken out of its messages, checked, and put back into the rendered prompt.

Owns the bounds on how many and how large, and the markers that keep their places while a template writes around them.
A marker has a random part of its request's own, so no text of a client's can pass for one. Pure but for hashing.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from backends.llama_cpp.chat.messages import MARKER, Message, Part
from backends.llama_cpp.errors import RequestError
from backends.llama_cpp.media.images import ImageSize, MediaError, image_size
from backends.llama_cpp.media.sounds import sound
from backends.mmproj import MAX_SOUND_SECONDS

MAX_MEDIA = 32
"""Images and sounds of one request."""
MAX_BYTES = 20 * 2**20
"""Of one of them."""
READABLE_MARKER = "<__media__>"
"""Stands in the text that /apply-template answers with; libmtmd's own."""


@dataclass(frozen=True, slots=True, eq=False)
class Medium:
    """One image or sound that may be decoded."""

    param: str
    """The request's field that it came in."""
    data: bytes
    """A whole file, as the decoder gets it."""
    digest: bytes
    """Of the file as it came: the same for the same content."""
    size: ImageSize | None = None
    """None for a sound."""
    seconds: float = 0.0
    """Of a sound."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the model takes beside text."""

    sees: bool = False
    hears: bool = False


def has_media(messages: Sequence[Message]) -> bool:
    """Whether there is anything in a chat but text."""
    return any(part.type != "text" for _, part in _parts(messages))


def check_media(messages: Sequence[Message], able: Abilities) -> None:
    """Raise a `RequestError` for media that the model does not take, whatever is in them, and for too many."""
    found = [(where, part) for where, part in _parts(messages) if part.type != "text"]
    for where, part in found:
        _check_ability(where, part, able)
    if len(found) > MAX_MEDIA:
        raise RequestError(f"messages hold {len(found)} images and sounds; {MAX_MEDIA} are allowed", param="messages")


def take_media(messages: Sequence[Message], able: Abilities) -> list[Medium]:
    """The media of a chat, in order, checked. Raises `RequestError` naming the one that is wrong."""
    check_media(messages, able)
    media = [_medium(where, part) for where, part in _parts(messages) if part.type != "text"]
    seconds = sum(medium.seconds for medium in media)
    if seconds > MAX_SOUND_SECONDS:
        raise RequestError(
            f"messages hold {seconds:.0f} seconds of sound together; {MAX_SOUND_SECONDS} are taken", param="messages"
        )
    return media


def marked(messages: Sequence[Message], secret: str | None) -> tuple[Message, ...]:
    """The same messages with a marker in the place of each medium.

    `secret` is the markers' random part; None puts the marker that people know.
    """
    number = 0
    made: list[Message] = []
    for message in messages:
        if isinstance(message.content, tuple):
            parts: list[Part] = []
            for part in message.content:
                if part.type == "text":
                    parts.append(part)
                else:
                    parts.append(Part(MARKER, READABLE_MARKER if secret is None else _marker(secret, number)))
                    number += 1
            message = msgspec.structs.replace(message, content=tuple(parts))
        made.append(message)
    return tuple(made)


def assembled(prompt: str, media: Sequence[Medium], secret: str) -> list[str | Medium]:
    """The rendered prompt with each marker replaced by its medium. Raises `RequestError` unless each is there once."""
    parts: list[str | Medium] = []
    seen: list[int] = []
    for index, piece in enumerate(re.split(rf"<__media_{re.escape(secret)}_(\d+)__>", prompt)):
        if index % 2:
            seen.append(int(piece))
            parts.append(media[seen[-1]])
        elif piece:
            parts.append(piece)
    unseen = sorted(set(range(len(media))) - set(seen))
    if unseen or len(seen) != len(media):
        param = media[unseen[0] if unseen else 0].param
        raise RequestError(
            f"{param}: the model's chat template does not show it where it stands; move it to a message of the user",
            param=param,
        )
    return parts


def _marker(secret: str, number: int) -> str:
    return f"<__media_{secret}_{number}__>"


def _parts(messages: Sequence[Message]) -> Iterator[tuple[str, Part]]:
    for index, message in enumerate(messages):
        if isinstance(message.content, tuple):
            for position, part in enumerate(message.content):
                yield f"messages[{index}].content[{position}]", part


def _check_ability(where: str, part: Part, able: Abilities) -> None:
    if part.type == "image_url" and not able.sees:
        reads = "text and sound" if able.hears else "text only: it has no mmproj in the model list"
        raise RequestError(f"{where}.image_url: this model reads {reads}", param=f"{where}.image_url")
    if part.type == "input_audio" and not able.hears:
        reads = "text and images" if able.sees else "text only: it has no mmproj in the model list"
        raise RequestError(f"{where}.input_audio: this model reads {reads}", param=f"{where}.input_audio")


def _medium(where: str, part: Part) -> Medium:
    if part.image_url is not None:
        param = f"{where}.image_url.url"
        data = _decoded(_payload(part.image_url.url, param), param)
        try:
            return Medium(param, data, _digest(data), image_size(data))
        except MediaError as error:
            raise RequestError(f"{param} {error}", param=param) from None
    assert part.input_audio is not None
    param = f"{where}.input_audio.data"
    data = _decoded(part.input_audio.data, param)
    try:
        taken = sound(data)
        return Medium(param, taken.data, _digest(data), seconds=taken.seconds)
    except MediaError as error:
        raise RequestError(f"{param} {error}", param=param) from None


def _payload(url: str, param: str) -> str:
    if url[:5].lower() != "data:":
        raise RequestError(
            f"{param} must be a data: URL, such as data:image/png;base64,…: this server fetches nothing for a client, "
            "neither from the network nor from its own files",
            param=param,
        )
    comma = url.find(",", 0, 512)
    if comma < 0 or not url[:comma].lower().endswith(";base64"):
        raise RequestError(f"{param} must be a data: URL in base64: data:TYPE;base64,DATA", param=param)
    return url[comma + 1 :]


def _decoded(payload: str, param: str) -> bytes:
    if len(payload) > MAX_BYTES * 4 // 3 + 4:
        raise RequestError(f"{param} has more than {MAX_BYTES // 2**20} MiB", param=param)
    try:
        data = binascii.a2b_base64(payload, strict_mode=True)
    except ValueError:
        raise RequestError(f"{param} is not valid base64", param=param) from None
    if not data:
        raise RequestError(f"{param} is empty", param=param)
    return data


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
