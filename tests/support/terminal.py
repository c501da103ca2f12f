"""A command in a real terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading


class Terminal:
    """A command in a terminal of its own, as a person has it."""

    def __init__(self, *argv: str) -> None:
        self._ours, theirs = pty.openpty()
        environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "swapd", *argv], stdin=theirs, stdout=theirs, stderr=theirs, env=environ
        )
        os.close(theirs)
        self.text = ""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 4096)
            except OSError:
                return
            with self._news:
                self.text += data.decode("utf-8", "replace")
                self._news.notify_all()

    def wait_for(self, words: str, times: int = 1) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.text.count(words) >= times, timeout=30), self.text

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        code = self.process.wait(30)
        self._reader.join(30)
        os.close(self._ours)
        return code
