"""`swapd completion`: the script that has a shell complete commands, options, and the names of models."""

from __future__ import annotations

import argparse
import os
import sys

import shtab

from swapd.cli.parser import build_parser

MODELS = "_swapd_models"
_BASH = f"""{MODELS}() {{
  local name
  while IFS= read -r name; do
    [[ "$name" == "$1"* ]] && printf '%q\\n' "$name"
  done < <(swapd models 2>/dev/null)
}}"""
"""Not `compgen -W`, which runs what is in `$(...)` in a word: the names are those of whatever daemon answers. Quoted, a
name stays one word of the command that it is put into."""
_FUNCTIONS = {
    "bash": _BASH,
    "zsh": f'{MODELS}() {{ local -a names; names=(${{(f)"$(swapd models 2>/dev/null)"}}); compadd -a names; }}',
}
"""What names models: the daemon if it answers, else the configuration."""


def completion(arguments: argparse.Namespace) -> int:
    """Print the script of one shell."""
    parser = build_parser(os.environ)
    _complete_models(parser)
    script = shtab.complete(parser, shell=arguments.shell, preamble=_FUNCTIONS[arguments.shell])
    sys.stdout.write(f"{script}\n")
    return 0


def _complete_models(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to look at one
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for command in action.choices.values():
                _complete_models(command)
        elif action.metavar == "MODEL":
            action.complete = {"bash": MODELS, "zsh": MODELS}  # type: ignore[attr-defined]
        elif action.metavar is not None and "FILE" in str(action.metavar):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
