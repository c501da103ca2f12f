"""Media in a chat's messages: what is taken out, what is refused and why, and where they stand in the prompt."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from support.mmproj_files import bmp, gif, png, wav

from backends.llama_cpp.chat.body import decode_chat
from backends.llama_cpp.chat.messages import message_text
from backends.llama_cpp.errors import RequestError
from backends.llama_cpp.media.images import ImageSize
from backends.llama_cpp.media.parts import MAX_MEDIA, Abilities, Medium, assembled, has_media, marked, take_media

BOTH = Abilities(sees=True, hears=True)


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def shown(data: bytes | str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data if isinstance(data, str) else url_of(data)}}


def played(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def messages_of(*contents: Any) -> Any:
    messages = [{"role": "user", "content": content} for content in contents]
    return decode_chat(json.dumps({"messages": messages}).encode()).messages


def test_images_and_sounds_are_taken_out_in_their_order_with_the_fields_they_came_in() -> None:
    messages = messages_of("hello", [said("look"), shown(png(4, 3))], [played(wav()), said("and"), shown(bmp(5, 6))])
    media = take_media(messages, BOTH)
    assert [(one.param, one.size) for one in media] == [
        ("messages[1].content[1].image_url.url", ImageSize(4, 3)),
        ("messages[2].content[0].input_audio.data", None),
        ("messages[2].content[2].image_url.url", ImageSize(5, 6)),
    ]
    assert media[0].data == png(4, 3)


def test_the_same_content_has_the_same_digest_wherever_it_stands() -> None:
    first, second, other = take_media(messages_of([shown(png())], [shown(png()), shown(png(seed=1))]), BOTH)
    assert first.digest == second.digest != other.digest


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg;charset=utf-8", "", "IMAGE/PNG", "application/octet-stream"])
def test_a_data_url_is_read_whatever_type_it_claims(kind: str) -> None:
    (medium,) = take_media(messages_of([shown(url_of(png(), kind))]), BOTH)
    assert medium.size == ImageSize(40, 40)
    (medium,) = take_media(messages_of([shown("DATA" + url_of(png(), kind)[4:])]), BOTH)
    assert medium.size == ImageSize(40, 40)


IMAGE = "messages[0].content[0].image_url"
SOUND = "messages[0].content[0].input_audio"
REFUSED: list[tuple[Any, str, str]] = [
    (shown("https://example.org/cat.png"), f"{IMAGE}.url", "must be a data: URL.*fetches nothing for a client"),
    (shown("http://127.0.0.1/cat.png"), f"{IMAGE}.url", "fetches nothing"),
    (shown("file:///etc/passwd"), f"{IMAGE}.url", "neither from the network nor from its own files"),
    (shown("/etc/passwd"), f"{IMAGE}.url", "must be a data: URL"),
    (shown(""), f"{IMAGE}.url", "must be a data: URL"),
    (shown("data:image/png,hello"), f"{IMAGE}.url", "must be a data: URL in base64"),
    (shown("data:image/png;base64"), f"{IMAGE}.url", "must be a data: URL in base64"),
    (shown("data:image/png;base64,@@@"), f"{IMAGE}.url", "is not valid base64"),
    (shown("data:image/png;base64,AAA"), f"{IMAGE}.url", "is not valid base64"),
    (shown("data:image/png;base64,"), f"{IMAGE}.url", "is empty"),
    (shown("data:image/png;base64," + "A" * 28_000_000), f"{IMAGE}.url", "has more than 20 MiB"),
    (shown(b"no image"), f"{IMAGE}.url", "is no image that is known"),
    (shown(gif(10_000, 10_000)), f"{IMAGE}.url", "100.0 megapixels.*at most 25"),
    (played(b"no sound"), f"{SOUND}.data", "is no sound that is known"),
    ({"type": "input_audio", "input_audio": {"data": "@", "format": "wav"}}, f"{SOUND}.data", "is not valid base64"),
]


@pytest.mark.parametrize(("part", "param", "says"), REFUSED, ids=range(len(REFUSED)))
def test_bad_media_are_refused_by_field_with_the_reason(part: Any, param: str, says: str) -> None:
    with pytest.raises(RequestError, match=says) as refusal:
        take_media(messages_of([part]), BOTH)
    assert refusal.value.status == 400
    assert refusal.value.param == param
    assert refusal.value.message.startswith(param)


MALFORMED: list[tuple[Any, str]] = [
    ({"type": "image_url"}, IMAGE),
    ({"type": "image_url", "image_url": None}, IMAGE),
    ({"type": "image_url", "image_url": {}}, f"{IMAGE}.url"),
    ({"type": "image_url", "image_url": "data:image/png;base64,AAAA"}, IMAGE),
    ({"type": "input_audio"}, SOUND),
    ({"type": "input_audio", "input_audio": {"format": "wav"}}, f"{SOUND}.data"),
    ({"type": "video_url", "video_url": {"url": "data:,"}}, "messages[0].content[0].type"),
    ({"type": "marker", "text": "<__media_0__>"}, "messages[0].content[0].type"),
]


@pytest.mark.parametrize(("part", "param"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_part_is_refused_by_field(part: Any, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        messages_of([part])
    assert refusal.value.status == 400
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("part", "able", "says"),
    [
        (shown(b"x"), Abilities(), "reads text only: it has no mmproj"),
        (shown(b"x"), Abilities(hears=True), "reads text and sound"),
        (played(b"x"), Abilities(), "reads text only: it has no mmproj"),
        (played(b"x"), Abilities(sees=True), "reads text and images"),
    ],
)
def test_a_model_that_cannot_see_or_hear_says_so_whatever_is_in_the_part(part: Any, able: Abilities, says: str) -> None:
    with pytest.raises(RequestError, match=says) as refusal:
        take_media(messages_of([part]), able)
    assert refusal.value.param == f"messages[0].content[0].{part['type']}"


def test_more_media_than_the_bound_are_refused_with_both_numbers() -> None:
    parts = [shown(png(1, 1))] * (MAX_MEDIA + 1)
    with pytest.raises(RequestError, match=f"{MAX_MEDIA + 1} images and sounds; {MAX_MEDIA} are allowed"):
        take_media(messages_of(parts), BOTH)
    assert len(take_media(messages_of(parts[1:]), BOTH)) == MAX_MEDIA


def test_more_sound_than_the_bound_is_refused_with_both_numbers() -> None:
    played_long = played(wav(120, rate=4000))
    assert len(take_media(messages_of([played_long, played_long]), BOTH)) == 2
    with pytest.raises(RequestError, match="360 seconds of sound together; 300 are taken"):
        take_media(messages_of([played_long] * 3), BOTH)


def test_texts_are_joined_by_newlines_and_media_by_nothing() -> None:
    messages = messages_of([said("a"), said("b"), shown(png()), said("c"), shown(png()), shown(png())])
    assert has_media(messages)
    (message,) = marked(messages, None)
    assert message_text(message) == "a\nb<__media__>c<__media__><__media__>"
    assert not has_media(messages_of("text", [said("a")]))


def pieces(prompt: str, media: list[Medium], secret: str) -> list[str | int]:
    """The assembled prompt with numbers in the places of media."""
    return [part if isinstance(part, str) else media.index(part) for part in assembled(prompt, media, secret)]


def test_media_stand_in_the_prompt_where_they_stood_in_the_messages() -> None:
    messages = messages_of([said("a"), shown(png()), said("b")], [shown(png(seed=1))])
    media = take_media(messages, BOTH)
    prompt = "|".join(message_text(message) for message in marked(messages, "s3cret"))
    assert pieces(prompt, media, "s3cret") == ["a", 0, "b|", 1]
    # A template may put what was said last in front.
    prompt = "|".join(message_text(message) for message in reversed(marked(messages, "s3cret")))
    assert pieces(prompt, media, "s3cret") == [1, "|a", 0, "b"]


@pytest.mark.parametrize("text", ["<__media__>", "<__media_0__>", "<__media_s3cre_0__>", "<__media_.*_0__>"])
def test_a_clients_own_text_cannot_pass_for_a_medium(text: str) -> None:
    messages = messages_of([said(text), shown(png())])
    media = take_media(messages, BOTH)
    (message,) = marked(messages, "s3cret")
    assert pieces(message_text(message), media, "s3cret") == [text, 0]


@pytest.mark.parametrize("prompt", ["nothing", "<__media_s_0__>", "<__media_s_0__><__media_s_1__><__media_s_1__>"])
def test_a_template_that_drops_or_repeats_a_medium_is_the_requests_error(prompt: str) -> None:
    media = take_media(messages_of([shown(png()), shown(png(seed=1))]), BOTH)
    with pytest.raises(RequestError, match="chat template does not show it") as refusal:
        assembled(prompt, media, "s")
    assert str(refusal.value.param).startswith("messages[0].content[")
