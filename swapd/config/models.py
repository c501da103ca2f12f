"""Reads `models` and `defaults`: which keys swapd itself knows of a model, and the rest for its backend.

Owns where defaults go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from backends.base import Backend
from swapd.config.names import Names
from swapd.config.nodes import Mapping as MappingNode
from swapd.config.nodes import Scalar, Sequence, old_yaml_hint, shown_node
from swapd.config.problems import Problems, shown
from swapd.config.readers import (
    Key,
    Place,
    Trouble,
    block,
    integer,
    items,
    note,
    printable_name,
    read_bool,
    read_keys,
    read_texts,
    text_at,
    time,
    unknown_key,
    value_at,
)
from swapd.config.schema import Model, Params, ParamValue
from swapd.config.sections import DAY_S
from swapd.config.settings import read_setting, read_settings, setting_names

MAX_MODELS = 1000
MAX_NAME_CHARS = 256
MAX_REPLICAS = 8
MAX_DESCRIPTION_CHARS = 1024
MAX_METADATA_BYTES = 4096

_FIXED_PARAMS = ("model", "messages", "prompt", "input", "stream")
"""What makes a request that request: changing it here would break routing or the answer's form."""
_ENV_NAME = re.compile(r"[^=\x00-\x20\x7f]{1,256}", re.ASCII)


def _backend_name(place: Place, _problems: Problems) -> str:
    return text_at(place, "the name of a backend")


def _aliases(place: Place, problems: Problems) -> dict[str, Params]:
    """Names, each with params of its own where it is a key with a block."""
    if isinstance(place.node, MappingNode):
        return {name: _alias(name, each, problems) for name, each in block(place).items()}
    return dict.fromkeys(read_names(place, problems), Params())


def _alias(name: str, place: Place, problems: Problems) -> Params:
    try:
        printable_name(name, "a name", MAX_NAME_CHARS)
        fields = read_keys(block(place), ALIAS_KEYS, problems)
    except Trouble as error:
        raise Trouble(str(error), place) from None
    params: Params = fields.get("params", Params())
    return params


def read_names(place: Place, problems: Problems) -> tuple[str, ...]:
    """A list of distinct names that clients can ask for."""
    found = read_texts(place, problems)
    for name, each in zip(found, items(place, most=len(found)), strict=True):
        try:
            printable_name(name, "a name", MAX_NAME_CHARS)
        except Trouble as error:
            raise Trouble(str(error), each) from None
    return found


def _model_name(place: Place, _problems: Problems) -> str | None:
    if isinstance(place.node, Scalar) and place.node.is_null:
        return None
    name = text_at(place, "the name that the worker knows the model by, or null")
    printable_name(name, "a name", MAX_NAME_CHARS)
    return name


def _shown_text(most_chars: int) -> Callable[[Place, Problems], str]:
    """Text that people are shown beside a model's id."""

    def read(place: Place, _problems: Problems) -> str:
        text = text_at(place)
        printable_name(text, "this text", most_chars)
        return text

    return read


def _metadata(place: Place, _problems: Problems) -> dict[str, ParamValue]:
    found: dict[str, ParamValue] = {}
    for name, each in block(place).items():
        printable_name(name, "a key of metadata", MAX_NAME_CHARS)
        found[name] = _param_value(each)
    size_bytes = len(msgspec.json.encode(found))
    if size_bytes > MAX_METADATA_BYTES:
        raise Trouble(
            f"has {size_bytes} bytes as JSON; every list of models carries them, so {MAX_METADATA_BYTES} are allowed"
        )
    return found


def _env(place: Place, problems: Problems) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, each in block(place).items():
        try:
            if not _ENV_NAME.fullmatch(name):
                raise Trouble("is not a name an environment variable can have")
            if name.startswith("LLAMA_ARG_"):
                raise Trouble("LLAMA_ARG_* would override this file behind its back; write the model's own key instead")
            value = text_at(each)
            if "\0" in value or len(value) > 32_768:
                raise Trouble("an environment value has at most 32768 characters, none of them zero")
            found[name] = value
        except ValueError as error:
            note(problems, each, error)
    return found


def _param_value(place: Place) -> ParamValue:
    if isinstance(place.node, MappingNode):
        return {name: _param_value(each) for name, each in block(place).items()}
    if isinstance(place.node, Sequence):
        return [text_at(item) for item in items(place, most=64)]
    value = value_at(place) if isinstance(place.node, Scalar) else None
    if value is None:
        raise Trouble(
            f"must be text, a number, true, false, a list of texts or a block of these, not {shown_node(place.node)}",
            place,
        )
    assert isinstance(place.node, Scalar)
    hint = old_yaml_hint(place.node)
    if hint:
        raise Trouble(f'{shown(place.node.text)} may mean two things; {hint}, or "{place.node.text}" for text', place)
    return value


def _check_param(name: str) -> None:
    printable_name(name, "a request field's name", most_chars=128)
    if name in _FIXED_PARAMS:
        raise Trouble(f"{', '.join(_FIXED_PARAMS)} are the request itself and cannot be set or stripped")


def _param_set(place: Place, problems: Problems) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, each in block(place).items():
        try:
            _check_param(name)
            found[name] = _param_value(each)
        except ValueError as error:
            note(problems, each, error)
    return found


def _param_strip(place: Place, problems: Problems) -> tuple[str, ...]:
    found = read_texts(place, problems)
    for name, each in zip(found, items(place, most=len(found)), strict=True):
        try:
            _check_param(name)
        except Trouble as error:
            raise Trouble(str(error), each) from None
    return found


PARAMS_KEYS: Mapping[str, Key] = {"set": Key("set", _param_set), "strip": Key("strip", _param_strip)}


def _params(place: Place, problems: Problems) -> Params:
    params = Params(**read_keys(block(place), PARAMS_KEYS, problems))
    both = sorted(set(params.set) & set(params.strip))
    if both:
        raise Trouble(f"{shown(both[0])} is both set and stripped; choose one")
    return params


ALIAS_KEYS: Mapping[str, Key] = {"params": Key("params", _params)}
MODEL_KEYS: Mapping[str, Key] = {
    "backend": Key("backend", _backend_name),
    "aliases": Key("aliases", _aliases),
    "model_name": Key("model_name", _model_name),
    "name": Key("name", _shown_text(MAX_NAME_CHARS)),
    "description": Key("description", _shown_text(MAX_DESCRIPTION_CHARS)),
    "metadata": Key("metadata", _metadata),
    "unlisted": Key("unlisted", read_bool),
    "load_timeout": Key("load_timeout_s", time(1, DAY_S)),
    "stall_timeout": Key("stall_timeout_s", time(1, DAY_S)),
    "idle_unload": Key("idle_unload_s", time(0, 365 * DAY_S, word="never")),
    "replicas": Key("replicas", integer(1, MAX_REPLICAS)),
    "pin": Key("pin", read_bool),
    "priority": Key("priority", integer(-100, 100)),
    "max_wait": Key("max_wait_s", time(0, DAY_S)),
    "loading_text": Key("loading_text", read_bool),
    "env": Key("env", _env),
    "params": Key("params", _params),
}
"""The keys of a model that swapd itself knows; `schema.Model` says what they do."""
_OF_ONE_MODEL = ("name", "description")
DEFAULT_BACKEND = next(field.default for field in msgspec.structs.fields(Model) if field.name == "backend")


@dataclass(frozen=True, slots=True)
class ModelReader:
    """Reads models with what they all share at hand."""

    backends: Mapping[str, Backend]
    base_dir: Path
    problems: Problems
    names: Names

    def read_all(self, models: Place, defaults: Place | None) -> dict[str, Model]:
        """Every sound model by id, in the file's order; notes what is wrong with the others."""
        inherited = self._defaults(defaults) if defaults else {}
        entries = block(models)
        if len(entries) > MAX_MODELS:
            raise Trouble(f"has {len(entries)} models; at most {MAX_MODELS} are allowed")
        found: dict[str, Model] = {}
        for model_id, place in entries.items():
            try:
                printable_name(model_id, "a model's name", MAX_NAME_CHARS)
                model = self._model(model_id, place, inherited)
            except ValueError as error:
                note(self.problems, place, error)
                continue
            if model is not None:
                found[model_id] = model
        self.names.claim(entries, "model", self.problems)
        return found

    def _defaults(self, defaults: Place) -> dict[str, Place]:
        """The keys every model inherits. Checked by themselves too, for a file without models."""
        places = block(defaults)
        common: dict[str, Place] = {}
        inherited: dict[str, Place] = {}
        for name, place in places.items():
            if name == "aliases":
                self.problems.add(place.line, place.key, "belongs to one model; a name cannot lead to several")
            elif name in _OF_ONE_MODEL:
                self.problems.add(place.line, place.key, "belongs to one model; it tells people which one they see")
            elif name in MODEL_KEYS:
                inherited[name] = common[name] = place
            elif any(name in setting_names(backend.settings_type) for backend in self.backends.values()):
                inherited[name] = place
            else:
                self.problems.add(place.line, place.key, partial(self._unknown, name, tuple(self.backends)))
        read_keys(common, MODEL_KEYS, self.problems)
        self._check_default_settings(inherited)
        return inherited

    def _check_default_settings(self, inherited: Mapping[str, Place]) -> None:
        backend = self._backend(inherited.get("backend"))
        known = setting_names(backend.settings_type) if backend else {}
        for name, place in inherited.items():
            if name in known:
                try:
                    read_setting(known[name], place, self.base_dir)
                except ValueError as error:
                    note(self.problems, place, error)

    def _backend(self, place: Place | None) -> Backend | None:
        """The backend a place names, or the default one; None after noting that it is not installed."""
        if place is None:
            return self.backends.get(DEFAULT_BACKEND)
        try:
            name = text_at(place)
        except Trouble:
            return None  # noted where the key itself is read
        backend = self.backends.get(name)
        if backend is None:
            message = f"no backend {shown(name)} is installed; installed: {', '.join(sorted(self.backends)) or 'none'}"
            self.problems.add(place.line, place.key, message)
        return backend

    def _unknown(self, name: str, backend_names: tuple[str, ...]) -> str:
        known = set(MODEL_KEYS)
        for backend_name in backend_names:
            known |= set(setting_names(self.backends[backend_name].settings_type))
        return unknown_key(name, known, {key.field: spelled for spelled, key in MODEL_KEYS.items()})

    def _model(self, model_id: str, owner: Place, inherited: Mapping[str, Place]) -> Model | None:
        own = block(owner)
        places = {**inherited, **own}
        fields = read_keys({n: p for n, p in places.items() if n in MODEL_KEYS}, MODEL_KEYS, self.problems)
        backend = self._backend(places.get("backend"))
        if backend is None:
            if "backend" not in places:
                raise Trouble(f"the default backend {DEFAULT_BACKEND} is not installed; name one with backend:")
            return None
        known = setting_names(backend.settings_type)
        assert not known.keys() & MODEL_KEYS.keys(), f"backend {backend.name} redefines a key of swapd's own"
        settings: dict[str, Place] = {}
        for name, place in places.items():
            if name in known:
                settings[name] = place
            elif name not in MODEL_KEYS:
                self._note_unknown(name, place, owner, backend, inherited=name not in own)
        read = read_settings(backend.settings_type, settings, owner, self.base_dir, self.problems)
        aliases: dict[str, Params] = fields.pop("aliases", {})
        own_params = {name: params for name, params in aliases.items() if params != Params()}
        if read is None:
            return None
        return Model(id=model_id, settings=read, aliases=tuple(aliases), alias_params=own_params, **fields)

    def _note_unknown(self, name: str, place: Place, owner: Place, backend: Backend, *, inherited: bool) -> None:
        if inherited:
            message = f"{owner.key} has the backend {backend.name}, which has no key {name}; set it in the models only"
            self.problems.add(place.line, place.key, message)
        else:
            self.problems.add(place.line, place.key, partial(self._unknown, name, (backend.name,)))
