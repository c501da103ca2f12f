"""`swapd serve` and `swapd demo` as real processes, with the real daemon."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.running_pool import gone

SWAPD = (sys.executable, "-m", "swapd")
TIMEOUT_S = 100


def own_environment(directory: Path, **more: str) -> dict[str, str]:
    """State, runtime and temporary directories below `directory`, so that nothing else is seen or touched."""
    for name in ("tmp", "run"):
        (directory / name).mkdir(mode=0o700, exist_ok=True)
    own = {"TMPDIR": str(directory / "tmp"), "HOME": str(directory), "XDG_RUNTIME_DIR": str(directory / "run")}
    dropped = ("SWAPD_", "XDG_", "NOTIFY_", "STATE_DIRECTORY", "RUNTIME_DIRECTORY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, **own, **more}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a shorter path than pytest's own: Unix sockets' names are bounded."""
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        yield Path(directory)


@contextmanager
def serving(place: Path, *argv: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A daemon that has said READY; killed with the scope if the test has not stopped it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place / "notify"))
        manager.settimeout(60)
        environment = own_environment(place, NOTIFY_SOCKET=str(place / "notify"))
        daemon = subprocess.Popen([*SWAPD, "serve", *argv], env=environment, stderr=subprocess.PIPE)
        with daemon:
            try:
                while not manager.recv(4096).startswith(b"READY=1"):
                    pass
                yield daemon, environment
            finally:
                if daemon.poll() is None:
                    daemon.kill()
                daemon.communicate()


def fails(environment: dict[str, str], *argv: str) -> str:
    """Run a command that must fail with exit code 1 and one line, and return that line."""
    done = subprocess.run(
        [*SWAPD, *argv], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]  # logs are JSON here
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_an_occupied_port_is_one_line(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = fails(own_environment(place), "serve", "--demo", "--listen", address)
    assert line == f"swapd: cannot listen on {address}: Address already in use"


def test_a_standard_input_that_cannot_end_is_one_line(place: Path) -> None:
    line = fails(own_environment(place), "serve", "--demo", "--listen", f"unix:{place}/http", "--stop-at-eof")
    assert line == "swapd: cannot wait for the end of the standard input: Operation not permitted"


def test_an_unwritable_runtime_directory_is_one_line(place: Path) -> None:
    (place / "file").write_text("")
    config = place / "c.yaml"
    config.write_text("server: {runtime_dir: file/run, state_dir: state}\nmodels: {}\n")
    line = fails(own_environment(place), "serve", "--config", str(config))
    assert line.startswith("swapd: server.runtime_dir: cannot make ")


def test_a_second_daemon_on_the_same_state_is_told_who_holds_it(place: Path) -> None:
    config = place / "c.yaml"
    config.write_text(f"server: {{listen: 'unix:{place}/http', state_dir: state}}\nmodels: {{}}\n")
    with serving(place, "--config", str(config)) as (daemon, environment):
        second = ("serve", "--config", str(config), "--listen", f"unix:{place}/other")
        assert f"another swapd (pid {daemon.pid}) already uses " in fails(environment, *second)


def test_the_client_commands_find_a_served_configuration_by_its_file(place: Path, small_model: Path) -> None:
    config = place / "c.yaml"
    config.write_text(
        f"server: {{listen: 'unix:{place}/http', state_dir: state}}\n"
        f"models:\n  org/tiny:\n    path: {small_model}\n    n_ctx: 512\n    n_parallel: 1\n"
    )
    with serving(place, "--config", str(config)) as (daemon, environment):

        def run(*argv: str) -> str:
            command = [*SWAPD, *argv, "--config", str(config)]
            return subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
            ).stdout

        assert re.fullmatch(r"org/tiny is ready, loaded in [0-9.]+ s\n", run("load", "org/tiny"))
        assert re.search(r"org/tiny +ready", run("ps"))
        assert run("unload", "org/tiny") == "org/tiny is unloaded\n"
        assert run("logs", "org/tiny") == "".join(line.partition(" | ")[2] + "\n" for line in run("logs").splitlines())
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(TIMEOUT_S) == 0


def test_the_demo_swaps_twice_and_leaves_nothing_behind(place: Path) -> None:
    done = subprocess.run(
        [*SWAPD, "demo"], env=own_environment(place), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    loaded = re.findall(r"^  loaded (\S+) in", done.stdout, re.MULTILINE)
    evicted = re.findall(r"^  evicted (\S+): .+", done.stdout, re.MULTILINE)
    assert loaded == ["smollm2-a", "smollm2-b", "smollm2-a"]
    assert evicted == ["smollm2-a", "smollm2-b"]
    assert len(re.findall(r"^smollm2-\w answers: \w+", done.stdout, re.MULTILINE)) == 3
    assert list((place / "tmp").iterdir()) == []


async def test_a_killed_demo_takes_its_daemon_and_worker_along(place: Path) -> None:
    demo = await asyncio.create_subprocess_exec(
        *SWAPD, "demo", env=own_environment(place), stdout=asyncio.subprocess.PIPE
    )
    assert demo.stdout is not None
    try:
        async with asyncio.timeout(60):
            await demo.stdout.readuntil(b" answers: ")
            await demo.stdout.readexactly(1)
        children = [child.pid for child in psutil.Process(demo.pid).children(recursive=True)]
        assert len(children) >= 2
    finally:
        demo.kill()
        await demo.wait()
    await asyncio.wait_for(asyncio.gather(*(gone(pid) for pid in children)), 20)
