"""A program that knows nothing of swapd and answers by rule in OpenAI's dialect: chats, tools, schemas, embeddings.

It stands for a foreign engine where official clients are tried against one, as a worker of the backend `command`.
Words are its tokens. What it says depends on the request alone.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import ThreadingUnixStreamServer
from typing import Any

SAID = "The capital of France is Paris."
DIMENSIONS = 8
N_CTX = 2048


class RefusedError(Exception):
    """An error in OpenAI's envelope, a 400."""

    def __init__(self, message: str, **more: object) -> None:
        super().__init__(message)
        self.envelope = {"error": {"message": message, "type": "invalid_request_error", "code": 400, **more}}


def instance(schema: dict[str, Any]) -> Any:
    """The plainest value that a schema takes."""
    if "$ref" in schema or "$defs" in schema:
        defs = schema.get("$defs", {})
        schema = json.loads(json.dumps(schema), object_hook=lambda one: _resolved(one, defs))
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return instance(schema["anyOf"][0])
    match schema.get("type", "object"):
        case "object":
            properties = schema.get("properties", {})
            return {name: instance(properties[name]) for name in schema.get("required", properties)}
        case "array":
            return [instance(schema.get("items", {"type": "string"}))] * schema.get("minItems", 0)
        case "boolean":
            return True
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "string":
            return "text"
        case _:
            return None


def _resolved(one: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = defs[one["$ref"].rpartition("/")[2]] if "$ref" in one else one
    return found


def words(request: dict[str, Any]) -> int:
    """Tokens of the prompt."""
    texts = [request.get("prompt") or ""] + [json.dumps(one.get("content")) for one in request.get("messages", ())]
    return sum(len(str(text).split()) for text in texts)


def wanted_call(request: dict[str, Any]) -> dict[str, Any] | None:
    """The tool that is called: if one must be, or may be and none has answered yet."""
    choice, tools = request.get("tool_choice", "auto"), request.get("tools") or []
    if not tools or choice == "none" or (choice == "auto" and request["messages"][-1]["role"] == "tool"):
        return None
    name = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["function"]["name"]
    tool = next(one["function"] for one in tools if one["function"]["name"] == name)
    return {"name": name, "arguments": json.dumps(instance(tool.get("parameters") or {}))}


def text_of(request: dict[str, Any]) -> tuple[str, str]:
    """What is said, and why it ends."""
    form = request.get("response_format") or {}
    if form.get("type") == "json_schema":
        return json.dumps(instance(form["json_schema"]["schema"])), "stop"
    if form.get("type") == "json_object":
        return "{}", "stop"
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or 100
    said = SAID.split()
    for stop in request.get("stop") or ():
        if stop in SAID:
            return SAID.partition(stop)[0], "stop"
    return " ".join(said[:limit]), "length" if limit < len(said) else "stop"


def pieces(text: str) -> Iterator[str]:
    """A text, a few characters at a time."""
    for start in range(0, len(text), 5):
        yield text[start : start + 5]


def usage(request: dict[str, Any], said: str) -> dict[str, int]:
    read, written = words(request), max(1, len(said.split()))
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def chat(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A chat as chunks; the whole answer is put together from the same."""
    call = wanted_call(request)
    said, reason = text_of(request) if call is None else (call["arguments"], "tool_calls")
    yield {"role": "assistant", "content": None if call else ""}
    if call:
        yield {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": call["name"], "arguments": ""},
                }
            ]
        }
    for piece in pieces(said):
        yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} if call else {"content": piece}
    yield {"finish_reason": reason, "usage": usage(request, said)}


def whole_message(request: dict[str, Any]) -> dict[str, Any]:
    call = wanted_call(request)
    said, reason = text_of(request) if call is None else (call["arguments"], "tool_calls")
    message: dict[str, Any] = {"role": "assistant", "content": None if call else said}
    if call:
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": call}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": usage(request, said),
    }


def embeddings(request: dict[str, Any]) -> dict[str, Any]:
    asked = request["input"] if isinstance(request["input"], list) else [request["input"]]
    data = []
    for index, text in enumerate(asked):
        digest = hashlib.sha256(str(text).encode()).digest()
        vector: Any = [byte / 255 for byte in digest[:DIMENSIONS]]
        if request.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    read = sum(len(str(text).split()) for text in asked)
    return {
        "object": "list",
        "model": request["model"],
        "data": data,
        "usage": {"prompt_tokens": read, "total_tokens": read},
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "client"

    def do_GET(self) -> None:
        self._whole(200, {"status": "ok"})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self._answer(request)
        except RefusedError as refused:
            self._whole(400, refused.envelope)

    def _answer(self, request: dict[str, Any]) -> None:
        if self.path == "/v1/embeddings":
            self._whole(200, embeddings(request))
            return
        read = words(request)
        if read > N_CTX:
            raise RefusedError(f"{read} tokens are more than my {N_CTX}", n_prompt_tokens=read, n_ctx=N_CTX)
        if self.path == "/v1/chat/completions/input_tokens":
            self._whole(200, {"object": "response.input_tokens", "input_tokens": read})
        elif self.path != "/v1/chat/completions":
            self._whole(404, {"error": {"message": f"no route {self.path}", "type": "not_found", "code": 404}})
        elif request.get("stream"):
            self._stream(request)
        else:
            self._whole(200, whole_message(request))

    def _stream(self, request: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        shared = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": request["model"]}
        for delta in chat(request):
            reason, counts = delta.pop("finish_reason", None), delta.pop("usage", None)
            self._event({**shared, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
        if (request.get("stream_options") or {}).get("include_usage"):
            self._event({**shared, "choices": [], "usage": counts})
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, document: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(document).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _whole(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser()
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--port", type=int)
    place.add_argument("--uds")
    given = parser.parse_args()
    if given.uds:
        server: ThreadingUnixStreamServer | ThreadingHTTPServer = ThreadingUnixStreamServer(given.uds, Handler)
    else:
        server = ThreadingHTTPServer(("127.0.0.1", given.port), Handler)
    print("serving as", os.getpid(), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
