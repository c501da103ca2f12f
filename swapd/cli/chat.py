"""`swapd chat`: a conversation with one model in a terminal, or one answer in a pipe.

Owns what is printed of an answer. What a model says never reaches the terminal as an escape sequence.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from contextlib import aclosing, suppress

from swapd.cli.output import CommandError, complain
from swapd.cli.progress import showing
from swapd.cli.remote import ask
from swapd.client import Client, Said

MAX_STDIN_CHARS = 8 * 1024 * 1024
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_DIM, _PLAIN = "\x1b[2m", "\x1b[22m"
HELP = "/reset forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer"

Messages = list[dict[str, str]]


def chat(arguments: argparse.Namespace) -> int:
    """One answer if there is a prompt, on the command line or in a pipe; else a conversation."""
    messages: Messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
    prompt = " ".join(arguments.prompt)
    if not sys.stdin.isatty():
        given = sys.stdin.read(MAX_STDIN_CHARS)
        prompt = f"{prompt}\n\n{given}" if prompt else given
    if not prompt.strip() and not sys.stdin.isatty():
        raise CommandError("there is nothing to say: no prompt on the command line, and none in the standard input")
    if prompt.strip():
        ask(arguments, lambda client: _answer(client, arguments.model, [*messages, _said("user", prompt)]))
        return 0
    return _converse(arguments, messages)


def _converse(arguments: argparse.Namespace, beginning: Messages) -> int:
    # Only its presence counts: lines can be edited then, and earlier ones be had again.
    with suppress(ImportError):
        import readline  # noqa: F401
    sys.stderr.write(f"{arguments.model}: {HELP}\n")
    messages = list(beginning)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            sys.stdout.write("\n")
            return 0
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            continue
        match line:
            case "":
                continue
            case "/exit" | "/quit":
                return 0
            case "/reset":
                messages = list(beginning)
                continue
            case "/help":
                sys.stderr.write(f"{HELP}\n")
                continue
        turn = [*messages, _said("user", line)]
        try:
            answer = ask(arguments, lambda client, turn=turn: _answer(client, arguments.model, turn))  # type: ignore[misc]
        except CommandError as error:
            complain(str(error))
            continue
        except (KeyboardInterrupt, asyncio.CancelledError):
            complain("stopped")
            continue
        messages = [*turn, _said("assistant", answer)]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


async def _answer(client: Client, model: str, messages: Messages) -> str:
    """Print one answer as it comes, reasoning dim and only on a terminal; returns the answer alone."""
    said: list[str] = []
    shows_thoughts = sys.stdout.isatty()
    printer = _Printer(shows_thoughts)
    async with aclosing(client.converse(model, messages)) as pieces:
        try:
            async with showing(client, model):
                first = await anext(pieces, None)
            if first is not None:
                said += printer.show(first)
            async for piece in pieces:
                said += printer.show(piece)
        finally:
            # Also when it breaks off or is stopped: whatever follows must not be dim, or on the same line.
            printer.end()
    return "".join(said)


class _Printer:
    """Writes pieces to standard output."""

    def __init__(self, shows_thoughts: bool) -> None:
        self._shows_thoughts = shows_thoughts
        self._thinking = False
        self._is_in_line = False

    def show(self, piece: Said) -> list[str]:
        """The text of the answer in it, which is printed; thoughts are none of it."""
        if piece.is_thought:
            if self._shows_thoughts:
                if not self._thinking:
                    sys.stdout.write(_DIM)
                    self._thinking = True
                self._write(piece.text)
            return []
        if self._thinking:
            sys.stdout.write(f"{_PLAIN}\n\n")
            self._thinking = False
        self._write(piece.text)
        return [piece.text]

    def end(self) -> None:
        """Leave the terminal as it was, at the beginning of a line."""
        sys.stdout.write((_PLAIN if self._thinking else "") + ("\n" if self._is_in_line else ""))
        sys.stdout.flush()
        self._thinking = self._is_in_line = False

    def _write(self, text: str) -> None:
        shown = plain(text)
        if shown:
            self._is_in_line = not shown.endswith("\n")
        sys.stdout.write(shown)
        sys.stdout.flush()


def plain(text: str) -> str:
    """The text with every control but tabs and line breaks left out."""
    return _CONTROLS.sub("", text)
