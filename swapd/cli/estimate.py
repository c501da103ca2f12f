"""The command that says how much memory a model takes, before it runs."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import msgspec

from backends.base import Backend, Offload, ProbeError, Settings, decode_path, encode_path
from backends.registry import installed_backends
from swapd.cli.output import Column, CommandError, complain, console, print_json, print_line, print_table, size
from swapd.cli.places import config_path, learned_file
from swapd.config.load import load
from swapd.config.schema import Config, Model
from swapd.core.spec import RAM, DeviceSpec, ModelSpec, Room
from swapd.estimate import N_CTX_STEP, DeviceEstimate, Estimate, Limits, limits, with_engine, with_measured
from swapd.estimate import estimate as make_estimate
from swapd.pool import catalog
from swapd.pool.devices import budgets, discover
from swapd.pool.learned import Lesson, read_lessons
from swapd.pool.probes import run_probe

FILE_BACKEND = "llama_cpp"
"""What a bare GGUF file is measured for."""
PROBE_TIMEOUT_S = 75.0
"""An engine's probe ends by itself before that."""


def estimate(arguments: argparse.Namespace) -> int:
    """A table per model. A file needs no configuration: it is measured with every setting's default."""
    backends = installed_backends()
    config = _configuration(arguments.config, arguments.models, backends)
    devices = budgets(config.memory, discover(backends))
    room = _room(devices, arguments.device)
    present = frozenset(device.name for device in devices)
    lessons = read_lessons(learned_file(config.server.state_dir, os.environ, Path.home(), Path.exists))
    estimates, failed = [], False
    for name in arguments.models:
        model = _file_model(Path(name), backends) if is_file_name(name) else _configured_model(name, config)
        if arguments.n_ctx is not None:
            model = _with_context(model, backends[model.backend], arguments.n_ctx)
        try:
            made, offload = _one(model, config, backends[model.backend], room, lessons)
        except CommandError as error:
            complain(str(error))
            failed = True
            continue
        if not arguments.no_probe:
            made = _asked(made, backends[model.backend], model, offload, present)
        estimates.append(made)
    if arguments.json:
        print_json({"models": estimates})
    else:
        for index, one in enumerate(estimates):
            _print(one, is_first=index == 0)
    return 1 if failed else 0


def _one(
    model: Model, config: Config, backend: Backend, room: Room, lessons: Mapping[str, Lesson]
) -> tuple[Estimate, Offload]:
    """By the formulas and what was learned, and where things would go. Raises `CommandError` for an unusable model."""
    entry = catalog.inspect(model, config, backend, room.free_bytes, lambda key: lessons.get(key, Lesson()))
    if entry.inspection is None or entry.spec.verdict is not None:
        raise CommandError(entry.spec.verdict or "")
    lesson = lessons.get(entry.spec.launch_key, Lesson())
    made, laid_out = make_estimate(entry.spec, entry.inspection, room, entry.formula)
    made = with_measured(made, lesson.measured_bytes)
    if "n_ctx" in backend.settings_type.__struct_fields__ and entry.inspection.n_ctx_train:

        def spec_with(n_ctx: int) -> ModelSpec | None:
            # What was learned with one context is the best guess for another.
            changed = _with_context(model, backend, n_ctx)
            other = catalog.inspect(changed, config, backend, room.free_bytes, lambda _: lesson)
            return other.spec if other.spec.costs is not None else None

        found = limits(entry.spec, room, spec_with, entry.inspection.n_ctx_train)
        made = msgspec.structs.replace(made, limits=found)
    return made, catalog.offload(laid_out)


def _asked(one: Estimate, backend: Backend, model: Model, offload: Offload, present: frozenset[str]) -> Estimate:
    """With the engine's own figures, or the reason why there are none."""
    absent = [name for name in offload.devices if name not in present]
    if absent:
        return msgspec.structs.replace(one, engine=f"not asked, because this machine has no {' and no '.join(absent)}")
    probe = backend.probe(model.settings, offload, model.env)
    if probe is None:
        return one
    start = time.monotonic()
    try:
        one = with_engine(one, backend.read_probe(run_probe(probe, PROBE_TIMEOUT_S)))
    except ProbeError as error:
        return msgspec.structs.replace(one, engine=f"has no answer: {error}")
    return msgspec.structs.replace(one, engine=f"{one.engine}, {time.monotonic() - start:.1f} s")


def _room(devices: Sequence[DeviceSpec], wanted: Sequence[tuple[str, int | None]]) -> Room:
    """The budgets; of the devices that are named only, if any are, and of what is said they have."""
    room = Room.of_budgets(devices)
    if not wanted:
        return room
    unknown = [name for name, size_bytes in wanted if size_bytes is None and name not in room.free_bytes]
    if unknown:
        raise CommandError(
            f"there is no device {unknown[0]}; this machine has {', '.join(room.free_bytes)}. "
            f"Write --device {unknown[0]}=SIZE to see how it would be"
        )
    free_bytes = {RAM: room.free_bytes[RAM]}
    for name, size_bytes in wanted:
        free_bytes[name] = room.free_bytes[name] if size_bytes is None else size_bytes
    return Room(free_bytes, {name: memory for name, memory in room.shares.items() if name in free_bytes})


def is_file_name(name: str) -> bool:
    """Whether the argument means a file rather than a configured model, whose name may hold slashes too."""
    return name.endswith(".gguf") or name.startswith(("/", "./", "../"))


def _configuration(given: Path | None, names: Sequence[str], backends: Mapping[str, Backend]) -> Config:
    """The configuration if one is asked for, by name or by naming a model in it; else the defaults."""
    if given is None and all(is_file_name(name) for name in names):
        return Config()
    path = config_path(given, os.environ, Path.home(), Path.exists)
    if path is None:
        raise CommandError("there is no configuration to look the model up in; name one with --config, or give a file")
    return load(path, backends)


def _file_model(path: Path, backends: Mapping[str, Backend]) -> Model:
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


def _with_context(model: Model, backend: Backend, n_ctx: int) -> Model:
    """The model with another `n_ctx`. Raises `CommandError` if its backend has none or refuses it."""
    settings: Settings = model.settings
    said = msgspec.to_builtins(settings, enc_hook=encode_path) | {"n_ctx": n_ctx}
    try:
        changed = msgspec.convert(said, type=backend.settings_type, dec_hook=decode_path)
    except msgspec.ValidationError as error:
        raise CommandError(f"model {model.id!r} cannot have n_ctx {n_ctx}: {error}") from None
    return msgspec.structs.replace(model, settings=changed)


# -- for people -----------------------------------------------------------------------------------------------------


def _print(one: Estimate, *, is_first: bool) -> None:
    columns = [
        Column("DEVICE"),
        Column("BY"),
        Column("WEIGHTS", "right"),
        Column("KV CACHE", "right"),
        Column("COMPUTE", "right", min_width=60),
        Column("OTHER", "right", min_width=70),
        Column("TOTAL", "right"),
        Column("BUDGET", "right", min_width=80),
    ]
    rows = [row for device in one.devices for row in _rows(device)]
    slots = f"{one.slots} {'request' if one.slots == 1 else 'requests'} at once"
    if not is_first:
        print_line("")
    print_line(f"{one.model}: {one.description}, {one.n_ctx:,} tokens of context, {slots}")
    print_table(console(), columns, rows)
    if one.engine:
        print_line(f"engine: {one.engine}")
    if any(device.correction_bytes for device in one.devices):
        print_line("corrected: by what its workers were seen to take, or were said to by llama.cpp before they started")
    for line in (*reach(one.limits, one), one.fit):
        print_line(line)


def _rows(device: DeviceEstimate) -> list[list[str]]:
    """What the formulas say of a device, what the engine says, what was seen, and what is reckoned with."""
    parts = [device.weights_bytes, device.kv_bytes, device.compute_bytes]
    worked_out = device.total_bytes - device.correction_bytes
    found: list[tuple[str, list[str], int]] = []
    if worked_out:
        found.append(("formulas", [*map(size, [*parts, device.other_bytes])], worked_out))
    if device.engine is not None:
        said = (device.engine.weights_bytes, device.engine.kv_bytes, device.engine.compute_bytes, device.other_bytes)
        found.append(("engine", [*map(size, said)], device.engine.total_bytes))
    if device.measured_bytes is not None:
        found.append(("measured", ["-"] * 4, device.measured_bytes))
    if device.correction_bytes:
        other = device.other_bytes + device.correction_bytes
        found.append(("corrected", [*map(size, [*parts, other])], device.total_bytes))
    return [[device.name, by, *said, size(total), size(device.budget_bytes)] for by, said, total in found]


def reach(limits: Limits, one: Estimate) -> list[str]:
    """Sentences about how far the budgets reach."""
    lines = []
    if limits.n_ctx is not None:
        said = f"largest context that fits: {_context(limits.n_ctx, one)}"
        if limits.n_ctx_on_gpus is not None:
            said += f"; with every layer on GPUs: {_context(limits.n_ctx_on_gpus, one)}"
        lines.append(said)
    if limits.n_gpu_layers is not None:
        lines.append(f"most layers on GPUs with {one.n_ctx:,} tokens: {limits.n_gpu_layers} of {one.layers}")
    return lines


def _context(n_ctx: int, one: Estimate) -> str:
    if n_ctx == 0:
        return "none"
    # Contexts are looked for in steps, and the last one may be a part of a step.
    is_all = n_ctx + N_CTX_STEP > one.n_ctx_train
    return f"{one.n_ctx_train:,} tokens, all it was trained for" if is_all else f"{n_ctx:,} tokens"
