"""The file of API keys: strict YAML in, frozen keys out, or every problem with its line.

Keys are stored as plain SHA-256 hashes. That is enough because a key is made here, of 256 random bits: nobody can
guess his way to one, so there is nothing for a salt or a slow hash to slow down (those protect secrets that people
think up). So the file may be readable by all, but must be writable by the administrator alone.

Owns the file's form and the form of a key. Must never hold or show a key itself, only its hash.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from swapd.config.identity import FileIdentity
from swapd.config.nodes import Mapping as MappingNode
from swapd.config.nodes import Scalar, shown_node
from swapd.config.problems import Problems
from swapd.config.readers import (
    Key,
    Place,
    Trouble,
    block,
    integer,
    note,
    read_bool,
    read_keys,
    read_texts,
    text_at,
    value_at,
)
from swapd.config.text_file import read_text
from swapd.config.yaml_document import read_document

KEY_PREFIX = "sk-swapd-"
"""Programs that look for leaked secrets, and clients that check a key's form, know keys by `sk-`."""
KEY_BYTES = 32
"""Random ones in a key."""
MAX_KEYS = 1000
LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100.0

_HASH = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


class Scope(StrEnum):
    """What a key is for. `admin` includes `metrics`: who may change everything may also look."""

    INFERENCE = "inference"
    METRICS = "metrics"
    ADMIN = "admin"


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the file."""

    name: str
    digest: bytes
    """SHA-256 of the key."""
    scopes: tuple[Scope, ...] = (Scope.INFERENCE,)
    models: tuple[str, ...] | None = None
    """Ids or aliases that it may use; None for all."""
    priority: int = 0
    """Class within a model's queue; higher goes first."""
    weight: float = 1.0
    """Share among the clients of a model."""
    per_user: bool = False
    """Whether `server.client_header` is believed from it."""
    structured: bool = True
    """Whether its answers may be held to a grammar or a schema that it sends."""
    max_requests: int | None = None
    """At once; None sets no limit, here and below."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expires: datetime.date | None = None
    """The last day, in UTC, on which it is taken."""

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or (scope is Scope.METRICS and Scope.ADMIN in self.scopes)

    def may_use(self, model_id: str, aliases: Iterable[str]) -> bool:
        return self.models is None or model_id in self.models or any(alias in self.models for alias in aliases)

    def has_expired(self, unix_s: float) -> bool:
        return self.expires is not None and datetime.datetime.fromtimestamp(unix_s, datetime.UTC).date() > self.expires


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """A whole, valid file."""

    path: Path
    by_digest: Mapping[bytes, ApiKey]
    identity: FileIdentity | None = None
    """The state of the file that was read."""


def digest(key: str) -> bytes:
    """What is stored and compared of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def load_keys(path: Path) -> Keys:
    """The keys in the file at `path`. Blocking. Raises `ConfigError`."""
    text, identity = read_text(path)
    return msgspec.structs.replace(parse_keys(text, path), identity=identity)


def parse_keys(text: str, path: Path) -> Keys:
    """The keys in `text`; `path` is named in errors. Raises `ConfigError` with every problem that one pass finds."""
    problems = Problems()
    found: dict[bytes, ApiKey] = {}
    root = read_document(text, problems)
    if root is not None:
        places = block(Place("", root.line, root))
        if not places:
            problems.add(1, "file", "has no keys; `swapd key new NAME -o FILE` makes one")
        elif len(places) > MAX_KEYS:
            problems.add(1, "file", f"has {len(places)} keys; at most {MAX_KEYS} are allowed")
        else:
            found = _read_all(places, problems)
    problems.raise_if_any(path)
    return Keys(path=path, by_digest=found)


def _read_all(places: Mapping[str, Place], problems: Problems) -> dict[bytes, ApiKey]:
    found: dict[bytes, ApiKey] = {}
    for name, place in places.items():
        try:
            check_name(name)
            if not isinstance(place.node, MappingNode):
                # What stands here may be the key itself, so it must not be shown.
                raise Trouble("must be a block of keys, at least `hash`; `swapd key new` prints one")
            fields = read_keys(block(place), ENTRY_KEYS, problems)
        except ValueError as error:
            note(problems, place, error)
            continue
        if "digest" not in fields:
            if "hash" not in block(place):
                problems.add(place.line, place.key, "has no hash; `swapd key new` prints one")
            continue
        key = ApiKey(name=name, **fields)
        if key.digest in found:
            problems.add(place.line, place.key, f"has the same hash as {found[key.digest].name}; every key is its own")
        found[key.digest] = key
    return found


def check_name(name: str) -> None:
    """Raises `ValueError` unless a key may be called so: its name stands in logs, metrics and the status."""
    if not _NAME.fullmatch(name):
        raise Trouble("a key's name is 1 to 64 letters, digits and . _ @ -, and begins with a letter or digit")


def entry_text(key: ApiKey) -> str:
    """A key as its entry in the file."""
    lines = [f'"{key.name}":', f"  hash: sha256:{key.digest.hex()}", f"  scopes: [{', '.join(key.scopes)}]"]
    if key.models is not None:
        lines.append(f"  models: {msgspec.json.encode(key.models).decode()}")
    fields = (
        *("priority", "weight", "per_user", "structured"),
        *("max_requests", "requests_per_minute", "tokens_per_minute", "expires"),
    )
    defaults = ApiKey(name=key.name, digest=key.digest)
    for field in fields:
        value = getattr(key, field)
        if value != getattr(defaults, field):
            lines.append(f"  {field}: {str(value).lower() if isinstance(value, bool) else value}")
    return "\n".join(lines) + "\n"


# -- values ------------------------------------------------------------------------------------------------


def parse_date(text: str) -> datetime.date:
    """`2027-01-31`. Raises `ValueError`."""
    try:
        if _DATE.fullmatch(text):
            return datetime.date.fromisoformat(text)
    except ValueError:
        pass
    raise ValueError("must be a day such as 2027-01-31")


def parse_weight(text: str) -> float:
    """Raises `ValueError` for what is no number in range."""
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise ValueError(f"must be a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return weight


def _digest_at(place: Place, _problems: Problems) -> bytes:
    match = _HASH.fullmatch(text_at(place, "a hash that `swapd key new` has printed"))
    if match is None:
        # What stands here may be the key itself, so it must not be shown.
        raise Trouble("must be sha256: and 64 hexadecimal digits, as `swapd key new` prints them; never the key itself")
    return bytes.fromhex(match[1])


def _scopes(place: Place, problems: Problems) -> tuple[Scope, ...]:
    known = [scope.value for scope in Scope]
    texts = read_texts(place, problems)
    for text in texts:
        if text not in known:
            raise Trouble(f"must be a list of {', '.join(known)}, not {text[:40]!r}")
    return tuple(Scope(text) for text in texts)


def _weight(place: Place, _problems: Problems) -> float:
    value = value_at(place) if isinstance(place.node, Scalar) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Trouble(f"must be a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}, not {shown_node(place.node)}")
    return parse_weight(str(value))


def _date(place: Place, _problems: Problems) -> datetime.date:
    return parse_date(text_at(place, "a day such as 2027-01-31"))


ENTRY_KEYS: Mapping[str, Key] = {
    "hash": Key("digest", _digest_at),
    "scopes": Key("scopes", _scopes),
    "models": Key("models", read_texts),
    "priority": Key("priority", integer(LOWEST_PRIORITY, HIGHEST_PRIORITY)),
    "weight": Key("weight", _weight),
    "per_user": Key("per_user", read_bool),
    "structured": Key("structured", read_bool),
    "max_requests": Key("max_requests", integer(1, 100_000)),
    "requests_per_minute": Key("requests_per_minute", integer(1, 1_000_000)),
    "tokens_per_minute": Key("tokens_per_minute", integer(1, 1_000_000_000)),
    "expires": Key("expires", _date),
}
"""The keys of one entry, in the order in which they are documented."""
