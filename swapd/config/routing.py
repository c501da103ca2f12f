"""Reads `virtual` and `profiles`: names that stand for others, and what a profile changes about them.

Owns their keys, and the rule that what is named exists. Nothing here can lead in a circle: targets are models, and a
pin is followed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from swapd.config.models import MAX_NAME_CHARS, read_names
from swapd.config.names import Names
from swapd.config.nodes import Scalar
from swapd.config.problems import Problems, close_names, shown
from swapd.config.readers import (
    Key,
    Place,
    Trouble,
    block,
    items,
    note,
    printable_name,
    read_bool,
    read_keys,
    read_texts,
    text_at,
    time,
)
from swapd.config.schema import Profile, Virtual
from swapd.config.sections import DAY_S
from swapd.core.routing import Strategy

MAX_VIRTUAL = 256
MAX_TARGETS = 32
MAX_PROFILES = 64
MAX_DESCRIPTION_CHARS = 1000
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


def _strategy(place: Place, _problems: Problems) -> str:
    text = text_at(place, f"one of {', '.join(STRATEGIES)}")
    if text not in STRATEGIES:
        raise Trouble(f"must be one of {', '.join(STRATEGIES)}, not {shown(text)}{close_names(text, STRATEGIES)}")
    return text


def _description(place: Place, _problems: Problems) -> str:
    text = text_at(place)
    if len(text) > MAX_DESCRIPTION_CHARS:
        raise Trouble(f"may have at most {MAX_DESCRIPTION_CHARS} characters")
    return text


def _pins(place: Place, _problems: Problems) -> dict[str, str | None]:
    return {name: _pin(each) for name, each in block(place).items()}


def _pin(place: Place) -> str | None:
    if isinstance(place.node, Scalar) and place.node.is_null:
        return None
    try:
        return text_at(place, "a name, or null for none")
    except Trouble as error:
        raise Trouble(str(error), place) from None


VIRTUAL_KEYS: Mapping[str, Key] = {
    "strategy": Key("strategy", _strategy),
    "targets": Key("targets", read_texts),
    "max_wait": Key("max_wait_s", time(0.1, DAY_S)),
    "aliases": Key("aliases", read_names),
    "unlisted": Key("unlisted", read_bool),
}
PROFILE_KEYS: Mapping[str, Key] = {
    "description": Key("description", _description),
    "disable": Key("disable", read_texts),
    "pins": Key("pins", _pins),
    "idle_unload": Key("idle_unload_s", time(0, 365 * DAY_S)),
}


@dataclass(frozen=True, slots=True)
class RoutingReader:
    """Reads both sections. `names` has the names of all models, and gets those of virtual ones."""

    names: Names
    problems: Problems

    def read_virtual(self, place: Place) -> dict[str, Virtual]:
        """Every sound virtual model by id, in the file's order; notes what is wrong with the others."""
        entries = block(place)
        if len(entries) > MAX_VIRTUAL:
            raise Trouble(f"has {len(entries)} virtual models; at most {MAX_VIRTUAL} are allowed")
        self.names.claim(entries, "virtual", self.problems)
        found: dict[str, Virtual] = {}
        for virtual_id, each in entries.items():
            try:
                printable_name(virtual_id, "a virtual model's name", MAX_NAME_CHARS)
                virtual = self._virtual(virtual_id, each)
            except ValueError as error:
                note(self.problems, each, error)
                continue
            if virtual is not None:
                found[virtual_id] = virtual
        return found

    def _virtual(self, virtual_id: str, owner: Place) -> Virtual | None:
        places = block(owner)
        fields = read_keys(places, VIRTUAL_KEYS, self.problems)
        missing = [name for name in ("strategy", "targets") if name not in places]
        for name in missing:
            wanted = f"one of {', '.join(STRATEGIES)}" if name == "strategy" else "a list of models"
            self.problems.add(owner.line, f"{owner.key}.{name}", f"is missing; write `{name}:` with {wanted}")
        if missing or "strategy" not in fields or "targets" not in fields:
            return None
        if not fields["targets"]:
            raise Trouble("must name at least one model", places["targets"])
        seen: dict[str, str] = {}
        for target, item in zip(fields["targets"], items(places["targets"], most=MAX_TARGETS), strict=True):
            self._check_target(target, item, seen)
        return Virtual(id=virtual_id, **fields)

    def _check_target(self, target: str, item: Place, seen: dict[str, str]) -> None:
        match self.names.kind(target):
            case "model":
                # Two aliases of one model may differ in params, but what the one cannot do the other cannot either.
                model_id = self.names.id_of(target)
                other = seen.setdefault(model_id, target)
                if other != target:
                    self.problems.add(item.line, item.key, f"is the same model as {shown(other)}; name each once")
            case "virtual":
                message = f"{shown(target)} is a virtual model itself, which could lead in a circle; name models"
                self.problems.add(item.line, item.key, message)
            case None:
                self.problems.add(item.line, item.key, self.names.unknown(target))

    def read_profiles(self, place: Place) -> dict[str, Profile]:
        """Every profile by name, in the file's order."""
        entries = block(place)
        if len(entries) > MAX_PROFILES:
            raise Trouble(f"has {len(entries)} profiles; at most {MAX_PROFILES} are allowed")
        found: dict[str, Profile] = {}
        for name, each in entries.items():
            try:
                printable_name(name, "a profile's name", most_chars=64)
                found[name] = self._profile(each)
            except ValueError as error:
                note(self.problems, each, error)
        return found

    def _profile(self, owner: Place) -> Profile:
        places = block(owner)
        profile = Profile(**read_keys(places, PROFILE_KEYS, self.problems))
        if profile.disable:
            for name, item in zip(profile.disable, items(places["disable"], most=len(profile.disable)), strict=True):
                self._check_disabled(name, item)
        if profile.pins:
            pins = block(places["pins"])
            for name, target in profile.pins.items():
                self._check_pin(name, target, pins[name], profile)
        return profile

    def _check_disabled(self, name: str, item: Place) -> None:
        if self.names.kind(name) is None:
            self.problems.add(item.line, item.key, self.names.unknown(name))
        elif self.names.id_of(name) != name:
            owner = shown(self.names.id_of(name))
            self.problems.add(item.line, item.key, f"is an alias of {owner}; write that, or pin the alias to null")

    def _check_pin(self, name: str, target: str | None, place: Place, profile: Profile) -> None:
        if self.names.kind(name) is None:
            self.problems.add(place.line, place.key, self.names.unknown(name))
        if target is None:
            return
        if self.names.kind(target) is None:
            self.problems.add(place.line, place.key, self.names.unknown(target))
        elif target == name:
            self.problems.add(place.line, place.key, "is pinned to itself; leave the pin out, or pin it to another")
        elif self.names.id_of(target) in profile.disable:
            self.problems.add(place.line, place.key, f"is pinned to {shown(target)}, which the profile disables")
