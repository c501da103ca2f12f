"""A program that knows nothing of swapd: an HTTP server such as people run, with the faults such programs have.

It starts in a few hundredths of a second. Flags say how it loads and ends; each request is answered in OpenAI's shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

SLEEP = "import time; time.sleep(600)"


def head(status: int, kind: str, length: int | None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", "Connection: close"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def say(connection: socket.socket, status: int, document: object) -> None:
    body = json.dumps(document).encode()
    connection.sendall(head(status, "application/json", len(body)) + body)


class Server:
    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags = flags
        self.loaded = threading.Event()
        self.held = bytearray()
        self.sleeping = False
        self.weights = True

    def serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self.handle, args=(connection,), daemon=True).start()

    def handle(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            method, path, _ = reader.readline().decode().split()
            headers = {}
            while (line := reader.readline().decode().strip()) != "":
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = reader.read(int(headers.get("content-length", "0")))
            if self.flags.log_requests:
                print(f'127.0.0.1 "{method} {path} HTTP/1.1"', flush=True)
            if method == "GET":
                if self.flags.hang_health:
                    time.sleep(600)
                say(connection, 200 if self.loaded.is_set() else 503, {"status": "ok"})
                return
            if self.flags.enable_sleep_mode and path.partition("?")[0] in ("/sleep", "/wake_up"):
                self.weights = self.weights and "level=2" not in path
                self.change(connection, path.partition("?")[0])
                return
            if self.flags.enable_sleep_mode and path == "/collective_rpc":
                self.weights = not self.sleeping and json.loads(body) == {"method": "reload_weights"}
                say(connection, 200 if self.weights else 400, {})
                return
            if self.sleeping or not self.weights:
                say(connection, 500, {"error": {"message": "it sleeps, or has no weights"}})
                return
            self.answer(connection, path, body)

    def change(self, connection: socket.socket, path: str) -> None:
        """Fall asleep or wake, as vLLM does with --enable-sleep-mode, or as the flags say."""
        how = self.flags.sleeps if path == "/sleep" else self.flags.wakes
        if how == "die":
            os._exit(3)
        if how == "hang":
            time.sleep(600)
        if how == "refuse":
            say(connection, 400, {"error": {"message": "not now"}})
            return
        self.sleeping = path == "/sleep"
        self.held = bytearray() if self.sleeping else self.load()
        say(connection, 200, {})

    def load(self) -> bytearray:
        return bytearray(os.urandom(1) * (self.flags.memory_mib * 1024 * 1024))

    def answer(self, connection: socket.socket, path: str, body: bytes) -> None:
        asked = json.loads(body) if body.startswith(b"{") else {}
        words = str(asked["messages"][-1]["content"]).split() if "messages" in asked else []
        if "die" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        for word in words:
            if word.startswith("pause="):
                time.sleep(float(word.partition("=")[2]))
        if asked.get("stream"):
            connection.sendall(head(200, "text/event-stream", None))
            for number in range(3):
                chunk = {"choices": [{"index": 0, "delta": {"content": f"t{number} "}}]}
                connection.sendall(f"data: {json.dumps(chunk)}\n\n".encode())
            connection.sendall(b"data: [DONE]\n\n")
            return
        message = {"role": "assistant", "content": "t0 t1 t2 "}
        document = {"path": path, "bytes": len(body), "pid": os.getpid(), "model": asked.get("model")}
        say(connection, 200, document | {"choices": [{"index": 0, "message": message}]})


def listen(flags: argparse.Namespace) -> socket.socket:
    if flags.uds:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(flags.uds)
    else:
        listener = socket.socket()
        try:
            listener.bind((flags.host, flags.port))
        except OSError as error:
            print(f"cannot listen on {flags.host}:{flags.port}: {error}", flush=True)
            sys.exit(1)
    listener.listen(64)
    return listener


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", "--listen-port", type=int, default=0)
    parser.add_argument("--uds", default="")
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--chatter", action="store_true", help="print while it loads")
    parser.add_argument("--listen-late", action="store_true", help="bind only when it is loaded")
    parser.add_argument("--fail", type=int, default=0, help="exit with this status while it loads; -N: by signal N")
    parser.add_argument("--hang-health", action="store_true")
    parser.add_argument("--hang-load", action="store_true")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--children", action="store_true", help="one in the group, one in a session of its own")
    parser.add_argument("--log-requests", action="store_true")
    parser.add_argument("--stop-file", default="", help="end when this file appears")
    parser.add_argument("--memory-mib", type=int, default=0, help="take so much, and touch it")
    parser.add_argument("--enable-sleep-mode", action="store_true", help="POST /sleep and /wake_up")
    parser.add_argument("--sleeps", default="", help="how else: refuse, hang, die")
    parser.add_argument("--wakes", default="", help="the same")
    flags, _ = parser.parse_known_args()
    return flags


def main() -> None:
    flags = parse()
    if flags.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if flags.children:
        for apart in (False, True):
            child = subprocess.Popen([sys.executable, "-S", "-c", SLEEP], start_new_session=apart)
            print(f"child {child.pid}", flush=True)
    server = Server(flags)
    server.held = server.load()
    if not flags.listen_late:
        threading.Thread(target=server.serve, args=(listen(flags),), daemon=True).start()
    until_s = time.monotonic() + flags.load_s
    while time.monotonic() < until_s or flags.hang_load:
        if flags.chatter:
            print(f"loading {100 - 100 * (until_s - time.monotonic()) / flags.load_s:.0f}%", flush=True)
        time.sleep(0.05)
    if flags.fail:
        print("the imaginary engine gives up: no such tensor", flush=True)
        if flags.fail < 0:
            os.kill(os.getpid(), -flags.fail)
        sys.exit(flags.fail)
    if flags.listen_late:
        threading.Thread(target=server.serve, args=(listen(flags),), daemon=True).start()
    server.loaded.set()
    print("loaded", len(server.held), flush=True)
    while not (flags.stop_file and os.path.exists(flags.stop_file)):  # noqa: PTH110 - nothing else here needs pathlib
        time.sleep(0.02)


if __name__ == "__main__":
    main()
