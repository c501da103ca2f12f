"""Requests that schemathesis draws from the published document, each sent as drawn and many times damaged.

Drawing is slow, sending is fast: damage to bodies and to the bytes of a request makes many requests of one. What a
daemon answers is held against the document.
"""

from __future__ import annotations

import copy
import http.client
import itertools
import json
import random
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from support.openapi_document import followed, validator

from swapd.api import strict_json
from swapd.errors import BadRequestError, SwapdError

SENDERS = 16
TIMEOUT_S, BROKEN_OFF_S = 30.0, 0.25
_JSON = "application/json"
_BITS = (
    b"\0", b"\r\n", b"\n", b"\r\n\r\n", b" ", b"\t", b"\xff", b"\xc3", b'"', b"{", b"}", b"[", b"]", b"\\", b":", b",",
    b"null", b"-1", b"1e999", b"NaN", b"9" * 400, b"[" * 100,
    b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n", b"X-Swapd-Priority: 1e3\r\n", b"Host: evil\r\n", b"Upgrade: websocket\r\n",
    b"%00", b"../", "é🦙".encode(),
)  # fmt: skip

_VALUES = (
    None, True, False, 0, 1, -1, 2, 1.5, 2**31, 2**64, 1e308, "", "a", "tokens=2 gap_s=0.01",
    "status=500", "status=429", "die_after=1", "half_after=1 tokens=3", "x" * 3000, "\ud800",
    [], {}, [[]], [None], ["a"], [1, 2], {"a": {"b": [1]}},
)  # fmt: skip
"""Among them orders to a scripted worker."""


@dataclass(frozen=True)
class Message:
    """One request as bytes. `framed` ones have a head and a length that are sound."""

    head: bytes
    body: bytes
    framed: bool
    endless: bool

    @property
    def whole(self) -> bytes:
        return self.head + self.body


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    body: bytes
    served: bool = False
    """Whether a worker had the request, so that the answer may be its own."""


@dataclass
class Tally:
    """What was sent and what came back."""

    drawn: int = 0
    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    """Requests whose length or end was damaged, so that the daemon waits for more or says nothing."""
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.drawn += other.drawn
        self.sent += other.sent
        self.answers += other.answers
        self.unanswered += other.unanswered
        self.wrong += other.wrong

    def __str__(self) -> str:
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.answers.items()))
        return f"{self.sent} requests, {self.drawn} of them as drawn; {self.unanswered} unanswered; {codes}"


def knowing(document: Mapping[str, Any], models: list[str], devices: list[str]) -> dict[str, Any]:
    """The document with names that a daemon knows beside all others, so that requests get further than 404."""
    made: dict[str, Any] = copy.deepcopy(dict(document))
    known = {"id": models, "name": devices, "target": [f"{model}/v1/anything" for model in models]}
    for item in made["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                if parameter.get("in") == "path" and parameter["name"] in known:
                    parameter["schema"] = _one_of(known[parameter["name"]], parameter["schema"])
    for schema in made["components"]["schemas"].values():
        model = schema.get("properties", {}).get("model", {})
        if model.get("type") == "string":
            schema["properties"]["model"] = _one_of(models, model)
    return made


def _one_of(names: list[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"enum": names}, {"enum": names[:1]}, dict(schema)]}


class Fuzzer:
    """Sends what it draws to a daemon, from a document that may know its models."""

    def __init__(self, url: str, document: Mapping[str, Any], *, first_seed: int, damaged: int) -> None:
        self._url = url
        self._host, _, port = url.removeprefix("http://").rpartition(":")
        self._port = int(port)
        self._seed = first_seed
        self._damaged = damaged
        self._schema = schemathesis.openapi.from_dict(dict(document))

    def operations(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Method, path and what is said of each."""
        for result in self._schema.get_all_operations():
            operation = result.ok()
            yield operation.method.upper(), operation.path, operation.definition.raw

    def run(self, method: str, path: str, drawn: int) -> Tally:
        """Draw so many requests of one operation, half of them against its schema, and send each and its damage.

        A single one is of either kind.
        """
        operation = self._schema[path][method]
        judge = _Judge(method, path, operation.definition.raw)
        tally = Tally()
        with ThreadPoolExecutor(SENDERS) as pool:
            modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
            random.Random(f"{self._seed} {judge.label} modes").shuffle(modes)
            for mode, count in zip(modes, (drawn - drawn // 2, drawn // 2), strict=True):
                if count > 0:
                    self._draw(operation.as_strategy(generation_mode=mode), count, pool, judge, tally)
        return tally

    def run_examples(self, method: str, path: str, names: Sequence[str]) -> Tally:
        """Send an operation's examples for each of the models, or its path for each, and the damage of that."""
        raw = self._schema[path][method].definition.raw
        content = raw.get("requestBody", {}).get("content", {}).get(_JSON, {})
        judge, tally = _Judge(method, path, raw), Tally()
        rng = random.Random(f"{self._seed} {judge.label} examples")
        examples = [example["value"] for example in content.get("examples", {}).values()]
        with ThreadPoolExecutor(SENDERS) as pool:
            for example in examples or (None,):
                # The first is one that can answer.
                for name in (names[0], rng.choice(names[1:])) if rng.random() < 0.5 else names[:1]:
                    body = b"" if example is None else json.dumps(_naming(example, name)).encode()
                    target = re.sub(r"\{\w+\}", quote(name, safe=""), path)
                    lines = [f"{method} {target} HTTP/1.1", f"Host: {self._host}:{self._port}"]
                    lines += [f"Content-Type: {_JSON}", f"Content-Length: {len(body)}"] if body else []
                    head = "\r\n".join((*lines, "", "")).encode()
                    self._send_all(Message(head, body, framed=True, endless=judge.endless), rng, pool, judge, tally)
        return tally

    def _send_all(
        self, message: Message, rng: random.Random, pool: ThreadPoolExecutor, judge: _Judge, tally: Tally
    ) -> None:
        # Where there is no body, less can be said wrongly.
        count = self._damaged if message.body else self._damaged // 4
        messages = [message, *(damage(message, rng) for _ in range(count))]
        tally.drawn += 1
        for sent, answer in zip(messages, pool.map(self._send, messages), strict=True):
            tally.sent += 1
            if answer is None:
                tally.unanswered += 1
                continue
            tally.answers[str(answer.status)] += 1
            if (why := judge.fault(sent, answer)) is not None:
                tally.wrong.append(f"seed {self._seed}, {judge.label}: {why}\n{sent.whole[:2000]!r}\n{answer}")

    def _draw(self, strategy: Any, count: int, pool: ThreadPoolExecutor, judge: _Judge, tally: Tally) -> None:
        rng, number = random.Random(f"{self._seed} {judge.label}"), itertools.count()

        @seed(self._seed)
        @settings(
            max_examples=count + 1,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def each(case: Any) -> None:
            # The first is the simplest that there can be, each time.
            if next(number) == 0:
                return
            message = self._message(case, judge.endless)
            if message is not None:
                self._send_all(message, rng, pool, judge, tally)

        try:
            each()
        except Exception as error:
            # Of some operations there is nothing that a client could say wrongly.
            if type(error).__name__ not in ("Unsatisfiable", "SkipTest", "Skip"):
                raise

    def _message(self, case: Any, endless: bool) -> Message | None:
        """A drawn request as a client would send it; None for one that no client can write down."""
        try:
            prepared = requests.Request(**case.as_transport_kwargs(base_url=self._url)).prepare()
        except (requests.exceptions.InvalidHeader, UnicodeError):
            return None
        body = prepared.body or b""
        body = body if isinstance(body, bytes) else body.encode()
        headers = {name: value for name, value in prepared.headers.items() if name.lower() != "content-length"}
        headers["Host"] = f"{self._host}:{self._port}"
        if body or prepared.method in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = str(len(body))
        try:
            lines = [f"{prepared.method} {prepared.path_url} HTTP/1.1", *(f"{n}: {v}" for n, v in headers.items())]
            head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        except UnicodeError:
            return None
        return Message(head, body, framed=True, endless=endless)

    def _send(self, message: Message) -> Answer | None:
        """The answer; None where there is none, which only a client that breaks off may see."""
        with socket.create_connection((self._host, self._port), timeout=TIMEOUT_S) as own:
            try:
                own.sendall(message.whole)
                # What is not whole waits for more, for longer than anybody wants to know.
                own.settimeout(TIMEOUT_S if message.framed else BROKEN_OFF_S)
                response = http.client.HTTPResponse(own, method=message.head.partition(b" ")[0].decode("latin-1"))
                response.begin()
                kind = (response.getheader("Content-Type") or "").partition(";")[0]
                streams = message.endless and kind == "text/event-stream"
                body = b"" if streams else response.read()
            except (OSError, ValueError, http.client.HTTPException) as error:
                return Answer(0, "", repr(error).encode()) if message.framed else None
        return Answer(response.status, kind, body, served=response.getheader("X-Swapd-Model") is not None)


def _naming(example: Mapping[str, Any], model: str) -> dict[str, Any]:
    return {key: model if key in ("model", "name") else value for key, value in example.items()}


def damage(message: Message, rng: random.Random) -> Message:
    """The same request with a few bytes of its body, or now and then of the whole, changed."""
    if message.body and rng.random() < 0.9:
        body = _altered(message.body, rng) if rng.random() < 0.7 else _bitten(message.body, rng)
        lines = [line for line in message.head.split(b"\r\n") if not line.lower().startswith(b"content-length:")]
        lines.insert(1, b"Content-Length: %d" % len(body))
        return Message(b"\r\n".join(lines), body, framed=True, endless=message.endless)
    whole = _bitten(message.whole, rng)
    head, gap, body = whole.partition(b"\r\n\r\n")
    return Message(head + gap, body, framed=False, endless=message.endless)


def _altered(body: bytes, rng: random.Random) -> bytes:
    """The same document with one of its values changed, left out or put elsewhere; bitten where it is none."""
    try:
        root = json.loads(body)
    except (ValueError, RecursionError):
        return _bitten(body, rng)
    places = list(_places(root)) if isinstance(root, dict | list) else []
    if not places:
        return _bitten(body, rng)
    for _ in range(rng.choice((1, 1, 2))):
        holder, key = rng.choice(places)
        other, further = rng.choice(places)
        match rng.randrange(4):
            case 0 if isinstance(holder, dict):
                holder.pop(key, None)
            case 1 if key in holder if isinstance(holder, dict) else True:
                other[further] = copy.deepcopy(holder[key])
            case _:
                holder[key] = rng.choice(_VALUES)
    return json.dumps(root).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each value within a document, as what holds it and under which key."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _bitten(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data = data[:at] + rng.choice(_BITS) + data[at:]
            case 1:
                data = data[:at] + data[at + rng.randint(1, 8) :]
            case 2:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 3:
                other = rng.randrange(len(data) + 1)
                data = data[: max(at, other)] + data[min(at, other) :][:4096]
            case _:
                number = rng.choice(
                    (b"0", b"-1", b"2147483648", b"18446744073709551616", b"1.5", b"true", b"[]", b'""')
                )
                spots = [index for index, byte in enumerate(data) if byte == 0x3A]
                if spots:
                    at = rng.choice(spots) + 1
                    data = data[:at] + number + data[at + 1 :]
    return data


def _statuses_of(code: str | None, kind: type[SwapdError] = SwapdError) -> set[int]:
    own = {kind.status} if kind.code == code and code is not None else set()
    return own.union(*(_statuses_of(code, sub) for sub in kind.__subclasses__()))


class _Judge:
    """Holds answers of one operation against the document."""

    def __init__(self, method: str, path: str, operation: Mapping[str, Any]) -> None:
        self.label = f"{method} {path}"
        self.endless = bool(operation.get("x-endless"))
        self._prefix = path.partition("{")[0]
        self._responses = {status: followed(one) for status, one in operation["responses"].items()}
        content = operation.get("requestBody", {}).get("content", {})
        # The document's own schema, not that of the names which are put into what is drawn from.
        self._body = validator(content[_JSON]["schema"]) if _JSON in content else None
        self._checks: dict[str, Any] = {}

    def fault(self, sent: Message, answer: Answer) -> str | None:
        """What is wrong with an answer; None where nothing is."""
        its_own = answer.served and "default" in self._responses
        if b"the daemon failed" in answer.body or (answer.status >= 500 and not (its_own or self._explained(answer))):
            return "an unexplained 5xx"
        if not sent.framed:
            return None
        if answer.status == 0:
            return "a well-framed request was not answered"
        told = self._responses.get(str(answer.status))
        if told is None:
            return None if its_own else "the status is not documented"
        if its_own and answer.status != 200:
            return None
        content = told.get("content")
        if content and answer.body and "*/*" not in content and answer.kind not in content:
            return "the content type is not documented"
        if (
            content
            and answer.kind == _JSON
            and not self._check(str(answer.status), content).is_valid(json.loads(answer.body))
        ):
            return "the answer is not as documented"
        if answer.status == 200 and self._body is not None and not self._body.is_valid(_read(sent.body)):
            return "a body was taken that the document refuses"
        return None

    def _check(self, status: str, content: Mapping[str, Any]) -> Any:
        if status not in self._checks:
            self._checks[status] = validator(content[_JSON]["schema"] if _JSON in content else {})
        return self._checks[status]

    def _explained(self, answer: Answer) -> bool:
        """Whether a 5xx is one of the daemon's, by its code or, in Ollama's dialect, by its sentence."""
        if not answer.body:
            return self.label.startswith("HEAD")
        try:
            error = json.loads(answer.body)["error"]
        except (ValueError, KeyError, TypeError):
            return False
        if isinstance(error, str):
            return bool(error)
        return answer.status in _statuses_of(error.get("code"))


def _read(body: bytes) -> Any:
    try:
        return strict_json.parse_object(body)
    except BadRequestError:
        return None
