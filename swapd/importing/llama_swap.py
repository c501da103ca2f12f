"""Turns a llama-swap configuration into swapd's, and says what it could not carry.

Owns what llama-swap's keys mean here, outside of a model's command (`commands`). What it writes is read by
`swapd.config` without a complaint, with the backends that are given: a model that no such backend can run stays in the
text as a comment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backends.base import Backend
from swapd.config.nodes import Entry, Scalar
from swapd.config.nodes import Mapping as MappingNode
from swapd.config.nodes import Sequence as SequenceNode
from swapd.config.problems import Problems
from swapd.config.yaml_document import read_document
from swapd.importing import emit
from swapd.importing.comments import comments_of
from swapd.importing.emit import Value
from swapd.importing.macros import Macros
from swapd.importing.models import ModelImport, ModelImporter, Remark
from swapd.importing.values import entries, number, plain, texts

_MEMORY = "not needed: swapd works out from their memory which models fit together"
_NOT_NEEDED: Mapping[str, str] = {
    "matrix": f"{_MEMORY}, and whose leaving costs least",
    "routing": _MEMORY,
    "startPort": "not needed: swapd finds free ports by itself",
    "logLevel": "not carried: see server.log_level",
    "logTimeFormat": "not needed: the journal has the time",
    "logToStdout": "not needed: `swapd logs` has the workers' output",
    "logRequests": "not needed: swapd logs every request",
    "metricsMaxInMemory": "not needed: swapd's metrics are Prometheus's, at /metrics",
    "includeAliasesInList": "not needed: /v1/models has each model with its aliases",
    "performance": "not needed: /metrics has what swapd measures",
    "captureBuffer": "not carried: swapd keeps no requests",
    "store": "not carried: swapd keeps no requests",
    "ui": "not carried: there is no such setting",
    "upstream": "not carried: there is no such setting",
    "unloadTimeout": "not carried: swapd kills what has not stopped by itself after its drain",
    "hooks": "not carried: `pin: true` loads a model at the start, and keeps it loaded",
    "apiKeys": "not carried, because they are secrets: set up keys in swapd's own way",
}
_STRATEGIES = {"pin": "fallback", "warm": "first_loaded", "spillover": "spillover"}
MIN_LOAD_TIMEOUT_S = 15
"""llama-swap takes less for this much."""


@dataclass(frozen=True, slots=True)
class Imported:
    text: str
    remarks: tuple[Remark, ...]
    """What was not carried, or means something else now, by the lines of the text that was read."""
    models: int
    dropped: int
    """Models that stand in the text as comments only."""


def import_llama_swap(text: str, path: Path, backends: Mapping[str, Backend], environ: Mapping[str, str]) -> Imported:
    """The same in swapd's words. `environ` stands for `${env.NAME}`. Raises `ConfigError` if the text is no YAML."""
    problems = Problems()
    root = read_document(text, problems)
    problems.raise_if_any(path)
    assert root is not None, "a document was refused without a reason"
    return _Import(root, comments_of(text), path, backends, environ).run()


@dataclass(slots=True)
class _Import:
    root: MappingNode
    comments: dict[int, str]
    path: Path
    backends: Mapping[str, Backend]
    environ: Mapping[str, str]
    remarks: list[Remark] = field(default_factory=list)

    def run(self) -> Imported:
        top = self.root.entries
        macros = Macros(texts(top.get("macros")), self.environ)
        importer = ModelImporter(self.path, self.backends, macros)
        models = importer.read_all(top.get("models"), top.get("peers"))
        for model in models:
            self.remarks += model.remarks
        self._remark_settings()
        names = {name for model in models if not model.dropped for name in model.names}
        lines = [*self._head(models), *self._defaults(), "models:" if models else "models: {}"]
        since = top["models"].line if "models" in top else 1
        for model in models:
            lines += ["", *self._comments(since, model.last_line, 2), *model.lines()]
            since = model.last_line
        lines += self._virtual(top.get("selectors"), names)
        lines += self._profiles(top.get("profiles"), names)
        dropped = sum(model.dropped for model in models)
        self.remarks.sort(key=lambda remark: remark.line)
        return Imported("\n".join(lines) + "\n", tuple(self.remarks), len(models) - dropped, dropped)

    # -- parts of the text -------------------------------------------------------------------------------------

    def _head(self, models: list[ModelImport]) -> list[str]:
        first = min((entry.line for entry in self.root.entries.values()), default=1)
        said = f"Made by `swapd import` from {self.path.name}."
        if any("backend" not in model.keys and not model.dropped for model in models):
            said += (
                "\nModels without a `backend` are run by llama_cpp, by swapd's own build of llama.cpp: every flag of "
                "their\ncommands has a key here, and so their memory is known before they are loaded. `swapd devices` "
                "must list your GPUs."
            )
            if "llama_server" in self.backends:
                said += (
                    "\nWith `backend: llama_server` in `defaults` llama-server itself runs them, with the same keys."
                )
        return [*emit.comment(said), *self._comments(1, first - 1, 0), ""]

    def _comments(self, first: int, last: int, indent: int) -> list[str]:
        return [line for number in range(first, last + 1) for line in self._comment_at(number, indent)]

    def _comment_at(self, line: int, indent: int) -> list[str]:
        return emit.comment(self.comments.pop(line), indent) if line in self.comments else []

    def _defaults(self) -> list[str]:
        top = self.root.entries
        keys: dict[str, Value] = {}
        timeout_s = number(top.get("healthCheckTimeout"))
        if timeout_s is not None:
            keys["load_timeout"] = f"{max(MIN_LOAD_TIMEOUT_S, round(timeout_s))}s"
        ttl_s = number(top.get("globalTTL"))
        if ttl_s:
            keys["idle_unload"] = f"{round(ttl_s)}s"
        if "sendLoadingState" in top and plain(top["sendLoadingState"].node) is True:
            keys["loading_text"] = True
        return ["defaults:", *emit.block(keys, 2), ""] if keys else []

    def _remark_settings(self) -> None:
        for name, entry in self.root.entries.items():
            if name in _NOT_NEEDED:
                self._remark(entry.line, name, _NOT_NEEDED[name])
            elif name == "groups":
                for group, each in entries(entry).items():
                    persistent = "persistent" in entries(each) and plain(entries(each)["persistent"].node) is True
                    hint = "; its members stay loaded with `pin: true`" if persistent else ""
                    self._remark(each.line, f"groups.{group}", _MEMORY + hint)
            elif name not in _CARRIED:
                self._remark(entry.line, name, "not carried: it is unknown here")

    def _remark(self, line: int, key: str, message: str) -> None:
        self.remarks.append(Remark(line, key, message))

    def _virtual(self, selectors: Entry | None, names: set[str]) -> list[str]:
        lines: list[str] = []
        for name, entry in entries(selectors).items():
            keys = entries(entry)
            strategy = plain(keys["strategy"].node) if "strategy" in keys else "pin"
            targets = _words(keys.get("targets"))
            known = [target for target in dict.fromkeys(targets) if target in names]
            if not known or strategy not in _STRATEGIES or name in names:
                self._remark(
                    entry.line, f"selectors.{name}", "not carried: its name, strategy or targets are not known"
                )
                continue
            for target in targets:
                if target not in known:
                    self._remark(
                        entry.line, f"selectors.{name}", f"the target {target} is left out: it is no model here"
                    )
            virtual: dict[str, Value] = {"strategy": _STRATEGIES[str(strategy)], "targets": known}
            if "unlisted" in keys and plain(keys["unlisted"].node) is True:
                virtual["unlisted"] = True
            for key in ("name", "description", "metadata", "settings"):
                if key in keys:
                    self._remark(keys[key].line, f"selectors.{name}.{key}", "not carried: there is no such key")
            lines += [*self._comments(entry.line - 1, entry.line, 2), f"  {emit.spelled(name)}: {emit.flow(virtual)}"]
            names.add(name)
        return ["", "virtual:", *lines] if lines else []

    def _profiles(self, profiles: Entry | None, names: set[str]) -> list[str]:
        lines: list[str] = []
        for name, entry in entries(profiles).items():
            keys = entries(entry)
            profile: dict[str, Value] = {}
            if "description" in keys:
                profile["description"] = str(plain(keys["description"].node))[:1000]
            pins: dict[str, Value] = {}
            for pinned, each in entries(keys.get("pins")).items():
                meant = plain(each.node)
                if pinned in names and (meant is None or (meant in names and meant != pinned)):
                    pins[pinned] = meant
                else:
                    self._remark(
                        each.line, f"profiles.{name}.pins.{pinned}", "not carried: one of the names is not known"
                    )
            if pins:
                profile["pins"] = pins
            lines += [*self._comments(entry.line - 1, entry.line, 2), f"  {emit.spelled(name)}: {emit.flow(profile)}"]
        return ["", "profiles:", *lines] if lines else []


_CARRIED = ("macros", "models", "peers", "selectors", "profiles", "healthCheckTimeout", "globalTTL", "sendLoadingState")


def _words(entry: Entry | None) -> list[str]:
    if entry is None:
        return []
    if isinstance(entry.node, SequenceNode):
        return [item.text for item in entry.node.items if isinstance(item, Scalar)]
    return []
