"""The blocks of the file outside `models`: which keys they have, in what range, and which field each fills.

Owns the file's names for the fields of `schema.Server`, `Memory`, `Queue`, `Turns` and `Activity`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from swapd.config.access import keys_file, read_hosts, read_origins
from swapd.config.address import parse_address
from swapd.config.nodes import Scalar, Sequence
from swapd.config.problems import Problems, shown
from swapd.config.quantities import parse_share, parse_size
from swapd.config.readers import (
    Key,
    Place,
    Trouble,
    block,
    directory,
    integer,
    items,
    note,
    one_of,
    printable_name,
    read_bool,
    read_keys,
    scalar,
    size,
    text_at,
    time,
)
from swapd.config.schema import Activity, Budget, LogLevel, Memory, Queue, Server, Turns

DAY_S = 24 * 3600.0
GIB = 2**30
MAX_BUDGET_BYTES = 64 * 2**40
MIN_BUDGET_BYTES = 2**20
"""A smaller budget than this, other than 0, is a size that lost its unit."""

_ENDPOINT = re.compile(
    r"https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?", re.ASCII
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII)
"""RFC 9110, section 5.6.2."""


def _listen(place: Place, _problems: Problems) -> tuple[str, ...]:
    places = items(place, most=16) if isinstance(place.node, Sequence) else [place]
    if not places:
        raise Trouble("must have at least one address, such as 127.0.0.1:8686")
    found: list[str] = []
    for each in places:
        text = text_at(each, "HOST:PORT or unix:/path")
        try:
            parse_address(text)
        except ValueError as error:
            raise Trouble(str(error), each) from None
        if text in found:
            raise Trouble(f"{shown(text)} is listed twice", each)
        found.append(text)
    return tuple(found)


def _header(place: Place, _problems: Problems) -> str | None:
    if isinstance(place.node, Scalar) and place.node.is_null:
        return None
    text = text_at(place, "the name of a request header, such as X-OpenWebUI-User-Id, or null")
    if not _HEADER_NAME.fullmatch(text):
        raise Trouble("is no name that a request header can have; write one such as X-OpenWebUI-User-Id")
    return text


def _endpoint(place: Place, _problems: Problems) -> str | None:
    if isinstance(place.node, Scalar) and place.node.is_null:
        return None
    text = text_at(place, "the address of a collector, such as http://127.0.0.1:4318, or null")
    if not _ENDPOINT.fullmatch(text):
        raise Trouble("is no address of a collector; write http://HOST:PORT or https://HOST, perhaps with a path")
    return text


def _budget(place: Place) -> Budget:
    text = scalar(place, "auto, a size such as 22GiB or a share such as 80%").text
    if text == "auto":
        return Budget()
    if text.endswith("%"):
        return Budget(share=parse_share(text))
    size_bytes = parse_size(text)
    if 0 < size_bytes < MIN_BUDGET_BYTES:
        raise Trouble(
            f"{text} is only {size_bytes} bytes; write {text}GiB" if text.isdigit() else f"{text} is too small"
        )
    if size_bytes > MAX_BUDGET_BYTES:
        raise Trouble(f"{text} is out of range; write a size up to 64TiB")
    return Budget(size_bytes=size_bytes)


def _budgets(place: Place, problems: Problems) -> dict[str, Budget]:
    """Every device's budget by name, with the key `default` among them."""
    if isinstance(place.node, Scalar) and not place.node.is_null:
        raise Trouble(f"must name devices; write {{default: {place.node.text[:40]}}} for all of them")
    found: dict[str, Budget] = {}
    for name, each in block(place).items():
        try:
            _device_name(name)
            found[name] = _budget(each)
        except ValueError as error:
            note(problems, each, error)
    return found


def _device_name(name: str) -> None:
    printable_name(name, "a device's name", most_chars=64)
    if name != "RAM" and name.lower() in ("ram", "cpu", "host"):
        raise Trouble("host memory is called RAM here; write RAM")
    if name != "default" and name.lower() in ("default", "auto"):
        raise Trouble("the key for all other devices is spelled default")


def server_keys(base_dir: Path) -> Mapping[str, Key]:
    """The keys of `server`. Relative directories begin at `base_dir`."""
    return {
        "listen": Key("listen", _listen),
        "keys": Key("keys", keys_file(base_dir)),
        "open_to_network": Key("open_to_network", read_bool),
        "hosts": Key("hosts", read_hosts),
        "cors_origins": Key("cors_origins", read_origins),
        "max_body": Key("max_body_bytes", size(1024, GIB)),
        "max_bodies": Key("max_bodies_bytes", size(2**20, 1024 * GIB)),
        "max_connections": Key("max_connections", integer(1, 100_000)),
        "max_connections_per_address": Key("max_connections_per_address", integer(1, 100_000)),
        "client_header": Key("client_header", _header),
        "drain": Key("drain_s", time(0, DAY_S)),
        "otlp_endpoint": Key("otlp_endpoint", _endpoint),
        "warm_spare": Key("warm_spare", read_bool),
        "log_level": Key("log_level", one_of(get_args(LogLevel))),
        "state_dir": Key("state_dir", directory(base_dir)),
        "runtime_dir": Key("runtime_dir", directory(base_dir)),
    }


MEMORY_KEYS: Mapping[str, Key] = {
    "budget": Key("budget", _budgets),
    "reserve": Key("reserve_bytes", size(0, 1024 * GIB)),
}
QUEUE_KEYS: Mapping[str, Key] = {
    "max_waiting": Key("max_waiting", integer(1, 100_000)),
    "max_waiting_tokens": Key("max_waiting_tokens", integer(1000, 1_000_000_000)),
    "max_per_client": Key("max_per_client", integer(1, 100_000, word="unlimited")),
    "timeout": Key("timeout_s", time(1, DAY_S)),
}
TURNS_KEYS: Mapping[str, Key] = {
    "turn": Key("turn_s", time(0, 3600)),
    "max_wait": Key("max_wait_s", time(0, DAY_S)),
}

ACTIVITY_KEYS: Mapping[str, Key] = {
    "keep": Key("keep_s", time(3600, 3650 * DAY_S)),
    "max_rows": Key("max_rows", integer(0, 100_000_000)),
}


def read_server(base_dir: Path, place: Place, problems: Problems) -> Server:
    return Server(**read_keys(block(place), server_keys(base_dir), problems))


def read_memory(place: Place, problems: Problems) -> Memory:
    fields = read_keys(block(place), MEMORY_KEYS, problems)
    budget: dict[str, Budget] = fields.pop("budget", {})
    default = budget.pop("default", Budget())
    return Memory(budget=budget, default=default, **fields)


def read_queue(place: Place, problems: Problems) -> Queue:
    return Queue(**read_keys(block(place), QUEUE_KEYS, problems))


def read_turns(place: Place, problems: Problems) -> Turns:
    return Turns(**read_keys(block(place), TURNS_KEYS, problems))


def read_activity(place: Place, problems: Problems) -> Activity:
    return Activity(**read_keys(block(place), ACTIVITY_KEYS, problems))
