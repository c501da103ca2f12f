"""API keys at the command line: making one, and finding the one to send.

Owns the only place where a key is printed. Must never write a key anywhere else than on standard output.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from swapd.cli.output import CommandError, print_line
from swapd.config.keys import KEY_BYTES, KEY_PREFIX, ApiKey, Scope, digest, entry_text, parse_date, parse_keys
from swapd.config.problems import ConfigError
from swapd.config.text_file import read_text

FILE_MODE = 0o644
"""Of a new file. There are only hashes in it, and the service's user must be able to read it."""
MAX_KEY_CHARS = 1024


def new(arguments: argparse.Namespace) -> int:
    """Make a key. Standard output has the key alone when its entry goes to a file."""
    secret = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    entry = entry_text(_key(arguments, secret))
    try:
        parse_keys(entry, Path("entry"))
    except ConfigError as error:
        raise CommandError(error.problems[0].message) from None
    if arguments.file is None:
        print_line(secret)
        sys.stderr.write("This key is not shown again. Its entry in the file of server.keys:\n")
        sys.stderr.flush()
        print_line("")
        sys.stdout.write(entry)
        return 0
    _append(arguments.file, entry)
    print_line(secret)
    return 0


def _key(arguments: argparse.Namespace, secret: str) -> ApiKey:
    """The entry as it was asked for; its limits are checked by reading it."""
    known = [scope.value for scope in Scope]
    for scope in arguments.scope:
        if scope not in known:
            raise CommandError(f"--scope {scope}: must be one of {', '.join(known)}")
    fields: dict[str, object] = {
        "priority": arguments.priority,
        "weight": arguments.weight,
        "per_user": arguments.per_user or None,
        "structured": False if arguments.no_structured else None,
        "max_requests": arguments.max_requests,
        "requests_per_minute": arguments.requests_per_minute,
        "tokens_per_minute": arguments.tokens_per_minute,
        "models": tuple(dict.fromkeys(arguments.model)) or None,
        "scopes": tuple(dict.fromkeys(Scope(scope) for scope in arguments.scope)) or None,
    }
    if arguments.expires is not None:
        try:
            fields["expires"] = parse_date(arguments.expires)
        except ValueError as error:
            raise CommandError(f"--expires {arguments.expires}: {error}") from None
    given = {name: value for name, value in fields.items() if value is not None}
    return msgspec.structs.replace(ApiKey(name=arguments.name, digest=digest(secret)), **given)


def _append(path: Path, entry: str) -> None:
    """Add an entry to a file that stays valid by it, or leave the file alone."""
    try:
        text = read_text(path)[0] if path.exists() else ""
    except ConfigError as error:
        raise CommandError(str(error)) from None
    glue = "" if not text or text.endswith("\n") else "\n"
    parse_keys(text + glue + entry, path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(glue + entry)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from None


def client_key(key_file: Path | None, environ: Mapping[str, str]) -> str | None:
    """The key to send to the daemon: of the file, else of that in `SWAPD_KEY_FILE`, else `SWAPD_API_KEY`, else none.

    Raises `CommandError` for a file or a variable that holds none.
    """
    if key_file is None and environ.get("SWAPD_KEY_FILE"):
        key_file = Path(environ["SWAPD_KEY_FILE"])
    if key_file is None:
        return _checked(environ.get("SWAPD_API_KEY", ""), "SWAPD_API_KEY")
    try:
        text = key_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise CommandError(f"the key file {key_file} cannot be read: {reason}") from None
    key = _checked(text, str(key_file))
    if key is None:
        raise CommandError(f"the key file {key_file} is empty")
    return key


def _checked(text: str, source: str) -> str | None:
    key = text.strip()
    if not key:
        return None
    if len(key) > MAX_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
        raise CommandError(f"{source} holds no API key: one is a word of letters, digits and signs")
    return key
