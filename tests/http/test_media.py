"""Sounds and images: forms found out and streamed, JSON and binary answers, to a scripted worker on a real socket."""

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import openai
from aiohttp import web
from support.front_door import House, ScriptedDoor, house, model, params

MIB = 1024 * 1024
SOUND = b"RIFF" + bytes(range(256)) * 8192


async def answer(request: web.Request) -> web.StreamResponse:
    """What each endpoint was sent, or a sound."""
    if request.path == "/v1/audio/speech":
        response = web.StreamResponse(headers={"Content-Type": "audio/mpeg", "X-Body": (await request.read()).decode()})
        await response.prepare(request)
        for _ in range(8):
            await response.write(SOUND)
        await response.write_eof()
        return response
    if request.content_type == "application/json":
        return web.json_response({"created": 1, "data": [{"b64_json": "AA=="}], "asked": await request.json()})
    told: dict[str, str] = {"length": str(request.content_length), "path": request.path}
    form = await request.post()
    for name, value in form.items():
        if isinstance(value, web.FileField):
            told[name] = hashlib.sha256(value.file.read()).hexdigest()
        else:
            told[name] = str(value)
    return web.json_response({"text": json.dumps(told)})


@asynccontextmanager
async def studio(path: Path, **door: object) -> AsyncIterator[House]:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        async with house(ScriptedDoor([path], **door), max_body_bytes=32 * MIB) as home:  # type: ignore[arg-type]
            yield home
    finally:
        await runner.cleanup()


def form(*, model_first: bool, name: str = "small") -> aiohttp.FormData:
    made = aiohttp.FormData()
    if model_first:
        made.add_field("model", name)
    made.add_field("file", io.BytesIO(SOUND), filename="a.wav", content_type="audio/wav")
    if not model_first:
        made.add_field("model", name)
    made.add_field("language", "en")
    return made


async def test_a_form_reaches_the_worker_whole_with_the_models_own_id(tmp_path: Path) -> None:
    async with studio(tmp_path / "w") as home:
        for path, needs in (
            ("/v1/audio/transcriptions", "transcriptions"),
            ("/v1/audio/translations", "transcriptions"),
            ("/v1/images/edits", "images"),
            ("/v1/images/variations", "images"),
        ):
            for model_first in (True, False):
                async with home.http.post(path, data=form(model_first=model_first)) as response:
                    told = json.loads((await response.json())["text"])
                assert told["file"] == hashlib.sha256(SOUND).hexdigest()
                assert (told["model"], told["language"], told["path"]) == ("org/tiny", "en", path)
                assert home.door.tickets[-1].needs == needs


async def test_openais_client_transcribes_speaks_and_draws(tmp_path: Path) -> None:
    async with studio(
        tmp_path / "w", known=[model(aliases=("small",), params=params(set={"seed": 1}, strip=("x",)))]
    ) as home:
        async with openai.AsyncOpenAI(base_url=f"{home.url}/v1", api_key="secret", max_retries=0) as client:
            text = (await client.audio.transcriptions.create(model="small", file=("a.wav", SOUND))).text
            assert json.loads(text)["file"] == hashlib.sha256(SOUND).hexdigest()
            assert json.loads(text)["length"] != "None"
            async with client.audio.speech.with_streaming_response.create(
                model="small", voice="alloy", input="hello", extra_body={"x": 1}
            ) as spoken:
                asked = json.loads(spoken.headers["x-body"])
                assert spoken.headers["content-type"] == "audio/mpeg"
                assert await spoken.read() == SOUND * 8
            assert asked == {"model": "org/tiny", "voice": "alloy", "input": "hello", "seed": 1}
            drawn = await client.images.generate(model="small", prompt="a fox")
            assert drawn.data is not None
            assert drawn.data[0].b64_json == "AA=="


async def test_other_interfaces_of_image_and_sound_servers_have_their_routes(tmp_path: Path) -> None:
    async with studio(tmp_path / "w") as home:
        for path, needs in (
            ("/sdapi/v1/txt2img", "images"),
            ("/sdapi/v1/img2img", "images"),
            ("/audioapi/v1/tasks/run", "speech"),
            ("/v1/audio/voices", "speech"),
        ):
            async with home.http.post(path, json={"model": "small", "prompt": "a fox"}) as response:
                assert (await response.json())["asked"] == {"model": "org/tiny", "prompt": "a fox"}
            assert home.door.tickets[-1].needs == needs
        for path in ("/v1/audio/voices", "/sdapi/v1/loras"):
            async with home.http.get(path, params={"model": "small"}) as response:
                assert json.loads((await response.json())["text"])["path"] == path
            assert home.door.tickets[-1].may_load is False
            async with home.http.get(path) as response:
                assert response.status == 400


async def test_a_form_without_a_model_or_of_an_unknown_one_asks_nobody(tmp_path: Path) -> None:
    async with studio(tmp_path / "w") as home:
        empty = aiohttp.FormData({"language": "en"})
        empty.add_field("file", b"x", filename="a")
        for data, status in ((empty, 400), (form(model_first=True, name="nobody"), 404), (b"x", 400)):
            async with home.http.post("/v1/audio/transcriptions", data=data) as response:
                assert response.status == status
        evil = {"Origin": "https://evil.example"}
        async with home.http.post("/v1/images/edits", data=form(model_first=True), headers=evil) as response:
            assert response.status == 403
        async with home.http.post("/v1/images/generations", json={"prompt": "x"}) as response:
            assert response.status == 400
        assert home.door.tickets == []


async def test_a_form_with_its_model_first_asks_for_a_place_before_the_file_has_come(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nsmall\r\n--xyz\r\n'
        yield b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        async with asyncio.timeout(5):
            await home.door.asked.wait()
        asked.set()
        yield b"sound\r\n--xyz--\r\n"

    async with studio(tmp_path / "w") as home:
        headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
        async with home.http.post("/v1/audio/transcriptions", data=body(), headers=headers) as response:
            told = json.loads((await response.json())["text"])
    assert asked.is_set()
    assert told["file"] == hashlib.sha256(b"sound").hexdigest()


async def test_a_file_before_its_model_is_held_within_the_bound_of_all_bodies(tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield b"x" * MIB

    async with studio(tmp_path / "w") as home:
        headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
        async with home.http.post("/v1/audio/transcriptions", data=body(), headers=headers) as response:
            assert response.status == 413
        assert home.door.tickets == []
