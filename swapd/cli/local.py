"""The commands that need no daemon: serve, check, devices."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import msgspec

from backends.base import Backend
from backends.registry import installed_backends
from swapd.cli.output import Column, CommandError, complain, console, print_json, print_line, print_table, size
from swapd.cli.places import SYSTEM_CONFIG, config_path
from swapd.config.load import load
from swapd.config.positions import line_of
from swapd.config.problems import ConfigError, Problem
from swapd.config.schema import Config
from swapd.core import placement
from swapd.core.spec import Room
from swapd.pool import catalog
from swapd.pool.devices import Device, Machine, budgets, discover

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
            # A backend's first key names what it runs: a file, a program.
            what = model.settings.__struct_fields__[0]
            keys = (*keys, what if entry.inspection is None else "devices")
        else:
            verdict = placement.misfit(entry.spec, room)
        if verdict is not None:
            problems.append(Problem(line_of(text, keys), ".".join(keys), verdict))
    return problems


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
