"""llama-swap's models and peers, one by one, as models of swapd.

Owns which backend runs each: llama_cpp where every flag of a llama-server command has a key, so that its memory is
known beforehand; command, which runs the line as it is, for everything else; remote for peers. Each is read as a
configuration of its own before it counts: one that would be refused becomes a comment.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backends.base import Backend
from swapd.config.load import parse
from swapd.config.models import MAX_DESCRIPTION_CHARS, MAX_NAME_CHARS
from swapd.config.nodes import Entry, Scalar
from swapd.config.nodes import Sequence as SequenceNode
from swapd.config.problems import ConfigError
from swapd.importing import emit
from swapd.importing.emit import Value
from swapd.importing.llama_server_flags import is_llama_server, translate
from swapd.importing.macros import Macros, left_in, variable_in
from swapd.importing.values import entries, last_line, number, plain, text, texts

_FIXED_PARAMS = ("model", "messages", "prompt", "input", "stream")
_SAFE_WORD = re.compile(r"[A-Za-z0-9@%+=:,./_${}-]+")
_LEFT_OUT: Mapping[str, str] = {
    "timeouts": "not carried: swapd watches progress instead (load_timeout, stall_timeout)",
    "unloadTimeout": "not carried: swapd kills what has not stopped by itself after its drain",
    "concurrencyLimit": "not carried: n_parallel says how many run at once, queue.max_waiting how many wait",
    "compat": "not carried: there is no such key",
}
_READ = frozenset((
    "cmd", "cmdStop", "proxy", "checkEndpoint", "ttl", "env", "aliases", "unlisted", "useModelName", "filters",
    "macros", "sendLoadingState", "capabilities", "name", "description", "metadata",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that was not carried, or not as it was."""

    line: int
    key: str
    message: str


@dataclass(slots=True)
class ModelImport:
    """One model of the text that is written."""

    id: str
    first_line: int
    last_line: int
    keys: dict[str, Value] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    dropped: bool = False

    @property
    def names(self) -> list[str]:
        aliases = self.keys.get("aliases")
        return [self.id, *(map(str, aliases) if isinstance(aliases, Mapping | list) else ())]

    def remark(self, message: str, line: int | None = None, key: str = "") -> None:
        where = f"models.{self.id}" + (f".{key}" if key else "")
        self.remarks.append(Remark(self.first_line if line is None else line, where, message))

    def own_lines(self) -> list[str]:
        return [f"  {emit.spelled(self.id)}:", *emit.block(self.keys, 4)]

    def lines(self) -> list[str]:
        own_key = f"models.{self.id}"
        said = [
            line
            for remark in self.remarks
            for line in emit.comment(f"{remark.key.removeprefix(own_key)}: {remark.message}".lstrip(".: "), 2)
        ]
        own = self.own_lines()
        return said + ([f"  # {line[2:]}" for line in own] if self.dropped else own)


@dataclass(slots=True)
class ModelImporter:
    path: Path
    backends: Mapping[str, Backend]
    macros: Macros
    taken: set[str] = field(default_factory=set)

    def read_all(self, models: Entry | None, peers: Entry | None) -> list[ModelImport]:
        own = entries(models)
        self.taken |= own.keys()
        found = [self._model(model_id, entry) for model_id, entry in own.items()]
        for peer, entry in entries(peers).items():
            found += self._peer(peer, entry)
        return found

    # -- models ------------------------------------------------------------------------------------------------

    def _model(self, model_id: str, entry: Entry) -> ModelImport:
        model = ModelImport(model_id, entry.line, max(entry.line, last_line(entry.node)))
        keys = entries(entry)
        macros = self.macros.for_model(model_id, texts(keys.get("macros")))
        policy = self._policy(model, keys, macros)
        # Macros may have comments and lines of their own, and comments may name macros.
        command = macros.expanded(_one_line(text(keys.get("cmd"))))
        try:
            words = shlex.split(_one_line(command))
        except ValueError as error:
            words = []
            model.remark(f"its cmd cannot be cut into words: {error}", key="cmd")
        for name in left_in(command):
            model.remark(f"${{{name}}} stands for nothing here", key="cmd")
        if not (is_llama_server(words) and self._as_keys(model, words[1:], policy)):
            self._as_command(model, words, keys, macros, policy)
        return model

    def _as_keys(self, model: ModelImport, words: list[str], policy: dict[str, Value]) -> bool:
        """Whether everything on the command line has a key, and the keys may have those values."""
        told = translate(words)
        if told.foreign:
            model.remark(f"runs as a command: swapd has no key for {', '.join(told.foreign)}", key="cmd")
            return False
        keys = {"path": told.keys["path"], **told.keys, **policy}
        for message in _use_devices(keys):
            model.remark(message, key="env")
        if told.params:
            keys["params"] = _with_params(keys.get("params"), told.params)
        refusal = self._refusal(model.id, keys)
        if refusal is not None:
            model.remark(f"runs as a command: {refusal}", key="cmd")
            return False
        for message in told.remarks:
            model.remark(message, key="cmd")
        model.keys = keys
        return True

    def _as_command(
        self, model: ModelImport, words: list[str], keys: dict[str, Entry], macros: Macros, policy: dict[str, Value]
    ) -> None:
        said: dict[str, Value] = {"backend": "command", "cmd": _joined(words)}
        stop = macros.expanded(text(keys.get("cmdStop")))
        if stop:
            said["cmd_stop"] = _one_line(stop).strip()
        proxy = macros.expanded(text(keys.get("proxy")))
        if proxy:
            said["proxy"] = proxy.replace("://localhost", "://127.0.0.1")
        check = text(keys.get("checkEndpoint"))
        if check:
            said["check_endpoint"] = macros.expanded(check)
        able = {name: plain(entry.node) for name, entry in entries(keys.get("capabilities")).items()}
        if "image" in (able.get("in") or ()):
            said["vision"] = True
        if able.get("reranker") is True:
            said["rerank"] = True
        self._settle(model, {**said, **policy}, f"command: {_joined(words[:1])}")

    def _settle(self, model: ModelImport, keys: dict[str, Value], what: str) -> None:
        """Take the keys over; as a comment where they would be refused."""
        model.keys = keys
        backend = str(keys["backend"])
        if backend not in self.backends:
            refusal: str | None = f"it needs the backend {backend} ({what}), which is not installed"
        else:
            refusal = self._refusal(model.id, keys)
        if refusal is not None:
            model.dropped = True
            model.remark(f"not carried, and a comment here: {refusal}")

    def _refusal(self, model_id: str, keys: Mapping[str, Value]) -> str | None:
        """What swapd would say of a file with this model alone."""
        text_alone = "\n".join(["models:", f"  {emit.spelled(model_id)}:", *emit.block(keys, 4), ""])
        try:
            parse(text_alone, self.path, self.backends)
        except ConfigError as error:
            problem = error.problems[0]
            key = problem.key.rpartition(".")[2]
            return problem.message if problem.message.startswith(key) else f"{key} {problem.message}"
        return None

    # -- what swapd itself knows of a model ---------------------------------------------------------------------

    def _policy(self, model: ModelImport, keys: dict[str, Entry], macros: Macros) -> dict[str, Value]:
        found: dict[str, Value] = {}
        name = macros.expanded(text(keys.get("useModelName")))
        if name:
            found["model_name"] = name
        if "unlisted" in keys and plain(keys["unlisted"].node) is True:
            found["unlisted"] = True
        if "sendLoadingState" in keys and isinstance(plain(keys["sendLoadingState"].node), bool):
            found["loading_text"] = plain(keys["sendLoadingState"].node)
        for key, most_chars in (("name", MAX_NAME_CHARS), ("description", MAX_DESCRIPTION_CHARS)):
            shown = " ".join(macros.expanded(text(keys.get(key))).split())[:most_chars].strip()
            if shown:
                found[key] = shown
        metadata = _params(model, keys.get("metadata"), "metadata", macros)
        if metadata:
            found["metadata"] = metadata
        ttl_s = number(keys.get("ttl"))
        if ttl_s is not None and ttl_s >= 0:
            found["idle_unload"] = f"{round(ttl_s)}s" if ttl_s else "never"
        env = _environment(model, keys.get("env"), macros)
        if env:
            found["env"] = env
        by_name = self._filters(model, entries(keys.get("filters")), macros, found)
        aliases = self._aliases(model, keys.get("aliases"), by_name, macros)
        if aliases:
            found["aliases"] = aliases
        for key, entry in keys.items():
            if key in _LEFT_OUT:
                model.remark(_LEFT_OUT[key], entry.line, key)
            elif key not in _READ:
                model.remark("not carried: it is unknown here", entry.line, key)
        return found

    def _filters(
        self, model: ModelImport, filters: dict[str, Entry], macros: Macros, found: dict[str, Value]
    ) -> dict[str, dict[str, Value]]:
        """Puts `params` into `found`; returns what is set for single names."""
        strip = [one.strip() for one in macros.expanded(text(filters.get("stripParams"))).split(",")]
        sets = _params(model, filters.get("setParams"), "filters.setParams", macros)
        by_name: dict[str, dict[str, Value]] = {}
        for name, entry in entries(filters.get("setParamsByID")).items():
            values = _params(model, entry, "filters.setParamsByID", macros)
            called = macros.expanded(name)
            if called == model.id:
                sets.update(values)
                model.remark(
                    "setParamsByID of the model's own name counts for its aliases too, unless they set the same",
                    entry.line,
                    "filters.setParamsByID",
                )
            else:
                by_name[called] = values
        taken_out = [one for one in dict.fromkeys(strip) if one and one not in _FIXED_PARAMS and one not in sets]
        params: dict[str, Value] = {}
        if sets:
            params["set"] = sets
        if taken_out:
            params["strip"] = taken_out
        if params:
            found["params"] = params
        return by_name

    def _aliases(
        self, model: ModelImport, entry: Entry | None, by_name: dict[str, dict[str, Value]], macros: Macros
    ) -> Value:
        names: dict[str, int] = dict.fromkeys(by_name, model.first_line)
        if entry is not None and isinstance(entry.node, SequenceNode):
            for item in entry.node.items:
                name = item.text if isinstance(item, Scalar) else text(getattr(item, "entries", {}).get("id"))
                names.setdefault(macros.expanded(name), item.line)
        found: dict[str, Value] = {}
        for name, line in names.items():
            if not name or name in self.taken:
                model.remark(f"the alias {name!r} is left out: the name is taken", line, "aliases")
                continue
            self.taken.add(name)
            found[name] = {"params": {"set": by_name[name]}} if by_name.get(name) else {}
        return found if any(found.values()) else list(found)

    # -- peers -------------------------------------------------------------------------------------------------

    def _peer(self, peer: str, entry: Entry) -> list[ModelImport]:
        keys = entries(entry)
        names = keys["models"].node if "models" in keys else None
        said: dict[str, Value] = {"backend": "remote", "proxy": self.macros.expanded(text(keys.get("proxy")))}
        key = text(keys.get("apiKey"))
        variable = variable_in(key)
        if variable:
            said["api_key_env"] = variable
        found = []
        for item in names.items if isinstance(names, SequenceNode) else ():
            if not isinstance(item, Scalar):
                continue
            model = ModelImport(f"{peer}/{item.text}", item.line, item.line)
            if key and not variable:
                model.remark("its apiKey is a secret and stays behind: put it into a file and name it, api_key_file")
            own = {**said, "model_name": item.text}
            self._filters(model, entries(keys.get("filters")), self.macros, own)
            self.taken.add(model.id)
            if item.text not in self.taken:
                own["aliases"] = [item.text]
                self.taken.add(item.text)
            for name in keys.keys() & _LEFT_OUT.keys():
                model.remark(_LEFT_OUT[name], keys[name].line, name)
            self._settle(model, own, f"peer {peer}")
            found.append(model)
        return found


def _one_line(command: str) -> str:
    """A command without its comment lines and its continuation marks."""
    kept = [line for line in command.splitlines() if not line.lstrip().startswith("#")]
    return re.sub(r"\\\s*$", "", "\n".join(kept), flags=re.MULTILINE).replace("\n", " ")


def _joined(words: list[str]) -> str:
    """Words as one text that is cut into the same ones; macros stay readable."""
    return " ".join(word if _SAFE_WORD.fullmatch(word) else shlex.quote(word) for word in words)


def _params(model: ModelImport, entry: Entry | None, key: str, macros: Macros) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, each in entries(entry).items():
        value = _expanded(plain(each.node), macros)
        if name in _FIXED_PARAMS or value is None or (isinstance(value, list) and _mixed(value)):
            model.remark(f"{name} is not carried: swapd cannot set it so", each.line, key)
        else:
            found[name] = value
    return found


def _expanded(value: Value, macros: Macros) -> Value:
    """A value with its macros replaced; one that is nothing but a macro has the type of what stands for it."""
    match value:
        case str():
            text_now = macros.expanded(value)
            return plain(Scalar(1, text_now, plain=True)) if re.fullmatch(r"\$\{[^{}]+\}", value) else text_now
        case Mapping():
            return {name: _expanded(each, macros) for name, each in value.items()}
        case list():
            return [_expanded(each, macros) for each in value]
        case _:
            return value


def _mixed(values: Sequence[Value]) -> bool:
    return not all(isinstance(value, str) for value in values)


def _with_params(params: Value, defaults: Mapping[str, Value]) -> Value:
    """A server's own defaults, below what was set or taken out on purpose."""
    own = dict(params) if isinstance(params, Mapping) else {}
    stripped = own.get("strip") or []
    sets = own.get("set") or {}
    assert isinstance(sets, Mapping)
    assert isinstance(stripped, list)
    # What clients' values were stripped for was the server's own.
    strip = [name for name in stripped if name not in defaults]
    merged: dict[str, Value] = {"set": {**defaults, **sets}}
    return {**merged, "strip": strip} if strip else merged


def _environment(model: ModelImport, entry: Entry | None, macros: Macros) -> dict[str, Value]:
    found: dict[str, Value] = {}
    node = entry.node if entry is not None else None
    for item in node.items if isinstance(node, SequenceNode) else ():
        name, sign, value = (item.text if isinstance(item, Scalar) else "").partition("=")
        if not sign or name.startswith("LLAMA_ARG_"):
            model.remark(f"{name or 'one entry'} is not carried: write the model's own key instead", item.line, "env")
            continue
        if "${env." in value:
            model.remark(f"{name} is not carried: its value is the environment's, and may be secret", item.line, "env")
            continue
        found[name] = macros.expanded(value)
    return found


def _use_devices(keys: dict[str, Value]) -> list[str]:
    """CUDA_VISIBLE_DEVICES as `devices`: swapd counts GPUs for all models alike."""
    env = keys.get("env")
    visible = env.get("CUDA_VISIBLE_DEVICES") if isinstance(env, Mapping) else None
    if not isinstance(visible, str) or "devices" in keys or not re.fullmatch(r"\d+(,\d+)*", visible):
        return []
    assert isinstance(env, Mapping)
    rest = {name: value for name, value in env.items() if name != "CUDA_VISIBLE_DEVICES"}
    keys["devices"] = [f"CUDA{index}" for index in visible.split(",")]
    if rest:
        keys["env"] = rest
    else:
        del keys["env"]
    return [f"CUDA_VISIBLE_DEVICES={visible} is devices now"]
