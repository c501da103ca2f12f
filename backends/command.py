"""Any OpenAI-compatible server by its command line: vLLM, TabbyAPI, whisper.cpp, a container.

Owns the keys of such a model, its macros, and the description of its process, which runs under the guard. Knows nothing
of what the program does: its memory is declared, or learned by the daemon. Never runs a shell.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import parse_qs, urlsplit

import msgspec

from backends.address import TcpAddress, UnixAddress, WorkerAddress
from backends.base import (
    FIRST_TOKEN_TIMEOUT_S,
    Capabilities,
    Duration,
    Footprint,
    Inspection,
    InvalidModelError,
    LaunchOrder,
    LaunchSpec,
    Post,
    Settings,
    Size,
    Sleep,
)
from backends.environment import without_secrets
from backends.guard.plan import GuardPlan, guard_launch
from backends.macros import expand, macro_names, unknown_macro
from backends.plain import PlainBackend

PORT, SOCKET, MODEL_ID, PID = "PORT", "SOCKET", "MODEL_ID", "PID"
_BUILT_IN = (PORT, SOCKET, MODEL_ID)
_MACRO_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_UNIX = "unix:"
_DAEMONS_OWN = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "MEMORY_PRESSURE_", "SWAPD_")
"""What systemd and people tell the daemon, and nobody else."""

_HTTP_PATH = re.compile(r"/[!-~]*")
Command = Annotated[tuple[str, ...], msgspec.Meta(max_length=512)] | str


class SleepSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a program sleeps that can, as vLLM does with --enable-sleep-mode. Its own paths are the defaults."""

    memory: dict[str, Size]
    """All that it holds while it sleeps, by device."""
    path: Annotated[str, msgspec.Meta(pattern=r"^/[!-~]*$")] = "/sleep?level=1"
    """A POST of this puts it to sleep."""
    wake: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=16)] | str = "/wake_up"
    """And one of this wakes it, or several one after another; after its path each may have a body, as JSON."""
    timeout: Duration = 60.0
    """For falling asleep and for waking; a program that takes longer is ended."""

    @property
    def to_wake(self) -> tuple[Post, ...]:
        """Raises `ValueError`."""
        return tuple(map(_post, (self.wake,) if isinstance(self.wake, str) else self.wake))

    def forgets_weights(self) -> bool:
        """Whether it is vLLM's second level, which throws the weights away, and nothing loads them when it wakes.

        vLLM answers with nonsense then, and reports no error.
        """
        loads_them = any("reload_weights" in str(post) for post in self.to_wake)
        return "2" in parse_qs(urlsplit(self.path).query).get("level", ()) and not loads_them


class CommandSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a program is run as a worker, and what it can do."""

    cmd: Command
    """The program and its arguments: a list, or one text that is cut into words as a shell would, without one."""
    cmd_stop: Command = ()
    """What ends it, if SIGTERM does not: run once, however it ends. Knows `${PID}`."""
    check_endpoint: Annotated[str, msgspec.Meta(pattern=r"^(none|/[!-~]*)$")] = "/health"
    """A path that answers 200 when it is ready; none: it is when it takes connections."""
    proxy: str = "http://127.0.0.1:${PORT}"
    """Where it listens: http://HOST:PORT, or unix:PATH."""
    macros: dict[str, str] = msgspec.field(default_factory=dict)
    """Names, and what stands for them in `cmd`, `cmd_stop` and `proxy`."""
    memory: dict[str, Size] = msgspec.field(default_factory=dict)
    """What it takes, by device; empty has it learned."""
    devices: tuple[str, ...] = ()
    """GPUs it may use, where its memory is learned; empty is all."""
    sleep: SleepSettings | None = None
    """How it sleeps in place of ending when its memory is needed; null: it cannot."""
    progress: tuple[str, ...] = ()
    """Regular expressions for lines of its output that tell of work done."""
    first_token_timeout: Duration = FIRST_TOKEN_TIMEOUT_S
    """Without a byte or a line of progress, while an answer has not begun; after that `stall_timeout` counts."""
    n_parallel: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 4
    """Requests it runs at once."""
    n_ctx: Annotated[int, msgspec.Meta(ge=0, le=16_777_216)] = 0
    """Context in tokens, for people; 0 is not known."""
    chat: bool = True
    completions: bool = True
    embeddings: bool = False
    rerank: bool = False
    vision: bool = False
    audio: bool = False
    transcriptions: bool = False
    speech: bool = False
    images: bool = False

    def __post_init__(self) -> None:
        for name in self.macros:
            if not _MACRO_NAME.fullmatch(name) or name in (*_BUILT_IN, PID):
                raise ValueError(f"macros: {name!r} is no name a macro of yours can have")
        for pattern in self.progress:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"progress: {pattern!r} is no regular expression: {error}") from None
        if self.sleep is not None and not self.memory:
            raise ValueError("sleep needs memory: it comes back to where it was, so what it takes must be declared")
        if self.sleep is not None and self.sleep.forgets_weights():
            raise ValueError(
                "sleep: level=2 throws the weights away, and nothing in wake loads them again: it would talk nonsense; "
                """add '/collective_rpc {"method": "reload_weights"}' to wake, or sleep at level=1"""
            )
        if not self.words("cmd"):
            raise ValueError("cmd names no program")
        self.words("cmd_stop")
        self._check_macros("proxy", (expand(self.proxy, self.macros),), _BUILT_IN)
        # With the macros' own text a port or a path looks like one.
        _address(expand(self.proxy, self.macros), {PORT: "1", SOCKET: "/s", MODEL_ID: "m"})

    def words(self, key: Literal["cmd", "cmd_stop"]) -> tuple[str, ...]:
        """The command's words, with the built-in macros still in them. Raises `ValueError`."""
        command = self.cmd if key == "cmd" else self.cmd_stop
        if isinstance(command, str):
            try:
                words = tuple(shlex.split(expand(command, self.macros), comments=False))
            except ValueError as error:
                raise ValueError(f"{key} cannot be cut into words: {error}") from None
        else:
            words = tuple(expand(word, self.macros) for word in command)
        self._check_macros(key, words, _BUILT_IN if key == "cmd" else (*_BUILT_IN, PID))
        return words

    def _check_macros(self, key: str, texts: tuple[str, ...], known: tuple[str, ...]) -> None:
        name = unknown_macro(texts, known)
        if name is not None:
            has = ", ".join(f"${{{one}}}" for one in (*known, *self.macros))
            raise ValueError(f"{key} has ${{{name}}}, which stands for nothing; there are {has}")

    @property
    def wants_port(self) -> bool:
        texts = (*self.words("cmd"), expand(self.proxy, self.macros))
        return any(PORT in macro_names(text) for text in texts)


class CommandBackend(PlainBackend):
    """`backends.base.Backend` for foreign programs."""

    name: ClassVar[str] = "command"
    settings_type: ClassVar[type[Settings]] = CommandSettings

    def inspect(self, settings: CommandSettings) -> Inspection:
        """Look for the program. Raises `InvalidModelError` if there is none."""
        program = settings.words("cmd")[0]
        if shutil.which(program) is None:
            raise InvalidModelError(
                f"cmd: there is no program {program!r} that swapd may run; install it, or correct cmd"
            )
        return Inspection(
            footprint=Footprint((0,), (0,), 0, 0, 0, 0),
            slots=settings.n_parallel,
            capabilities=Capabilities(
                chat=settings.chat,
                completions=settings.completions,
                embeddings=settings.embeddings,
                rerank=settings.rerank,
                vision=settings.vision,
                audio=settings.audio,
                transcriptions=settings.transcriptions,
                speech=settings.speech,
                images=settings.images,
            ),
            n_ctx=settings.n_ctx,
            devices=settings.devices,
            description=f"the program {Path(program).name}",
            n_ctx_train=settings.n_ctx,
            places_itself=True,
            declared_bytes=settings.memory,
            sleep=_sleep(settings.sleep),
            wants_port=settings.wants_port,
            reports_usage=False,
            first_token_timeout_s=settings.first_token_timeout,
        )

    def files(self, settings: CommandSettings) -> tuple[Path, ...]:
        """The program: a new one is another model."""
        program = settings.words("cmd")[0]
        return (Path(shutil.which(program) or program),)

    def launch(self, settings: CommandSettings, order: LaunchOrder) -> LaunchSpec:
        """The guard, with the program as its charge."""
        values = {PORT: str(order.port), SOCKET: str(order.socket_path), MODEL_ID: order.model_id}
        address = _address(expand(settings.proxy, settings.macros), values)
        plan = GuardPlan(
            argv=tuple(expand(word, values) for word in settings.words("cmd")),
            env=program_environment(os.environ, {name: expand(value, values) for name, value in order.env.items()}),
            unix=address if isinstance(address, UnixAddress) else None,
            tcp=address if isinstance(address, TcpAddress) else None,
            check=None if settings.check_endpoint == "none" else settings.check_endpoint,
            slots=settings.n_parallel,
            n_ctx=settings.n_ctx,
            stop_argv=tuple(expand(word, values) for word in settings.words("cmd_stop")),
            progress=settings.progress,
        )
        return guard_launch(plan, order.control_fd)


def _post(text: str) -> Post:
    """A request to wake, as it is written. Raises `ValueError`."""
    path, _, body = text.partition(" ")
    if not _HTTP_PATH.fullmatch(path):
        raise ValueError(f"sleep.wake: {text!r} does not begin with a path")
    try:
        return Post(path, msgspec.json.decode(body, type=dict[str, object]) if body else None)
    except msgspec.DecodeError as error:
        raise ValueError(f"sleep.wake: what follows {path} is no object in JSON: {error}") from None


def _sleep(settings: SleepSettings | None) -> Sleep | None:
    if settings is None:
        return None
    return Sleep((Post(settings.path),), settings.to_wake, settings.memory, settings.timeout)


def program_environment(environ: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The daemon's environment without what is meant for it alone or looks like a secret, and the model's `env`."""
    passed = {name: value for name, value in without_secrets(environ).items() if not name.startswith(_DAEMONS_OWN)}
    return {**passed, **own}


def _address(proxy: str, values: Mapping[str, str]) -> WorkerAddress:
    """Where the program listens. Raises `ValueError`."""
    text = expand(proxy, values)
    if text.startswith(_UNIX):
        path = Path(text.removeprefix(_UNIX))
        if not path.is_absolute():
            raise ValueError(f"proxy: {proxy!r} needs an absolute path; unix:${{SOCKET}} is one")
        return UnixAddress(path)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"proxy: {proxy!r} is no address: {error}") from None
    if parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError(
            f"proxy: {proxy!r} must be http://HOST:PORT or unix:PATH; for servers elsewhere there is remote"
        )
    return TcpAddress(host, 80 if port is None else port)
