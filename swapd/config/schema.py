"""What a configuration says, once it has been checked: frozen structs, sizes in bytes, times in seconds.

Owns the names and defaults of everything outside a backend's own model keys. Must never read a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from backends.base import Settings
from swapd.config.identity import FileIdentity
from swapd.core.routing import Strategy

MIB = 1024 * 1024

LogLevel = Literal["debug", "info", "warning", "error"]


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Where the daemon listens and what it grants a connection."""

    listen: tuple[str, ...] = ("127.0.0.1:8686",)
    """HOST:PORT or unix:/path. A socket passed by systemd is used instead."""
    keys: Path | None = None
    """The file of API keys, which may begin with $CREDENTIALS_DIRECTORY; None: nobody is asked for one."""
    open_to_network: bool = False
    """One half of the permission to listen beyond this machine without keys."""
    hosts: tuple[str, ...] = ()
    """Further names by which clients may call this server, in lower case."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may use this server; `*` is every one."""
    max_body_bytes: int = 32 * MIB
    max_bodies_bytes: int = 512 * MIB
    """Of all requests in flight together."""
    max_connections: int = 4096
    """Of clients, at once."""
    max_connections_per_address: int = 512
    """Of those, from one address that is not this machine's."""
    client_header: str | None = None
    """The request header that names the client behind a user interface or a proxy."""
    drain_s: float = 30.0
    """How long running streams may go on after SIGTERM, or after a reload changed their model."""
    otlp_endpoint: str | None = None
    """Where spans of requests are sent by OTLP over HTTP, without the path `/v1/traces`; None: there are none."""
    warm_spare: bool = True
    """Whether a worker process without a model is kept ready for the next load, of backends that can."""
    log_level: LogLevel = "info"
    """The least that is written to the log; the front door writes each request at `info`."""
    state_dir: Path | None = None
    """None: $STATE_DIRECTORY, else $XDG_STATE_HOME/swapd, else ~/.local/state/swapd."""
    runtime_dir: Path | None = None
    """None: $RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/swapd, else a directory of the user's under the temporary one."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one device swapd may take: bytes, a share of its total, or (neither) total less reserve."""

    size_bytes: int | None = None
    share: float | None = None
    """0 < share <= 1."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Budgets by device name as llama.cpp prints it; RAM is host memory."""

    budget: dict[str, Budget] = {}
    default: Budget = Budget()
    """For every device that `budget` does not name."""
    reserve_bytes: int = 512 * MIB
    """Taken off automatic and per-cent budgets, never off a size."""


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of each model's queue, and of what one client may have in all of them."""

    max_waiting: int = 256
    max_waiting_tokens: int = 1_000_000
    """Estimated, of prompts and answers."""
    max_per_client: int | None = None
    """Running and waiting, over all models; None sets no limit."""
    timeout_s: float = 600.0


class Turns(msgspec.Struct, frozen=True, kw_only=True):
    """How models share memory in time."""

    turn_s: float = 10.0
    max_wait_s: float = 60.0


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of requests that have ended."""

    keep_s: float = 90 * 24 * 3600.0
    max_rows: int = 1_000_000
    """0 keeps nothing."""


ParamValue = bool | int | float | str | list[str] | dict[str, Any]
"""Blocks hold the same kinds of values."""


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """Request fields the daemon forces or removes before a worker sees them."""

    set: dict[str, ParamValue] = {}
    strip: tuple[str, ...] = ()


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `models`: how swapd treats it, and (in `settings`) how its backend runs it."""

    id: str
    backend: str = "llama_cpp"
    aliases: tuple[str, ...] = ()
    alias_params: dict[str, Params] = {}
    """Of the aliases that have some of their own: applied after the model's."""
    name: str = ""
    """What people are shown in place of the id; clients ask for the id."""
    description: str = ""
    metadata: dict[str, ParamValue] = {}
    """Shown in /v1/models as it is."""
    model_name: str | None = None
    """What a worker is told in a request's `model`; None: the id."""
    unlisted: bool = False
    """Serves, but is left out of /v1/models."""
    load_timeout_s: float = 300.0
    """A load without progress for this long is stuck."""
    stall_timeout_s: float = 120.0
    """A worker with running requests and no finished micro-batch for this long is stuck."""
    idle_unload_s: float | None = None
    replicas: int = 1
    """Workers it may have at once; all but the first come and go with the load."""
    pin: bool = False
    priority: int = 0
    """Higher goes first."""
    max_wait_s: float | None = None
    """None: `turns.max_wait`."""
    loading_text: bool = False
    """Tell streamed chats that wait how far it is, as reasoning."""
    env: dict[str, str] = {}
    params: Params = Params()
    settings: Settings


class Virtual(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `virtual`: a name that stands for whichever of several models can serve."""

    id: str
    strategy: Strategy
    targets: tuple[str, ...]
    """Ids or aliases of models."""
    max_wait_s: float | None = None
    """For any target but the last, before the next is tried; None: as long as its queue lets wait."""
    aliases: tuple[str, ...] = ()
    unlisted: bool = False


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `profiles`: what is different while it is in force."""

    description: str = ""
    disable: tuple[str, ...] = ()
    """Ids of models and virtual models that do not exist then."""
    pins: dict[str, str | None] = {}
    """By id or alias, the name that is meant then; None: nothing is. A pin is followed once."""
    idle_unload_s: float | None = None
    """In place of every model's own; None leaves them theirs."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole, valid configuration. `models` keeps the file's order."""

    path: Path | None = None
    """The file it came from, None for a list that came from none."""
    identity: FileIdentity | None = None
    """The state of that file which was read."""
    server: Server = Server()
    memory: Memory = Memory()
    queue: Queue = Queue()
    turns: Turns = Turns()
    activity: Activity = Activity()
    models: dict[str, Model] = {}
    virtual: dict[str, Virtual] = {}
    profiles: dict[str, Profile] = {}
    profile: str | None = None
    """The one in force (`swapd.config.profiles`); a file does not choose one."""
    disabled: dict[str, Model] = {}
    """Models that the profile in force leaves out."""
