"""Chats with media through the worker's HTTP side: refusals, turns, and a client that leaves while it waits."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mmproj_files import gif, png, write_llava
from support.seeing import Seeing, seeing, seeing_settings
from worker_doubles import hello, serving

from backends.llama_cpp.engine.media import media_tokens
from backends.llama_cpp.engine.types import MediaSpan
from backends.llama_cpp.media.chats import Part
from backends.llama_cpp.media.parts import Abilities, Medium
from backends.llama_cpp.media.reader import Prompt, StoppedError

CHAT = "/v1/chat/completions"


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def looking(*urls: str, **fields: Any) -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": one, "detail": "auto"}} for one in urls]
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look: "}, *images]}], **fields}


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    with seeing(seeing_settings(tmp_path_factory.mktemp("eyes"), write_llava)) as found:
        yield found


class SlowReader:
    """Reads a prompt once it is told to, and gives up when nobody waits any more."""

    able = Abilities(sees=True)

    def __init__(self) -> None:
        self.steps = 0
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.stopped = threading.Event()
        self.threads: set[int] = set()

    def count(self, parts: Sequence[Part], /, *, add_special: bool) -> int:
        return 7

    def read(self, parts: Sequence[Part], /, *, add_special: bool, stop: Callable[[], bool]) -> Prompt:
        (medium,) = (part for part in parts if isinstance(part, Medium))
        self.threads.add(threading.get_ident())
        self.begun.release()
        while not self.go.acquire(timeout=0.005):
            if stop():
                self.stopped.set()
                raise StoppedError
        self.steps += 1
        span = MediaSpan(1, np.zeros((2, 3), np.float32), np.arange(1, 3, dtype=np.int32)[np.newaxis], 2)
        return Prompt((1, *media_tokens(medium.digest, 2), 5), (span,))


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "w.sock"


async def test_an_image_reaches_the_engine_as_a_run_of_the_prompt(socket_path: Path, eyes: Seeing) -> None:
    async with serving(socket_path, media=eyes.reader) as worker:
        worker.engine.script = hello
        async with worker.post(CHAT, looking(url(png()), max_tokens=2)) as response:
            answer = await response.json()
        generate = await worker.engine.submitted.get()
    (span,) = generate.media
    assert all(token < 0 for token in generate.prompt[span.start : span.end])
    assert span.n_tokens == 64
    assert all(token >= 0 for token in generate.text)
    assert answer["choices"][0]["message"]["content"] == "héllo"
    assert answer["usage"]["prompt_tokens"] == len(generate.prompt)


IMAGE = "messages[0].content[1].image_url"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("https://example.org/cat.png", "must be a data: URL"),
        (url(b"no image"), "is no image that is known"),
        (url(gif(10_000, 10_000)), "100.0 megapixels"),
        (url(png()[:-30]), "is a PNG that is cut off"),
        (url(gif(8, 8)), "is damaged: it cannot be decoded"),
    ],
)
async def test_a_bad_image_is_a_400_that_names_the_field(
    socket_path: Path, eyes: Seeing, address: str, says: str
) -> None:
    async with serving(socket_path, media=eyes.reader) as worker:
        for path in (CHAT, f"{CHAT}/input_tokens"):
            if "decoded" in says and path != CHAT:
                continue  # counting looks at headers only
            status, error = await worker.error(path, looking(address))
            assert (status, error["param"]) == (400, f"{IMAGE}.url")
            assert says in error["message"]
        assert worker.engine.submitted.empty()


@pytest.mark.parametrize("path", [CHAT, f"{CHAT}/input_tokens", "/apply-template"])
async def test_a_model_without_a_projector_refuses_an_image_by_field(socket_path: Path, path: str) -> None:
    async with serving(socket_path) as worker:
        status, error = await worker.error(path, looking(url(png())))
    assert (status, error["param"]) == (400, IMAGE)
    assert "reads text only: it has no mmproj" in error["message"]


async def test_a_template_that_refuses_its_messages_is_a_400_with_media_too(socket_path: Path, eyes: Seeing) -> None:
    template = "{{ messages[0].content }}{{ raise_exception('not like this') if messages | length == 1 }}"
    async with serving(socket_path, template=template, media=eyes.reader) as worker:
        status, error = await worker.error(CHAT, looking(url(png())))
    assert (status, error["param"]) == (400, "messages")
    assert "not like this" in error["message"]


async def test_tokens_are_counted_and_templates_shown_with_media(socket_path: Path, eyes: Seeing) -> None:
    encoded = eyes.reader.encoded
    async with serving(socket_path, media=eyes.reader) as worker:
        async with worker.post("/apply-template", looking(url(png(seed=90)))) as response:
            shown = (await response.json())["prompt"]
        async with worker.post(f"{CHAT}/input_tokens", looking(url(png(seed=90)))) as response:
            counted = (await response.json())["input_tokens"]
    assert "Look: <__media__>" in shown
    assert eyes.reader.encoded == encoded
    before, after = shown.split("<__media__>")
    texts = (eyes.model.tokenize(text, add_special=False, parse_special=True) for text in (before, after))
    assert counted == 64 + sum(map(len, texts))


async def test_prompts_with_media_are_read_one_after_the_other_each_in_a_thread_of_its_own(socket_path: Path) -> None:
    reader = SlowReader()
    async with serving(socket_path, media=reader) as worker:
        worker.engine.script = hello
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(worker.session.post(f"http://w{CHAT}", json=looking(url(png())))) for _ in "ab"]
            assert await asyncio.to_thread(reader.begun.acquire, timeout=20)
            assert worker.switchboard.busy.is_set()
            assert not reader.begun.acquire(blocking=False)
            reader.go.release()
            assert await asyncio.to_thread(reader.begun.acquire, timeout=20)
            reader.go.release()
        assert [(await task).status for task in asked] == [200, 200]
        assert not worker.switchboard.busy.is_set()
    assert threading.get_ident() not in reader.threads


async def test_a_client_that_leaves_while_its_image_is_read_makes_way_for_the_next(socket_path: Path) -> None:
    reader = SlowReader()
    async with serving(socket_path, media=reader) as worker:
        worker.engine.script = hello
        gone = asyncio.create_task(worker.session.post(f"http://w{CHAT}", json=looking(url(png()))))
        assert await asyncio.to_thread(reader.begun.acquire, timeout=20)
        gone.cancel()
        assert await asyncio.to_thread(reader.stopped.wait, 20)
        reader.go.release()
        async with worker.post(CHAT, looking(url(png()))) as response:
            assert response.status == 200
        assert not worker.switchboard.busy.is_set()
        assert worker.engine.submitted.qsize() == 1
        assert len(worker.usages) == 2


async def test_a_bad_field_beside_an_image_is_refused_before_the_image_is_read(socket_path: Path) -> None:
    reader = SlowReader()
    async with serving(socket_path, media=reader) as worker:
        status, error = await worker.error(CHAT, looking(url(png()), n=99))
    assert (status, error["param"]) == (400, "n")
    assert not reader.begun.acquire(blocking=False)
