"""What a llama-server command line says in the model keys of swapd.

Owns the table of flags. A flag that has no key, and that nothing is lost without, is left out with a remark; any other
makes the command one that only llama-server itself can run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

ALL_LAYERS = 99
"""People who want all layers on the GPU write this or more."""


@dataclass(slots=True)
class Translated:
    """A command line in keys. `foreign` has the flags that have none and matter: then it cannot be done without."""

    keys: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    """Of `params.set`: what the server took for its defaults."""
    remarks: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def is_llama_server(words: Sequence[str]) -> bool:
    return bool(words) and PurePosixPath(words[0].replace("\\", "/")).name.startswith("llama-server")


def _integer(text: str) -> int:
    return int(text)


def _layers(text: str) -> int | str:
    if text in ("auto", "all"):
        return text
    return "all" if int(text) >= ALL_LAYERS or int(text) < 0 else int(text)


def _switch(text: str) -> bool | str:
    return text if text == "auto" else text in ("on", "1", "true")


def _context(text: str) -> int:
    size = int(text)
    if size <= 0:
        raise ValueError("0 means the model's own length; write n_ctx")
    return size


def _list(text: str) -> list[str]:
    return text.split(",")


def _shares(text: str) -> list[float]:
    return [float(share) for share in re.split(r"[,/]+", text)]


def _mebibytes(text: str) -> str:
    size = int(text)
    if size < 0:
        raise ValueError("without a bound")
    return f"{size}MiB" if size else "0"


def _template(text: str) -> str:
    if "{%" not in text and "{{" not in text:
        raise ValueError("names a template instead of holding one")
    return text


def _adapters(text: str) -> list[dict[str, Any]]:
    return [{"path": path} for path in text.split(",")]


def _pooling(text: str) -> str:
    if text not in ("mean", "cls", "last", "rank"):
        raise ValueError("is no pooling of ours")
    return text


_Read = Callable[[str], Any]
_VALUED: Mapping[str, tuple[tuple[str, ...], _Read]] = {
    "path": (("-m", "--model"), str),
    "n_ctx": (("-c", "--ctx-size"), _context),
    "n_parallel": (("-np", "--parallel"), _integer),
    "n_gpu_layers": (("-ngl", "--gpu-layers", "--n-gpu-layers"), _layers),
    "devices": (("-dev", "--device"), _list),
    "tensor_split": (("-ts", "--tensor-split"), _shares),
    "main_gpu": (("-mg", "--main-gpu"), _integer),
    "split_mode": (("-sm", "--split-mode"), str),
    "n_cpu_moe": (("-ncmoe", "--n-cpu-moe"), _integer),
    "override_tensor": (("-ot", "--override-tensor"), _list),
    "type_k": (("-ctk", "--cache-type-k"), str),
    "type_v": (("-ctv", "--cache-type-v"), str),
    "n_batch": (("-b", "--batch-size"), _integer),
    "n_ubatch": (("-ub", "--ubatch-size"), _integer),
    "n_threads": (("-t", "--threads"), _integer),
    "mmproj": (("-mm", "--mmproj"), str),
    "image_min_tokens": (("--image-min-tokens",), _integer),
    "image_max_tokens": (("--image-max-tokens",), _integer),
    "cache_ram": (("-cram", "--cache-ram"), _mebibytes),
    "pooling": (("--pooling",), _pooling),
    "chat_template": (("--chat-template",), _template),
    "lora": (("--lora",), _adapters),
}
_KEYS = {flag: (key, read) for key, (flags, read) in _VALUED.items() for flag in flags}

_SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "--no-mmap": {"use_mmap": False},
    "--mlock": {"use_mlock": True},
    "--no-repack": {"use_extra_bufts": False},
    "-nr": {"use_extra_bufts": False},
    "--no-mmproj-offload": {"mmproj_offload": False},
    "--embedding": {"embeddings": True},
    "--embeddings": {"embeddings": True},
    "--reranking": {"embeddings": True, "pooling": "rank"},
    "--rerank": {"embeddings": True, "pooling": "rank"},
    "--cpu-moe": {"n_cpu_moe": 999},
    "-cmoe": {"n_cpu_moe": 999},
}

_SAMPLING: Mapping[str, tuple[str, _Read]] = {
    "--temp": ("temperature", float),
    "--temperature": ("temperature", float),
    "--top-k": ("top_k", int),
    "--top-p": ("top_p", float),
    "--min-p": ("min_p", float),
    "--presence-penalty": ("presence_penalty", float),
    "--frequency-penalty": ("frequency_penalty", float),
    "--repeat-penalty": ("repeat_penalty", float),
    "--repeat-last-n": ("repeat_last_n", int),
    "-s": ("seed", int),
    "--seed": ("seed", int),
    "-n": ("max_tokens", int),
    "--predict": ("max_tokens", int),
    "--n-predict": ("max_tokens", int),
    "--reasoning-format": ("reasoning_format", str),
    "--chat-template-kwargs": ("chat_template_kwargs", json.loads),
}

_NEEDLESS = frozenset((
    "--jinja", "--no-webui", "--webui", "--metrics", "--slots", "--no-slots", "--props", "-cb", "--cont-batching",
    "-kvu", "--kv-unified", "--no-warmup", "--warmup", "--mmap", "--log-disable", "-v", "--verbose", "--log-verbose",
    "--log-timestamps", "--log-prefix", "--log-colors", "--no-perf", "--perf", "--offline", "--no-context-shift",
    "--mmproj-offload", "--repack", "--no-log-prefix",
))  # fmt: skip
"""What swapd does by itself, or asks of each worker as it needs it."""
_NEEDLESS_VALUED = frozenset(("--host", "--port", "--log-file", "-lv", "--log-verbosity", "--verbosity"))
_LEFT_OUT = frozenset(("--swa-full", "--context-shift", "--endpoint-metrics"))
_LEFT_OUT_VALUED = frozenset((
    "-a", "--alias", "--api-key", "--api-key-file", "--threads-http", "-to", "--timeout", "--cache-reuse", "-dt",
    "--defrag-thold", "-tb", "--threads-batch", "--prio", "--prio-batch", "--poll", "--numa", "--slot-save-path",
    "--ctx-checkpoints", "--swa-checkpoints", "-sps", "--slot-prompt-similarity", "--fit", "-fit", "--keep",
))  # fmt: skip
"""Left out with a remark: nothing that is answered depends on them, or swapd has its own way."""


def translate(words: Sequence[str]) -> Translated:
    """The keys for llama-server's arguments, the program left out."""
    found = Translated()
    rest = _separated(words)
    while rest:
        flag = rest.pop(0)
        if flag in ("-fa", "--flash-attn"):
            said = rest.pop(0) if rest and rest[0] in ("on", "off", "auto", "0", "1", "true", "false") else "on"
            found.keys["flash_attn"] = _switch(said)
        elif flag in _SWITCHES:
            found.keys.update(_SWITCHES[flag])
        elif flag in _NEEDLESS:
            continue
        elif flag in _LEFT_OUT:
            found.remarks.append(f"{flag} is left out: swapd has no such key")
        elif not rest or not (flag in _KEYS or flag in _SAMPLING or flag in _NEEDLESS_VALUED | _LEFT_OUT_VALUED):
            found.foreign.append(flag)
            while rest and not _is_flag(rest[0]):
                rest.pop(0)
        else:
            _take(found, flag, rest.pop(0))
    _settle(found)
    return found


def _take(found: Translated, flag: str, value: str) -> None:
    if flag in _NEEDLESS_VALUED:
        return
    if flag in _LEFT_OUT_VALUED:
        found.remarks.append(f"{flag} is left out: swapd has no such key, or does it in its own way")
        return
    into, (key, read) = (found.keys, _KEYS[flag]) if flag in _KEYS else (found.params, _SAMPLING[flag])
    try:
        taken = read(value)
    except (ValueError, KeyError) as error:
        if key == "n_ctx" and value.lstrip("-").isdigit():
            found.remarks.append(f"{flag} {value} is left out: {error}")
        else:
            found.foreign.append(flag)
        return
    if key in ("max_tokens", "seed") and taken < 0:
        return  # llama-server's word for none
    if isinstance(taken, list) and key in ("override_tensor", "lora"):
        taken = [*into.get(key, []), *taken]
    into[key] = taken


def _settle(found: Translated) -> None:
    """What only the whole line shows."""
    if "path" not in found.keys:
        found.foreign.append("no --model")
    if any(not entry.endswith("=CPU") for entry in found.keys.get("override_tensor", ())):
        found.foreign.append("--override-tensor to other than CPU")
    if found.params:
        names = ", ".join(found.params)
        found.remarks.append(
            f"{names}: defaults of the server, now set for every request (params.set); "
            "take out what clients are to choose themselves"
        )


def _separated(words: Sequence[str]) -> list[str]:
    """`--flag=value` in two words."""
    apart: list[str] = []
    for word in words:
        flag, sign, value = word.partition("=")
        apart += [flag, value] if sign and flag.startswith("--") and " " not in flag else [word]
    return apart


def _is_flag(word: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", word))
