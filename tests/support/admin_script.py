"""An admin API that answers from a script, on a real socket, for tests of what talks to a daemon."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Script:
    """Replies by `METHOD /raw/path`, and the requests that came. `str` and `bytes` go out as they are."""

    replies: dict[str, tuple[int, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    """What each request's Authorization said."""
    url: str = ""

    def answer(self, request: str, document: Any, status: int = 200) -> None:
        self.replies[request] = (status, document)

    def refuse(self, request: str, status: int, message: str) -> None:
        self.answer(request, {"error": {"message": message, "type": "t", "param": None, "code": None}}, status)


@contextmanager
def scripted_admin(socket_path: Path | None = None) -> Iterator[Script]:
    """Serve a script on loopback, or on a Unix socket, until the scope ends."""
    script = Script()
    server: socketserver.BaseServer
    if socket_path is None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(script))
        script.url = f"http://127.0.0.1:{server.server_port}"
    else:
        server = _UnixServer(str(socket_path), _handler(script))
        script.url = f"unix:{socket_path}"
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    def get_request(self) -> tuple[Any, Any]:
        connection, _ = super().get_request()
        return connection, ("unix", 0)


def _handler(script: Script) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            script.bodies.append(json.loads(self.rfile.read(length)) if length else None)
            self._reply()

        def do_PUT(self) -> None:
            self.do_POST()

        def _reply(self) -> None:
            request = f"{self.command} {self.path}"
            script.requests.append(request)
            script.keys.append(self.headers.get("Authorization"))
            status, document = script.replies.get(request, (404, {"error": {"message": f"not scripted: {request}"}}))
            body = _encode(document)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            pass

    return Handler


def _encode(document: Any) -> bytes:
    if isinstance(document, bytes):
        return document
    return document.encode() if isinstance(document, str) else json.dumps(document).encode()


def status_document(**changes: Any) -> dict[str, Any]:
    """A whole status of two models, one loaded, in the shape that clients see."""
    worker = {
        "pid": 4711,
        "state": "ready",
        "running": 1,
        "reserved_bytes": {"RAM": 325058560},
        "placement": "on the CPU, RAM 310 MiB",
    }
    return {
        "devices": [device_document("RAM", reserved_bytes=310 << 20, free_bytes=15 << 30)],
        "models": [
            model_document(
                "qwen3-8b", state="ready", running=1, loads=3, load_s=1.9, last_used_s=4.2, workers=[worker]
            ),
            model_document("org/tiny", last_eviction={"ago_s": 71.0, "why": "to make room for qwen3-8b"}),
        ],
        "config": {"path": "/etc/swapd/config.yaml", "loaded_ago_s": 12.0, "error": None},
        "requests": {"accepted": 9, "waiting": 0, "running": 1, "finished": 8, "failed": 0, "cancelled": 0},
        "version": "0.1.0",
        **changes,
    }


def device_document(name: str, **changes: Any) -> dict[str, Any]:
    """One device's part of a status."""
    sizes = {"total_bytes": 24 << 30, "budget_bytes": 20 << 30, "reserved_bytes": 0, "free_bytes": 24 << 30}
    return {"name": name, **sizes, **changes}


def model_document(model_id: str, **changes: Any) -> dict[str, Any]:
    """One model's part of a status; unloaded and never used unless `changes` says otherwise."""
    return {
        "id": model_id,
        "state": "unloaded",
        "backend": "llama_cpp",
        "running": 0,
        "waiting": 0,
        "loads": 0,
        "load_s": None,
        "last_used_s": None,
        "footprint": {"estimated_bytes": {"RAM": 325058560}, "measured_bytes": {}},
        "last_eviction": None,
        "error": None,
        "workers": [],
        **changes,
    }
