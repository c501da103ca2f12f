"""The commands that need no daemon: serve, check, estimate, devices."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import msgspec

from backends.base import Backend, decode_path
from backends.registry import installed_backends
from swapd.cli.output import Column, CommandError, complain, console, print_json, print_line, print_table, size
from swapd.cli.places import SYSTEM_CONFIG, config_path
from swapd.config.load import load
from swapd.config.positions import line_of
from swapd.config.problems import ConfigError, Problem
from swapd.config.schema import Config, Model
from swapd.core import placement
from swapd.core.spec import Room
from swapd.estimate import Estimate
from swapd.estimate import estimate as make_estimate
from swapd.pool import catalog
from swapd.pool.devices import Device, Machine, budgets, discover

FILE_BACKEND = "llama_cpp"
"""What a bare GGUF file is measured for."""
STANDARD_INPUT = 0


def serve(arguments: argparse.Namespace) -> int:
    """Run the daemon until it is told to stop."""
    # The daemon's imports are slow, and no other command needs them.
    from swapd.daemon import run
    from swapd.demo import demo_config

    lifeline_fd = STANDARD_INPUT if arguments.stop_at_eof else None
    if arguments.demo:
        with tempfile.TemporaryDirectory(prefix="demo-") as directory:
            return run(_listening_at(demo_config(Path(directory)), arguments.listen), lifeline_fd=lifeline_fd)
    path = config_path(arguments.config, os.environ, Path.home(), Path.exists)
    if path is None:
        raise CommandError(
            f"there is no configuration: write {SYSTEM_CONFIG}, name one with --config, or try swapd serve --demo"
        )
    return run(_listening_at(load(path, installed_backends()), arguments.listen), lifeline_fd=lifeline_fd)


def _listening_at(config: Config, listen: str | None) -> Config:
    if listen is None:
        return config
    return msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, listen=(listen,)))


def check(arguments: argparse.Namespace) -> int:
    """Everything that is wrong with a configuration, including its models' files, before a daemon reads it."""
    backends = installed_backends()
    config = load(arguments.file, backends)
    problems = verdicts(config, arguments.file.read_text(encoding="utf-8-sig"), backends, discover(backends))
    if problems:
        raise ConfigError(arguments.file, problems)
    count = len(config.models)
    print_line(f"{arguments.file}: fine, {count} {'model' if count == 1 else 'models'}")
    return 0


def verdicts(config: Config, text: str, backends: dict[str, Backend], machine: Machine) -> list[Problem]:
    """What keeps each model from ever being served, with the line of the key that says so."""
    room = Room.of_budgets(budgets(config.memory, machine))
    problems = []
    for model in config.models.values():
        entry = catalog.inspect(model, config, backends[model.backend], room.free_bytes)
        keys: tuple[str, ...] = ("models", model.id)
        verdict = entry.spec.verdict
        if verdict is not None:
            keys = (*keys, "path" if entry.inspection is None else "devices")
        else:
            verdict = placement.misfit(entry.spec, room)
        if verdict is not None:
            problems.append(Problem(line_of(text, keys), ".".join(keys), verdict))
    return problems


def estimate(arguments: argparse.Namespace) -> int:
    """A table per model. A file needs no configuration: it is measured with every setting's default."""
    backends = installed_backends()
    machine = discover(backends)
    config = _configuration(arguments.config, arguments.models, backends)
    room = Room.of_budgets(budgets(config.memory, machine))
    estimates, failed = [], False
    for name in arguments.models:
        model = _file_model(Path(name), backends) if is_file_name(name) else _configured_model(name, config)
        entry = catalog.inspect(model, config, backends[model.backend], room.free_bytes)
        if entry.inspection is None or entry.spec.verdict is not None:
            complain(entry.spec.verdict or "")
            failed = True
            continue
        estimates.append(make_estimate(entry.spec, entry.inspection, room))
    if arguments.json:
        print_json({"models": estimates})
    else:
        for one in estimates:
            _print_estimate(one)
    return 1 if failed else 0


def is_file_name(name: str) -> bool:
    """Whether the argument means a file rather than a configured model, whose name may hold slashes too."""
    return name.endswith(".gguf") or name.startswith(("/", "./", "../"))


def _configuration(given: Path | None, names: Sequence[str], backends: dict[str, Backend]) -> Config:
    """The configuration if one is asked for, by name or by naming a model in it; else the defaults."""
    if given is None and all(is_file_name(name) for name in names):
        return Config()
    path = config_path(given, os.environ, Path.home(), Path.exists)
    if path is None:
        raise CommandError("there is no configuration to look the model up in; name one with --config, or give a file")
    return load(path, backends)


def _file_model(path: Path, backends: dict[str, Backend]) -> Model:
    settings_type = backends[FILE_BACKEND].settings_type
    settings = msgspec.convert({"path": str(path)}, type=settings_type, dec_hook=decode_path)
    return Model(id=str(path), backend=FILE_BACKEND, settings=settings)


def _configured_model(name: str, config: Config) -> Model:
    for model in config.models.values():
        if name == model.id or name in model.aliases:
            return model
    close = get_close_matches(name, config.models, n=3, cutoff=0.4)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise CommandError(f"{config.path} has no model {name!r}{hint}")


def _print_estimate(one: Estimate) -> None:
    columns = [
        Column("DEVICE"),
        Column("WEIGHTS", "right"),
        Column("KV CACHE", "right"),
        Column("COMPUTE", "right", min_width=50),
        Column("OTHER", "right", min_width=60),
        Column("TOTAL", "right"),
        Column("BUDGET", "right", min_width=70),
    ]
    rows = [
        [
            device.name,
            size(device.weights_bytes),
            size(device.kv_bytes),
            size(device.compute_bytes),
            size(device.other_bytes),
            size(device.total_bytes),
            size(device.budget_bytes),
        ]
        for device in one.devices
    ]
    slots = f"{one.slots} {'request' if one.slots == 1 else 'requests'} at once"
    print_line(f"{one.model}: {one.description}, {one.n_ctx:,} tokens of context, {slots}")
    print_table(console(), columns, rows)
    print_line(one.fit)


def devices(arguments: argparse.Namespace) -> int:
    """What this machine has."""
    machine = discover(installed_backends())
    for remark in machine.remarks:
        complain(remark)
    if arguments.json:
        print_json({"devices": machine.devices})
        return 0
    columns = [
        Column("DEVICE"),
        Column("DESCRIPTION", min_width=60),
        Column("TOTAL", "right"),
        Column("FREE", "right"),
    ]
    rows = [[one.name, _described(one), size(one.total_bytes), size(one.free_bytes)] for one in machine.devices]
    print_table(console(), columns, rows)
    return 0


def _described(device: Device) -> str:
    return device.description if device.shares is None else f"{device.description} (part of {device.shares})"
