"""Media that lie elsewhere are refused, however their place is written, before a model is loaded for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from swapd.api import openai
from swapd.errors import BadRequestError

PIXEL = "data:image/png;base64,iVBORw0KGgo="
HOSTS = [
    "127.0.0.1:8686",
    "localhost",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "0",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "169.254.169.254/latest/meta-data",
    "metadata.google.internal",
    "192.168.1.1",
    "user:pw@10.0.0.1",
    "evil.example#@127.0.0.1",
    "\u2460\u2461\u2466.0.0.1",
    "127.0.0.1.nip.io",
]
SCHEMES = [
    "http://",
    "https://",
    "HTTP://",
    "hTtP://",
    "http:",
    "//",
    " http://",
    "\thttp://",
    "\u00a0http://",
    "ftp://",
]
OTHERS = [
    "file:///etc/passwd",
    "file:/etc/shadow",
    "/etc/passwd",
    "../../etc/passwd",
    "C:\\windows",
    "gopher://127.0.0.1:11211/_stats",
    "dict://localhost",
    "unix:/run/docker.sock",
    "jar:http://x!/y",
    "blob:http://x",
    "javascript:alert(1)",
    "s3://bucket/key",
    "",
    " ",
    "data",
    " data:image/png;base64,AA",
    "data :image/png;base64,AA",
    "xdata:image/png;base64,AA",
    "http://data:image/png@127.0.0.1/",
    "iVBORw0KGgo=",
]
URLS = [scheme + host for scheme in SCHEMES for host in HOSTS] + OTHERS


def read(part: dict[str, Any], endpoint: openai.Endpoint = openai.Endpoint.CHAT_COMPLETIONS) -> None:
    content = [{"type": "text", "text": "look"}, part]
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": content}]
    openai.read(endpoint, json.dumps({"model": "m", "messages": messages}).encode())


def test_no_form_of_a_url_of_elsewhere_is_taken():
    assert len(URLS) > 100
    for url in URLS:
        for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "image_url", "image_url": url}):
            with pytest.raises(BadRequestError, match="fetches nothing") as refused:
                read(part)
            assert (refused.value.param or "").startswith("messages[1].content[1].image_url")


@pytest.mark.parametrize("kind", ["image_url", "audio_url", "video_url", "IMAGE_URL", "new_url"])
@pytest.mark.parametrize("value", [{"url": "http://x"}, "http://x", {}, {"url": None}, {"url": [PIXEL]}, 7, [PIXEL]])
def test_it_is_refused_in_every_kind_of_part_and_whatever_the_part_says_it_is(kind, value):
    for declared in (kind, "text"):
        with pytest.raises(BadRequestError, match=kind):
            read({"type": declared, "text": "x", kind: value})


def test_a_part_without_its_medium_is_refused():
    for part in ({"type": "image_url"}, {"type": "image_url", "image_url": None}):
        with pytest.raises(BadRequestError, match="image_url"):
            read(part)


def test_it_is_refused_wherever_messages_are_taken():
    for endpoint in (openai.Endpoint.APPLY_TEMPLATE, openai.Endpoint.CHAT_INPUT_TOKENS):
        with pytest.raises(BadRequestError, match="fetches nothing"):
            read({"type": "image_url", "image_url": {"url": "http://x"}}, endpoint)


def test_attached_media_pass():
    for part in (
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
        {"type": "image_url", "image_url": "DATA:image/png;base64,AA"},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        {"type": "text", "text": "http://x", "image_url": None},
    ):
        read(part)
