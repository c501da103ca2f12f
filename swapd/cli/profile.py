"""The command `profile`: which profiles there are, and which is in force."""

from __future__ import annotations

import argparse

from swapd.cli.output import Column, CommandError, console, duration, print_json, print_line, print_table
from swapd.cli.remote import ask
from swapd.pool.status import Profiles, ProfileStatus


def profile(arguments: argparse.Namespace) -> int:
    """List the profiles, or switch."""
    if arguments.off and arguments.name is not None:
        raise CommandError("name a profile or write --off, not both")
    if not arguments.off and arguments.name is None:
        _show(ask(arguments, lambda client: client.profiles()), as_json=arguments.json)
        return 0
    found = ask(arguments, lambda client: client.switch_profile(arguments.name))
    if arguments.json:
        print_json(found)
    else:
        print_line("no profile is in force" if found.active is None else f"the profile {found.active} is in force")
    return 0


def _show(found: Profiles, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    elif not found.profiles:
        print_line("the configuration has no profiles")
    else:
        columns = [Column("PROFILE"), Column("ACTIVE"), Column("WHAT IT CHANGES"), Column("DESCRIPTION", min_width=80)]
        rows = [[one.name, "yes" if one.active else "", _changes(one), one.description] for one in found.profiles]
        print_table(console(), columns, rows)


def _changes(one: ProfileStatus) -> str:
    parts = [f"{name} is {'off' if meant is None else meant}" for name, meant in one.pins.items()]
    parts += [f"{name} is disabled" for name in one.disable]
    if one.idle_unload_s is not None:
        parts.append(f"idle models leave after {duration(one.idle_unload_s)}")
    return ", ".join(parts) or "nothing"
