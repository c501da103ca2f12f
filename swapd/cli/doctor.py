"""`swapd doctor`: every check in turn, a line each. Gathers what the checks look at."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from importlib import metadata
from pathlib import Path

from rich.text import Text

from backends.registry import installed_backends
from swapd import __version__
from swapd.cli.keys import client_key
from swapd.cli.local import verdicts
from swapd.cli.output import console, print_json
from swapd.cli.places import SYSTEM_CONFIG, config_path
from swapd.client import Client, DaemonError, daemon_address
from swapd.config.access import CREDENTIALS
from swapd.config.load import load
from swapd.config.problems import ConfigError
from swapd.config.schema import Config, Server
from swapd.doctor import installation, machine
from swapd.doctor.findings import Finding, fail, ok, warn
from swapd.observe.logs import escape_controls
from swapd.pool.devices import Machine, discover
from swapd.pool.status import Status
from swapd.system import directories

ROOT = Path("/")
SYSTEMCTL_TIMEOUT_S = 5.0
TOKEN_TIMEOUT_S = 600.0
"""For a model's load and its one token, others' requests before it."""
_MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}


def doctor(arguments: argparse.Namespace) -> int:
    """Print every finding; 1 if one failed."""
    found = []
    for finding in _findings(arguments):
        found.append(finding)
        if not arguments.json:
            _print(finding)
    if arguments.json:
        print_json({"findings": found})
    return 1 if any(finding.grade == "fail" for finding in found) else 0


def _print(finding: Finding) -> None:
    mark, style = _MARKS[finding.grade]
    said = escape_controls(f"{finding.check}: {finding.said}")
    remedy = escape_controls(f"; {finding.remedy}") if finding.remedy else ""
    console().print(Text.assemble((mark, style), f"  {said}{remedy}"), soft_wrap=True)


def _findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    yield from _installed()
    files = list(machine.gpu_files(ROOT))
    yield from files
    drivers = machine.vulkan_drivers(ROOT)
    if drivers is not None:
        yield drivers
    backends = installed_backends()
    yield ok("backends", ", ".join(sorted(backends)))
    there = discover(backends)
    yield from installation.devices(there, expects_gpu=any(one.check != "render nodes" for one in files))
    yield machine.open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    config = yield from _configured(arguments, there)
    yield from _service()
    yield from asyncio.run(_daemon(arguments, config))


def _configured(arguments: argparse.Namespace, there: Machine) -> Generator[Finding, None, Config | None]:
    """The configuration with its models, directories and keys; returns it if it can be read."""
    path, backends = config_path(arguments.config, os.environ, Path.home(), Path.exists), installed_backends()
    if path is None:
        yield warn("configuration", "there is none", f"write {SYSTEM_CONFIG}, or name one with --config")
        return None
    try:
        config = load(path, backends)
    except ConfigError as error:
        for problem in error.problems:
            yield fail("configuration", f"{path}:{problem.line}: {problem.key}: {problem.message}", "mend the file")
        return None
    yield ok("configuration", f"{path}: {len(config.models)} models")
    wrong = verdicts(config, path.read_text(encoding="utf-8-sig"), backends, there)
    for problem in wrong:
        yield fail("model", f"{path}:{problem.line}: {problem.message}", "mend it; the others are served all the same")
    if not wrong and config.models:
        yield ok("models", "every file can be read, and fits the budgets by itself")
    yield from _places(config)
    return config


def _installed() -> Iterator[Finding]:
    yield ok("swapd", __version__)
    yield installation.python(tuple(sys.version_info[:3]))
    try:
        version: str | None = metadata.version(installation.BINDINGS)
    except metadata.PackageNotFoundError:
        version = None
    yield installation.bindings(version, metadata.requires("swapd") or ())


def _places(config: Config) -> Iterator[Finding]:
    server, uid = config.server, os.getuid()
    state = directories.state_dir(server.state_dir, os.environ, Path.home())
    run = directories.runtime_dir(server.runtime_dir, os.environ, Path(tempfile.gettempdir()), uid)
    yield machine.private_directory("state_dir", state, uid)
    yield machine.private_directory("runtime_dir", run, uid)
    if server.keys is not None and not str(server.keys).startswith(CREDENTIALS):
        yield machine.keys_file(server.keys)


def _service() -> Iterator[Finding]:
    """The unit's state, where there is systemd and the unit is known to it."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return
    try:
        said = subprocess.run(
            (systemctl, "show", "swapd.service", "--property=LoadState,ActiveState,UnitFileState"),
            capture_output=True,
            text=True,
            timeout=SYSTEMCTL_TIMEOUT_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return
    state = dict(line.partition("=")[::2] for line in said.splitlines())
    if state.get("LoadState") != "loaded":
        return
    active, enabled = state.get("ActiveState", "?"), state.get("UnitFileState", "?")
    if active == "failed":
        yield fail("service", "swapd.service has failed", "see why: journalctl -u swapd -e")
    else:
        yield ok("service", f"swapd.service is {active}, {enabled}")


async def _daemon(arguments: argparse.Namespace, config: Config | None) -> list[Finding]:
    """The addresses if nobody answers there; else the daemon, and a token of each of its models."""
    listen = Server().listen if config is None else config.server.listen
    at = daemon_address(arguments.url or listen[0])
    async with Client(at, client_key(arguments.key_file, os.environ)) as client:
        try:
            status = await client.status()
        except DaemonError as error:
            if "no daemon answers" in str(error) and arguments.url is None:
                return [machine.address(text) for text in listen]
            return [fail("daemon", str(error), "start it, give a key with --key-file, or see who listens there")]
        found = [_version(status)]
        if status.config.error is not None:
            found.append(fail("daemon", f"it keeps an older configuration: {status.config.error}", "mend the file"))
        if arguments.no_tokens:
            return found
        if len(status.models) > 1:
            sys.stderr.write("each model is asked for a token now, which swaps them in turn\n")
        return [*found, *[await _token(client, model.id) for model in status.models]]


def _version(status: Status) -> Finding:
    if status.version != __version__:
        remedy = "restart it: systemctl restart swapd"
        return warn("daemon", f"it runs {status.version}, and {__version__} is installed", remedy)
    return ok("daemon", f"it answers, {len(status.models)} models")


async def _token(client: Client, model: str) -> Finding:
    """One token of a model, which is loaded for it if need be."""
    began_s = time.monotonic()
    try:
        able = await client.able(model)
        if "chat" not in able:
            return warn("token", f"{model}: not asked, it does not chat", "ask it by what it is for")
        async with asyncio.timeout(TOKEN_TIMEOUT_S):
            async for _ in client.chat(model, "Hi", max_tokens=1):
                pass
    except TimeoutError:
        return fail("token", f"{model}: none within {TOKEN_TIMEOUT_S:g} s", f"see `swapd logs {model}` and `swapd ps`")
    except DaemonError as error:
        return fail("token", f"{model}: {error}", f"see `swapd logs {model}`")
    return ok("token", f"{model}: after {time.monotonic() - began_s:.1f} s")
