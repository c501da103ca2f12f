"""A worker that follows a script: the control channel and an HTTP server, no model.

How it loads is in its settings; how it answers is in the request's last message, as words like
`tokens=5 gap_s=0.1 die_after=3`, or `tokens=5 seed=17 pad=200` for a stream unlike any other. It starts in a few
hundredths of a second and can do everything wrong.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # asyncio does without it, and a worker starts sooner.
    sys.modules["ssl"] = None  # type: ignore[assignment]

import asyncio
import ctypes
import json
import os
import signal
import socket
import subprocess
import threading
import time
from itertools import pairwise
from pathlib import Path

PROGRESS_EVERY_S = 0.25
DEFAULTS = {
    "tokens": 3,
    "gap_s": 0.0,
    "die_after": -1,
    "stop_after": -1,
    "status": 200,
    "half_after": -1,
    "seed": -1,
    "pad": 0,
    "html": 0,
    "prefill_s": 0.0,
    "shout_mib": 0,
}
HTML = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\n```html\n<b>bold</b>\n```\n"
)
"""What a model may say that wants to be more than text."""


def event(number: int, seed: int = -1, pad: int = 0, *, html: bool = False) -> bytes:
    """One event of a streamed answer. With a seed it says whose it is and which, followed by `pad` letters."""
    text = f"t{number} " if seed < 0 else f"{seed}:{number}:{'abcdefghij'[(seed + number) % 10] * pad} "
    text = HTML if html else text
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def whole_stream(tokens: int, seed: int, pad: int = 0) -> bytes:
    """All that a stream consists of."""
    return b"".join(event(number, seed, pad) for number in range(tokens)) + DONE


class Script:
    def __init__(self, control: socket.socket, settings: dict[str, object]) -> None:
        self.control = control
        self.settings = settings
        self.batches = 0
        self.next_progress_s = 0.0
        self.reports = bool(settings.get("reports", True))

    def say(self, **message: object) -> None:
        self.control.sendall(json.dumps(message).encode() + b"\n")

    def say_progress(self) -> None:
        """At most a few times a second, as a real worker does."""
        if self.reports and time.monotonic() >= self.next_progress_s:
            self.next_progress_s = time.monotonic() + PROGRESS_EVERY_S
            self.say(type="progress", batches=self.batches)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:] if line)
            }
            if "transfer-encoding" in headers:
                await reader.readuntil(b"0\r\n\r\n")
            sent = await reader.readexactly(int(headers.get("content-length", 0)))
            try:
                body = json.loads(sent)
            except ValueError:
                body = {}
            request_id = headers.get("x-request-id", "?")
            await self.answer_unless_left(request_id, body if isinstance(body, dict) else {}, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer_unless_left(
        self, request_id: str, body: dict[str, object], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Give up as soon as nobody is there to read. Asked for its `diary` it says when it took and lost whom."""
        messages = body.get("messages") or [{}]
        keeps_diary = "diary" in str(messages[-1].get("content")).split()  # type: ignore[index]
        if keeps_diary:
            print(f"took {request_id} {time.monotonic()}", flush=True)
        answering = asyncio.create_task(self.answer(request_id, body, writer))
        left = asyncio.create_task(reader.read())
        await asyncio.wait({answering, left}, return_when=asyncio.FIRST_COMPLETED)
        if keeps_diary and (not answering.done() or isinstance(answering.exception(), ConnectionError)):
            print(f"left {request_id} {time.monotonic()}", flush=True)
        answering.cancel()
        left.cancel()
        await asyncio.wait({answering, left})
        if not answering.cancelled() and (error := answering.exception()):
            raise error

    async def answer(self, request_id: str, body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        order = dict(DEFAULTS)
        messages = body.get("messages") or [{}]
        for word in str(messages[-1].get("content")).split():  # type: ignore[index]
            name, _, value = word.partition("=")
            if name in order and value:
                order[name] = float(value) if name.endswith("_s") else int(value)
        kind = "text/event-stream" if body.get("stream") else "application/json"
        lines = [f"HTTP/1.1 {order['status']} X", f"Content-Type: {kind}", "Connection: close", "", ""]
        head = "\r\n".join(lines).encode()
        sent = 0
        await asyncio.sleep(order["prefill_s"])
        shout(int(order["shout_mib"]))
        if body.get("stream"):
            writer.write(head)
        for number in range(int(order["tokens"])):
            if number == order["die_after"]:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == order["stop_after"]:
                os.kill(os.getpid(), signal.SIGSTOP)
            await asyncio.sleep(order["gap_s"])
            self.batches += 1
            self.say_progress()
            sent += 1
            if body.get("stream"):
                whole = event(number, int(order["seed"]), int(order["pad"]), html=bool(order["html"]))
                writer.write(whole[: len(whole) // 2] if number == order["half_after"] else whole)
                await writer.drain()
        if self.reports:
            self.say(type="usage", request_id=request_id, prompt_tokens=7, cached_tokens=0, completion_tokens=sent)
        usage = {"prompt_tokens": 7, "completion_tokens": sent}
        if body.get("stream"):
            if (body.get("stream_options") or {}).get("include_usage") and not self.reports:
                writer.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
            writer.write(DONE)
        else:
            text = "".join(f"t{number} " for number in range(sent))
            document = {
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
                "pid": os.getpid(),
                # What the answers of other endpoints must have.
                "data": [],
                "results": [],
                "input_tokens": 7,
                **({} if self.reports else {"usage": usage}),
            }
            whole = json.dumps(document).encode()
            writer.write(head[:-2] + f"Content-Length: {len(whole)}\r\n\r\n".encode() + whole)
        await writer.drain()


def shout(size_mib: int) -> None:
    """So much to stderr, in lines of 1 KiB."""
    for _ in range(size_mib):
        sys.stderr.buffer.write((b"e" * 1023 + b"\n") * 1024)
    sys.stderr.buffer.flush()


def die_with_the_parent() -> None:
    """Even while stopped: the kernel sends SIGKILL when the daemon's main thread is gone."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def die_with_the_daemon(control: socket.socket) -> None:
    while control.recv(1024):
        pass
    os._exit(1)


def load(script: Script) -> None:
    settings = script.settings
    for line in range(int(settings.get("chatter_lines", 0))):  # type: ignore[call-overload]
        print("chatter " + "x" * 1000 + f" {line}", flush=True)
    if settings.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if settings.get("grandchild"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"grandchild {child.pid}", flush=True)
    marker = str(settings.get("fail_while_exists") or "")
    failure = str(settings.get("failure") or "")
    if marker and not Path(marker).exists():
        failure = ""
    if failure == "hang":
        time.sleep(600)
    time.sleep(float(settings.get("load_s", 0.0)))  # type: ignore[arg-type]
    script.say(type="loading", progress=0.5)
    script.say(type="warming_up")
    room = int(settings.get("gpu_room_layers", -1))  # type: ignore[call-overload]
    if 0 <= room < settings["_offload"]["n_gpu_layers"]:  # type: ignore[index]
        print("alloc_tensor_range: failed to allocate CUDA0 buffer of size 1073741824", file=sys.stderr, flush=True)
        os._exit(1)
    if failure == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if failure == "exit":
        print("the scripted loader gives up: out of imaginary memory", file=sys.stderr, flush=True)
        os._exit(3)
    if failure == "invalid":
        script.say(type="failed", kind="invalid_model", message="the scripted file is no model")
        os._exit(1)
    if failure == "segv" and not settings.get("_portable"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if failure == "nonsense":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        script.control.sendall(b"this is not JSON\n")
        signal.pause()


async def serve(script: Script, path: str) -> None:
    stop = asyncio.Event()
    if not script.settings.get("ignore_sigterm"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    port = int(script.settings.get("port", 0))  # type: ignore[call-overload]
    if port:
        server = await asyncio.start_server(script.handle, "127.0.0.1", port)
    else:
        server = await asyncio.start_unix_server(script.handle, path, backlog=2048)
    script.say(type="ready", n_ctx=4096, slots=1)
    await stop.wait()
    server.close()


def main() -> None:
    if sys.argv[1] == "--spare":
        die_with_the_parent()
        spare = socket.socket(fileno=int(sys.argv[2]))
        threading.Thread(target=die_with_the_daemon, args=(spare,), daemon=True).start()
        line = sys.stdin.readline()
        if not line:
            return
        sys.argv[1:] = json.loads(line)[3:]
        print("was a spare", flush=True)
    flags = sys.argv[1:]
    portable = "--portable" in flags
    values = dict(pairwise(flags))
    die_with_the_parent()
    control = socket.socket(fileno=int(values["--control-fd"]))
    settings = json.loads(values["--settings"])
    settings["_portable"] = portable
    settings["_offload"] = json.loads(values["--offload"])
    threading.Thread(target=die_with_the_daemon, args=(control,), daemon=True).start()
    script = Script(control, settings)
    load(script)
    asyncio.run(serve(script, values["--socket"]))


if __name__ == "__main__":
    main()
