"""Reads a configuration file: strict YAML in, a frozen `Config` out, or every problem with its line.

Owns the file's top level. Must never touch a model's file: whether that exists and is sound is a verdict of
that model alone, and no reason to refuse the list.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from backends.base import Backend
from swapd.config.identity import FileIdentity
from swapd.config.models import ModelReader
from swapd.config.names import Names
from swapd.config.problems import ConfigError, Problem, Problems
from swapd.config.readers import Place, block, note, unknown_key
from swapd.config.routing import RoutingReader
from swapd.config.schema import Config
from swapd.config.sections import read_memory, read_queue, read_server, read_turns
from swapd.config.yaml_document import read_document

__all__ = ["MAX_FILE_BYTES", "ConfigError", "load", "parse"]

MAX_FILE_BYTES = 1024 * 1024
TOP_KEYS = ("server", "memory", "queue", "turns", "defaults", "models", "virtual", "profiles")


def load(path: Path, backends: Mapping[str, Backend]) -> Config:
    """The configuration in the file at `path`. Blocking. Raises `ConfigError`."""
    content, identity = _read(path)
    return msgspec.structs.replace(parse(_decoded(content, path), path, backends), identity=identity)


def parse(text: str, path: Path, backends: Mapping[str, Backend]) -> Config:
    """The configuration in `text`. `path` is named in errors and is where relative paths begin.

    Raises `ConfigError` with every problem that one pass finds.
    """
    problems = Problems()
    config: Config | None = None
    if len(text.encode(errors="surrogatepass")) > MAX_FILE_BYTES:
        problems.add(1, "file", _too_large())
    else:
        root = read_document(text, problems)
        if root is not None:
            config = _config(Place("", root.line, root), path, backends, problems)
    problems.raise_if_any(path)
    assert config is not None, "a configuration was refused without a reason"
    return config


def _config(root: Place, path: Path, backends: Mapping[str, Backend], problems: Problems) -> Config:
    base_dir = path.absolute().parent
    places = block(root)
    for name, place in places.items():
        if name not in TOP_KEYS:
            problems.add(place.line, place.key, unknown_key(name, TOP_KEYS, {}))
    sections: dict[str, Callable[[Place, Problems], Any]] = {
        "server": partial(read_server, base_dir),
        "memory": read_memory,
        "queue": read_queue,
        "turns": read_turns,
    }
    read: dict[str, Any] = {}
    for name, reader in sections.items():
        if name in places:
            try:
                read[name] = reader(places[name], problems)
            except ValueError as error:
                note(problems, places[name], error)
    # A truncated file that happens to parse must not pass for a wish to serve no models.
    if "models" not in places:
        problems.add(1, "models", "is missing; write `models: {}` for a list without models")
        return Config()
    names = Names()
    models_reader = ModelReader(backends, base_dir, problems, names)
    try:
        read["models"] = models_reader.read_all(places["models"], places.get("defaults"))
    except ValueError as error:
        note(problems, places["models"], error)
    routing = RoutingReader(names, problems)
    # In this order: a profile may name virtual models.
    named: dict[str, Callable[[Place], Any]] = {"virtual": routing.read_virtual, "profiles": routing.read_profiles}
    for name, read_named in named.items():
        if name in places:
            try:
                read[name] = read_named(places[name])
            except ValueError as error:
                note(problems, places[name], error)
    return Config(path=path, **read)


def _too_large() -> str:
    return f"is larger than {MAX_FILE_BYTES // 1024}KiB; this is not a model list"


def _read(path: Path) -> tuple[bytes, FileIdentity]:
    """The file's content, and the identity it had before it was read. Raises `ConfigError`."""
    try:
        content, identity = _read_bytes(path)
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_FILE_BYTES:
        raise _unreadable(path, _too_large())
    return content, identity


def _decoded(content: bytes, path: Path) -> str:
    """The file's text. Raises `ConfigError`."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        what = "is UTF-16" if utf16 else f"is not UTF-8 (the byte 0x{content[error.start]:02x})"
        raise _unreadable(path, f"{what}; save it as UTF-8", line) from None


def _read_bytes(path: Path) -> tuple[bytes, FileIdentity]:
    """At most one byte more than allowed. Without O_NONBLOCK, opening a pipe would wait for a writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is not a regular file")
        return file.read(MAX_FILE_BYTES + 1), FileIdentity.of(found)


def _unreadable(path: Path, message: str, line: int = 1) -> ConfigError:
    return ConfigError(path, [Problem(line, "file", message)])
