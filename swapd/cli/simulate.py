"""The command that replays a trace of requests against swapd's scheduler and simpler ones, in virtual time."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from backends.base import Backend
from backends.registry import installed_backends
from swapd.cli.output import Column, CommandError, console, duration, print_json, print_line, print_table
from swapd.cli.places import config_path
from swapd.client import Client, DaemonError, daemon_address
from swapd.config.load import load
from swapd.config.schema import Config
from swapd.core.spec import DeviceSpec, ModelSpec
from swapd.pool import catalog
from swapd.pool.devices import budgets, discover
from swapd.pool.learned import FILE_NAME, Lesson, read_lessons
from swapd.simulate.baselines import BASELINES
from swapd.simulate.replay import core, replay
from swapd.simulate.report import Figures
from swapd.simulate.shell import Decide
from swapd.simulate.synthetic import TrafficError, synthesize, traffic
from swapd.simulate.trace import Trace, TraceError, read
from swapd.simulate.work import Job, LoadTime, jobs, load_times, with_size
from swapd.system import directories

CORE = "swapd"
"""The name of the daemon's own policy."""


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """How long one model's loads are taken to last."""

    id: str
    load_s: float
    source: str
    """`daemon`, `trace`, `learned` or `size`."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints."""

    requests: int
    clients: int
    duration_s: float
    """From the first arrival to the last."""
    service_s: float
    """Summed over all requests."""
    seed: int | None
    """Of synthetic traffic."""
    loads: tuple[LoadReport, ...]
    policies: tuple[Figures, ...]


def simulate(arguments: argparse.Namespace) -> int:
    """A table with a row per policy."""
    backends = installed_backends()
    path = config_path(arguments.config, os.environ, Path.home(), Path.exists)
    if path is None:
        raise CommandError("there is no configuration to take the models from; name one with --config")
    config = load(path, backends)
    devices = budgets(config.memory, discover(backends))
    models = _models(config, backends, devices)
    seed = _seed(arguments.synthetic, arguments.seed)
    trace = _trace(arguments.trace, arguments.synthetic, models, seed)
    models = [with_size(spec, trace.models.get(spec.id)) for spec in models]
    times = load_times(models, trace.models, _learned(arguments.url))
    report = _report(devices, models, jobs(trace, models), times, seed)
    if arguments.json:
        print_json(report)
    else:
        _print(report)
    return 0


def _seed(order: str | None, given: int | None) -> int | None:
    if order is not None:
        return secrets.randbelow(1 << 31) if given is None else given
    if given is not None:
        raise CommandError("--seed is for --synthetic traffic; a trace is replayed as it is")
    return None


def _models(config: Config, backends: Mapping[str, Backend], devices: Sequence[DeviceSpec]) -> list[ModelSpec]:
    """The configured models as the daemon would schedule them, its corrections of their sizes included."""
    state_dir = directories.state_dir(config.server.state_dir, os.environ, Path.home())
    lessons = read_lessons(state_dir / FILE_NAME)
    names = [device.name for device in devices]
    return [
        catalog.inspect(model, config, backends[model.backend], names, lambda key: lessons.get(key, Lesson())).spec
        for model in config.models.values()
    ]


def _trace(file: Path | None, order: str | None, models: Sequence[ModelSpec], seed: int | None) -> Trace:
    try:
        if order is not None:
            assert seed is not None
            usable = [spec.id for spec in models if spec.costs is not None]
            if not usable:
                raise CommandError("no configured model has a usable file; `swapd check` says why")
            return synthesize(traffic(order), usable, seed)
        assert file is not None
        with file.open("rb") as lines:
            return read(lines)
    except TraceError as error:
        raise CommandError(f"{file}: {error}") from None
    except TrafficError as error:
        raise CommandError(f"--synthetic {error}") from None
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}") from None


def _learned(url: str | None) -> dict[str, float]:
    """Seconds of each model's last load, as a running daemon has them; nothing without one."""
    if url is None:
        return {}

    async def ask() -> dict[str, float]:
        async with Client(daemon_address(url)) as client:
            return {one.id: one.load_s for one in (await client.status()).models if one.load_s is not None}

    try:
        return asyncio.run(ask())
    except DaemonError as error:
        raise CommandError(str(error)) from error


def _report(
    devices: Sequence[DeviceSpec],
    models: Sequence[ModelSpec],
    work: Sequence[Job],
    times: Mapping[str, LoadTime],
    seed: int | None,
) -> Report:
    load_s = {model_id: time.load_s for model_id, time in times.items()}
    policies: list[tuple[str, Decide]] = [(CORE, core()), *((baseline.name, baseline()) for baseline in BASELINES)]
    asked = {job.model_id for job in work}
    return Report(
        requests=len(work),
        clients=len({job.client for job in work}),
        duration_s=work[-1].at_s if work else 0.0,
        service_s=sum(job.service_s for job in work),
        seed=seed,
        loads=tuple(
            LoadReport(id=name, load_s=time.load_s, source=time.source) for name, time in times.items() if name in asked
        ),
        policies=tuple(replay(name, decide, devices, models, work, load_s) for name, decide in policies),
    )


# -- for people -----------------------------------------------------------------------------------------------------


def _print(report: Report) -> None:
    seed = "" if report.seed is None else f"; seed {report.seed}"
    print_line(
        f"{report.requests:,} requests by {report.clients} clients over {duration(report.duration_s)}, "
        f"{duration(report.service_s)} of service{seed}"
    )
    columns = [
        Column("POLICY"),
        Column("WAIT P50", "right"),
        Column("P95", "right"),
        Column("WORST", "right"),
        Column("LOADS", "right"),
        Column("EVICTIONS", "right", min_width=60),
        Column("SERVED", "right"),
        Column("REFUSED", min_width=70),
        Column("TOKENS", "right", min_width=90),
        Column("BUDGET USE (PEAK)", min_width=100),
    ]
    print_table(console(), columns, [_row(figures) for figures in report.policies])
    for load_time in report.loads:
        print_line(f"{load_time.id}: loads in {duration(load_time.load_s)}, {_SOURCES[load_time.source]}")


_SOURCES = {
    "daemon": "as the daemon has seen",
    "trace": "as the trace says",
    "learned": "as was learned on this machine",
    "size": "guessed from its size",
}


def _row(figures: Figures) -> list[str]:
    uses = [
        f"{use.name} {_share(use.mean_bytes, use.budget_bytes)} ({_share(use.peak_bytes, use.budget_bytes)})"
        for use in figures.devices
        if use.peak_bytes
    ]
    return [
        figures.policy,
        duration(figures.wait_p50_s),
        duration(figures.wait_p95_s),
        duration(figures.wait_worst_s),
        f"{figures.loads:,}",
        f"{figures.evictions:,}",
        f"{figures.served:,}",
        ", ".join(f"{count:,} {kind}" for kind, count in figures.refused.items()) or "-",
        f"{figures.tokens:,}",
        ", ".join(uses) or "-",
    ]


def _share(size_bytes: int, of_bytes: int) -> str:
    return f"{size_bytes / of_bytes:.0%}" if of_bytes else "-"
