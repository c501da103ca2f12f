"""Reads a configuration file: strict YAML in, a frozen `Config` out, or every problem with its line.

Owns the file's top level. Must never touch a model's file: whether that exists and is sound is a verdict of
that model alone, and no reason to refuse the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from backends.base import Backend
from swapd.config.models import ModelReader
from swapd.config.names import Names
from swapd.config.problems import ConfigError, Problems
from swapd.config.readers import Place, block, note, unknown_key
from swapd.config.routing import RoutingReader
from swapd.config.schema import Config
from swapd.config.sections import read_activity, read_memory, read_queue, read_server, read_turns
from swapd.config.text_file import MAX_FILE_BYTES, read_text, too_large
from swapd.config.yaml_document import read_document

__all__ = ["MAX_FILE_BYTES", "ConfigError", "load", "parse"]

TOP_KEYS = ("server", "memory", "queue", "turns", "activity", "defaults", "models", "virtual", "profiles")


def load(path: Path, backends: Mapping[str, Backend]) -> Config:
    """The configuration in the file at `path`. Blocking. Raises `ConfigError`."""
    text, identity = read_text(path)
    return msgspec.structs.replace(parse(text, path, backends), identity=identity)


def parse(text: str, path: Path, backends: Mapping[str, Backend]) -> Config:
    """The configuration in `text`. `path` is named in errors and is where relative paths begin.

    Raises `ConfigError` with every problem that one pass finds.
    """
    problems = Problems()
    config: Config | None = None
    if len(text.encode(errors="surrogatepass")) > MAX_FILE_BYTES:
        problems.add(1, "file", too_large())
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
        "activity": read_activity,
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
