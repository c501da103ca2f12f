"""The guard's one loop: the program's output, its end, the daemon's wishes and the question whether it is ready.

Owns the order of things. It waits in one place only, so that the end of the daemon is heard at any time; whatever ends
the loop, everything that the program has started is dead when `run` returns.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import time
from typing import Any

from backends.control import Buffers as BuffersTold
from backends.control import Failed, FailureKind, Loading, Message, Progress, Ready, encode
from backends.guard import processes
from backends.guard.output import Buffers, Output
from backends.guard.output import Progress as ProgressReader
from backends.guard.plan import PID_MACRO, GuardPlan
from backends.guard.probe import Probe, is_taken
from backends.guard.watch import Watch

CHECK_EVERY_S = 0.1
TELL_EVERY_S = 0.25
READ_BYTES = 64 * 1024
EXIT_NOT_STARTED = 1
LAST_OUTPUT_S = 1.0


class Guard:
    """One program's life. `run` is all of it."""

    def __init__(self, plan: GuardPlan, control: socket.socket) -> None:
        self._plan = plan
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._output_fd, self._write_fd = os.pipe()
        self._output = Output()
        self._progress = ProgressReader(plan.progress)
        self._buffers = Buffers(plan.buffers)
        self._own_question = f"GET {plan.check} ".encode()
        self._pid = 0
        self._over = False
        self._stopper: int | None = None
        self._asked_to_end = False
        self._kill_at_s = float("inf")
        self._ready = False
        self._probe: Probe | None = None
        self._probe_at_s = 0.0
        self._news = False
        self._part: float | None = None
        self._works = 0
        self._tell_at_s = 0.0
        self._work = Watch(plan.address, plan.watch, plan.watch_while, self._selector, self._note_work)
        self._input_fds = os.pipe() if plan.stop_input else (subprocess.DEVNULL, -1)

    def run(self) -> int:
        """Returns the program's exit code, or less than 0 for the signal that ended it."""
        processes.become_subreaper()
        self._watch_signals()
        self._watch(self._control, self._hear_daemon)
        os.set_blocking(self._output_fd, False)
        self._watch(self._output_fd, self._read_output)
        try:
            if self._plan.tcp is not None and is_taken(self._plan.tcp):
                raise OSError(f"address in use: something else listens at {self._plan.tcp.authority}")
            self._pid = processes.start(self._plan.argv, self._plan.env, self._write_fd, self._input_fds[0])
        except (OSError, ValueError) as error:
            self._say(Failed(FailureKind.FAILED, f"{self._plan.argv[0]} was not started: {error}"))
            return EXIT_NOT_STARTED
        try:
            while not self._over:
                self._turn()
        finally:
            code = self._end()
        return code

    # -- the loop ----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._kill_at_s or processes.has_ended(self._pid):
            self._over = True
            return
        if not self._ready:
            self._ask_whether_ready(now_s)
        else:
            self._work.ask(now_s)
        self._tell_news(now_s)
        self._wait(min(self._next_s(), self._kill_at_s) - now_s)

    def _next_s(self) -> float:
        """When something is to be done that nothing wakes this process for."""
        times = [self._tell_at_s] if self._news else []
        if not self._ready:
            times.append(self._probe_at_s if self._probe is None else self._probe.deadline_s)
        else:
            times.append(self._work.next_s)
        return min(times, default=float("inf"))

    def _wait(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(None if timeout_s == float("inf") else max(0.0, timeout_s)):
            key.data()

    def _watch(self, source: Any, react: Any, events: int = selectors.EVENT_READ) -> None:
        self._selector.register(source, events, react)

    # -- the daemon --------------------------------------------------------------------------------------------

    def _hear_daemon(self) -> None:
        """What it writes has no meaning; when its end is closed, everything here is to end at once."""
        try:
            if self._control.recv(4096):
                return
        except OSError:
            pass
        self._selector.unregister(self._control)
        self._over = True

    def _watch_signals(self) -> None:
        """A signal wakes the loop: the end of a child, and SIGTERM, which asks the program to end."""
        waker, woken = socket.socketpair()
        waker.setblocking(False)
        woken.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._waker = waker
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: None)
        # The terminal's Ctrl-C reaches whole process groups; when to stop is the daemon's decision.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        def react() -> None:
            if signal.SIGTERM in woken.recv(READ_BYTES):
                self._ask_to_end()

        self._watch(woken, react)

    def _say(self, message: Message) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(encode(message))

    def _tell_news(self, now_s: float) -> None:
        if not self._news or now_s < self._tell_at_s:
            return
        self._news, self._tell_at_s = False, now_s + TELL_EVERY_S
        self._say(Progress(self._works) if self._ready else Loading(self._part))

    # -- the program -------------------------------------------------------------------------------------------

    def _ask_whether_ready(self, now_s: float) -> None:
        if self._probe is not None and now_s >= self._probe.deadline_s:
            self._close_probe(now_s)
        if self._probe is None and now_s >= self._probe_at_s:
            try:
                self._probe = Probe(self._plan.address, self._plan.check, now_s)
            except OSError:
                self._probe_at_s = now_s + CHECK_EVERY_S
                return
            self._watch(self._probe.socket, self._step_probe, self._probe.waits_for)

    def _step_probe(self) -> None:
        probe = self._probe
        assert probe is not None
        ready = probe.step()
        if ready is None:
            self._selector.modify(probe.socket, probe.waits_for, self._step_probe)
            return
        self._close_probe(time.monotonic())
        if ready:
            self._ready, self._news = True, False
            if sizes := self._buffers.device_bytes():
                self._say(BuffersTold(sizes))
            self._say(Ready(self._plan.n_ctx, self._plan.slots))

    def _close_probe(self, now_s: float) -> None:
        assert self._probe is not None
        self._selector.unregister(self._probe.socket)
        self._probe.close()
        self._probe, self._probe_at_s = None, now_s + CHECK_EVERY_S

    def _read_output(self) -> None:
        """Pass on what the program prints. Any line is progress of a load, but for those that the guard causes."""
        try:
            data = os.read(self._output_fd, READ_BYTES)
        except BlockingIOError:
            return
        shown, lines = self._output.feed(data)
        _print(shown)
        if not self._ready:
            self._buffers.read(lines)
        told, part = self._progress.find(lines)
        self._works += told
        if told:
            self._work.rouse()
        self._part = self._part if part is None else part
        self._news |= told if self._ready else any(self._own_question not in line for line in lines)

    def _note_work(self) -> None:
        self._works += 1
        self._news = True

    def _ask_to_end(self) -> None:
        if self._kill_at_s != float("inf"):
            return
        self._kill_at_s = time.monotonic() + self._plan.stop_s
        if self._plan.stop_input:
            with contextlib.suppress(OSError):
                os.write(self._input_fds[1], self._plan.stop_input.encode())
        if not self._start_stopper():
            processes.signal_group(self._pid, signal.SIGTERM)

    def _start_stopper(self) -> bool:
        """Run `stop_argv`, once. False if there is none to run."""
        if self._asked_to_end or not self._plan.stop_argv:
            return False
        self._asked_to_end = True
        argv = [word.replace(PID_MACRO, str(self._pid)) for word in self._plan.stop_argv]
        try:
            self._stopper = processes.start(argv, self._plan.env, self._write_fd)
        except (OSError, ValueError) as error:
            _print(f"guard: {argv[0]} was not started: {error}\n".encode())
            return False
        return True

    def _end(self) -> int:
        """Nothing of the program may be left. What it has started elsewhere (a container) only `stop_argv` reaches."""
        if self._probe is not None:
            self._close_probe(time.monotonic())
        self._work.close()
        if self._start_stopper():
            self._kill_at_s = time.monotonic() + self._plan.stop_s
        code = processes.kill_all(self._pid, spared=self._stopper)
        while self._stopper is not None and processes.is_child(self._stopper) and time.monotonic() < self._kill_at_s:
            self._wait(CHECK_EVERY_S)
        if self._stopper is not None:
            processes.kill_all(None)
        os.close(self._write_fd)
        self._print_rest()
        return code

    def _print_rest(self) -> None:
        os.set_blocking(self._output_fd, False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._output_fd, READ_BYTES):
                _print(self._output.feed(data)[0])
        _print(self._output.rest())


def _print(data: bytes) -> None:
    """To the daemon, which always reads; without it there is nobody to tell."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(1, data) :]
