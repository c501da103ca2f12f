"""The command `swapd`: parses, prints, exits. Must never decide anything that outlives the command.

Exit codes: 0 done, 1 the request failed, 2 the command line is wrong.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from swapd.cli.output import CommandError, complain
from swapd.cli.parser import build_parser
from swapd.config.problems import ConfigError
from swapd.errors import StartupError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong usage raises `SystemExit(2)`, as argparse does."""
    arguments = build_parser(os.environ).parse_args(argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
    except ConfigError as error:
        # Without a prefix: editors and CI read FILE:LINE at the beginning of a line.
        complain(str(error), prefix="")
        return 1
    except (CommandError, StartupError) as error:
        complain(str(error))
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 1
    except BrokenPipeError:
        # The reader has seen enough, as in `swapd ps | head -1`. Nothing may be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
