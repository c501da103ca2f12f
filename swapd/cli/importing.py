"""The command `import`: another program's configuration in, swapd's out."""

from __future__ import annotations

import argparse
import os
import sys

from backends.registry import installed_backends
from swapd.cli.output import CommandError, complain
from swapd.config.load import parse
from swapd.config.problems import printable
from swapd.importing.llama_swap import import_llama_swap


def import_file(arguments: argparse.Namespace) -> int:
    """Write the configuration, and say on standard error what it lacks."""
    backends = installed_backends()
    path, output = arguments.file, arguments.output
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    imported = import_llama_swap(text, path, backends, os.environ)
    # What is written must never be refused by the one that wrote it.
    parse(imported.text, output or path, backends)
    for remark in imported.remarks:
        complain(printable(f"{path}:{remark.line}: {remark.key}: {remark.message}"), prefix="")
    if output is None:
        sys.stdout.write(imported.text)
    else:
        try:
            with output.open("x", encoding="utf-8") as file:
                file.write(imported.text)
        except FileExistsError as error:
            raise CommandError(f"{output} is there already; name a new file") from error
        except OSError as error:
            raise CommandError(f"{output} cannot be written: {error.strerror}") from error
    commented = f", {imported.dropped} more as comments" if imported.dropped else ""
    where = f"{output}; now `swapd check {output}`" if output is not None else "the standard output"
    complain(f"{imported.models} models{commented}, {len(imported.remarks)} remarks, written to {where}")
    return 0
