"""The worker program's entry: read the command line, tie the process to the daemon, then do the slow things.

Owns the command line and the exit codes. The daemon builds the former, and owns the socket's directory and the
other end of the control channel. Must not import anything slow before the lifeline is up.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backends.base import Offload, decode_path
from backends.control import Failed, FailureKind
from backends.llama_cpp import lifeline
from backends.llama_cpp.program import PROGRAM, SPARE_FLAG
from backends.llama_cpp.reports import Reporter
from backends.llama_cpp.settings import LlamaCppSettings

EXIT_LOAD_FAILED = 1
LAST_WORDS_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """The command line, decoded."""

    socket_path: Path
    control_fd: int
    model_id: str
    settings: LlamaCppSettings
    offload: Offload
    portable: bool
    proven: bool


def parse(argv: Sequence[str]) -> Order:
    """Read the command line the daemon built. Exits with code 2 on any other."""
    parser = argparse.ArgumentParser(prog="python -m backends.llama_cpp", description="A worker of swapd.")
    parser.add_argument("--socket", type=Path, required=True, help="path of the Unix socket to serve on")
    parser.add_argument("--control-fd", type=int, required=True, help="inherited end of the control channel")
    parser.add_argument("--model-id", required=True, help="the name answers carry")
    parser.add_argument("--settings", required=True, help="model keys as JSON")
    parser.add_argument("--offload", required=True, help="placement as JSON")
    parser.add_argument("--portable", action="store_true", help="no repacked weights: for CPUs that claim too much")
    parser.add_argument("--proven", action="store_true", help="it was served before: a short warm-up will do")
    given = parser.parse_args(argv)
    try:
        settings = msgspec.json.decode(given.settings, type=LlamaCppSettings, dec_hook=decode_path)
        offload = msgspec.json.decode(given.offload, type=Offload)
    except msgspec.MsgspecError as error:
        parser.error(str(error))
    return Order(given.socket, given.control_fd, given.model_id, settings, offload, given.portable, given.proven)


def main(argv: Sequence[str]) -> int:
    """Run the worker; the result is its exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    if argv[:1] == [SPARE_FLAG]:
        control = _attached(int(argv[1]))
        told = _wait_for_order()
        if told is None:
            return 0
        order = parse(told)
    else:
        order = parse(argv)
        control = _attached(order.control_fd)
    reporter = Reporter(control)
    # A debugger that ggml attaches for a backtrace would hold up the end of a process that is to end.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    failure = _run(order, reporter)
    if failure is not None:
        reporter.send(failure)
    reporter.drain(LAST_WORDS_S)
    return EXIT_LOAD_FAILED if failure else 0


def _attached(control_fd: int) -> socket.socket:
    control = socket.socket(fileno=control_fd)
    lifeline.attach(control)
    return control


def _wait_for_order() -> Sequence[str] | None:
    """Do what is the same for every worker, then wait to be told which one to be. None if nobody wants one."""
    from backends.llama_cpp import worker

    worker.rehearse()
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return None
    argv = msgspec.json.decode(line, type=list[str])
    return argv[len(PROGRAM) :]


def _run(order: Order, reporter: Reporter) -> Failed | None:
    """Load and serve until told to stop. Returns why there was nothing to serve, if so."""
    try:
        from backends.llama_cpp import worker
    except Exception as error:
        log.exception("the worker's libraries do not load")
        return Failed(FailureKind.FAILED, f"the worker's libraries do not load: {error}")
    return worker.run(
        reporter,
        socket_path=order.socket_path,
        model_id=order.model_id,
        settings=order.settings,
        offload=order.offload,
        portable=order.portable,
        proven=order.proven,
    )


def run_and_leave(argv: Sequence[str]) -> None:
    """Run the worker and end the process, whatever its threads and libraries still hold."""
    code = lifeline.EXIT_DEFECT
    try:
        code = main(argv)
    except Exception:
        log.exception("the worker failed")
    lifeline.leave(code)


if __name__ == "__main__":
    run_and_leave(sys.argv[1:])
