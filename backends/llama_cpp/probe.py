"""The probe's process: asks llama.cpp what a model would take, or what devices it has, prints one document and ends.

Run as `python -m backends.llama_cpp.probe model --settings JSON --offload JSON`, or `… devices`. Weights, cache and
compute buffers are not allocated (`no_alloc`); recurrent states are, for as long as the process lives. It may open
GPUs. It ends by itself after a bounded time, with its parent, and on a bad file as llama.cpp ends it: without harm.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import resource
import signal
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from backends.base import DeviceMemory, Footprint, Offload, ProbedDevice, decode_path
from backends.llama_cpp import lifeline
from backends.llama_cpp.probing import TIMEOUT_S, Answer, DevicesAnswer, FailureAnswer, ModelAnswer
from backends.llama_cpp.settings import LlamaCppSettings
from backends.ties import die_with_parent

BREAKDOWN, LOG = "llama.cpp's memory breakdown", "llama.cpp's log, and formulas for weights and cache"
_LINES_KEPT = 20_000
_MIB = 1024 * 1024
_PRINTED_BYTES = 0.006 * _MIB
"""The log has two digits."""
_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")
"""enum ggml_backend_dev_type."""
_LAYER = re.compile(r"load_tensors: layer +(\d+) assigned to device (\S+?),")
_COMPUTE = re.compile(r"reserve: +(\S+) compute buffer size = +([\d.]+) MiB")
_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
"""Other devices have ids of other kinds, Metal's a number."""
_HOST = re.compile(r"^CPU|_Host$|^RAM$")


def main(argv: Sequence[str]) -> Answer:
    """Everything but the printing."""
    parser = argparse.ArgumentParser(prog="python -m backends.llama_cpp.probe", description="A probe of swapd.")
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("model")
    model.add_argument("--settings", required=True, help="model keys as JSON")
    model.add_argument("--offload", required=True, help="placement as JSON")
    commands.add_parser("devices")
    given = parser.parse_args(argv)
    if given.command == "devices":
        return list_devices()
    try:
        settings = msgspec.json.decode(given.settings, type=LlamaCppSettings, dec_hook=decode_path)
        offload = msgspec.json.decode(given.offload, type=Offload)
    except msgspec.MsgspecError as error:
        parser.error(str(error))
    return probe_model(settings, offload)


class _DeviceProps(ctypes.Structure):
    """`ggml_backend_dev_props` of ggml-backend.h. What may be added at its end has room to be written to."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("caps", ctypes.c_bool * 64),
    )


def list_devices() -> DevicesAnswer:
    """Every device of this build, the CPU too."""
    from llama_cpp._ggml import libggml

    libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    found = []
    for index in range(libggml.ggml_backend_dev_count()):
        props = _DeviceProps()
        device = ctypes.c_void_p(libggml.ggml_backend_dev_get(ctypes.c_size_t(index)))
        libggml.ggml_backend_dev_get_props(device, ctypes.byref(props))
        found.append(
            ProbedDevice(
                name=_decoded(props.name),
                description=_decoded(props.description),
                kind=_KINDS[props.type] if 0 <= props.type < len(_KINDS) else "other",
                total_bytes=props.memory_total,
                free_bytes=props.memory_free,
                pci=address if _PCI.fullmatch(address := _decoded(props.device_id).lower()) else "",
            )
        )
    return DevicesAnswer(tuple(found))


def _decoded(text: bytes | None) -> str:
    return (text or b"").decode("utf-8", "replace")


def probe_model(settings: LlamaCppSettings, offload: Offload) -> ModelAnswer | FailureAnswer:
    """Load without allocating, make the context, and read what it would take."""
    import llama_cpp.llama_cpp as llama

    from backends.llama_cpp.backend import LlamaCppBackend
    from backends.llama_cpp.engine.model import facts_of
    from backends.llama_cpp.engine.params import ModelLoadError, context_params, model_params

    lines: deque[str] = deque(maxlen=_LINES_KEPT)
    collect = llama.llama_log_callback(lambda _level, text, _data: lines.append(text.decode("utf-8", "replace")))
    llama.llama_log_set(collect, None)
    llama.llama_backend_init()
    full = LlamaCppBackend().inspect(settings).footprint
    bare = LlamaCppBackend().inspect(msgspec.structs.replace(settings, lora=(), mmproj=None)).footprint
    try:
        params = model_params(settings, offload, portable=False)
        params.struct.no_alloc = True
        params.struct.load_mode = llama.LLAMA_LOAD_MODE_NONE
        model = llama.llama_model_load_from_file(bytes(settings.path), params.struct)
        if not model:
            return FailureAnswer(f"{settings.path}: llama.cpp cannot load it: {_last_words(lines)}")
        ctx = llama.llama_init_from_model(model, context_params(settings, facts_of(model, settings), 1))
    except ModelLoadError as error:
        return FailureAnswer(str(error))
    if not ctx:
        return FailureAnswer(f"{settings.path}: llama.cpp cannot make a context: {_last_words(lines)}")
    log = "".join(lines)
    devices = _from_breakdown(ctx, log)
    source = BREAKDOWN if devices is not None else LOG
    return ModelAnswer(with_additions(devices or from_log(bare, log), bare, full, log), full.output_bytes, source)


def _from_breakdown(ctx: Any, log: str) -> tuple[DeviceMemory, ...] | None:
    """None unless the breakdown can be read, and agrees with the log on the compute buffers."""
    from backends.llama_cpp.breakdown import device_of, read_breakdown

    uses = read_breakdown(ctx)
    if uses is None:
        return None
    logged = _compute_buffers(log)
    if abs(sum(use.compute_bytes for use in uses) - sum(logged.values())) > _PRINTED_BYTES * max(1, len(logged)):
        return None
    model, context, compute = Counter[str](), Counter[str](), Counter[str]()
    for use in uses:
        device = device_of(use)
        model[device] += use.model_bytes
        context[device] += use.context_bytes
        compute[device] += use.compute_bytes
    return _in_order(model, context, compute)


def from_log(footprint: Footprint, log: str) -> tuple[DeviceMemory, ...]:
    """Layers where the log says they went, with the formulas' weights and cache; compute buffers as logged. Pure."""
    placed = _placed_layers(log)
    model, context = Counter({"RAM": footprint.host_weights_bytes}), Counter[str]()
    for layer, weights_bytes in enumerate(footprint.layer_weights_bytes):
        device = placed.get(layer, "RAM")
        model[device] += weights_bytes
        context[device] += footprint.layer_kv_bytes[layer]
    output_device = placed.get(len(footprint.layer_weights_bytes) - 1, "RAM")
    if output_device != "RAM":
        model[output_device] += footprint.tied_output_bytes
    return _in_order(model, context, _compute_buffers(log))


def with_additions(
    devices: tuple[DeviceMemory, ...], bare: Footprint, full: Footprint, log: str
) -> tuple[DeviceMemory, ...]:
    """Adapters and the projector on top, which are not loaded here: by the formulas, where those have them. Pure."""
    placed = _placed_layers(log)
    weights = Counter({"RAM": full.host_weights_bytes - bare.host_weights_bytes})
    for layer, (more, less) in enumerate(zip(full.layer_weights_bytes, bare.layer_weights_bytes, strict=True)):
        weights[placed.get(layer, "RAM")] += more - less
    graph = full.compute_bytes - bare.compute_bytes
    return tuple(
        replace(
            device,
            model_bytes=device.model_bytes + weights[device.name],
            compute_bytes=device.compute_bytes + (graph if device.compute_bytes else 0),
        )
        for device in devices
    )


def _placed_layers(log: str) -> dict[int, str]:
    return {int(layer): _device_name(device) for layer, device in _LAYER.findall(log)}


def _compute_buffers(log: str) -> Counter[str]:
    found = Counter[str]()
    for kind, mebibytes in _COMPUTE.findall(log):
        found[_device_name(kind)] += round(float(mebibytes) * _MIB)
    return found


def _device_name(kind: str) -> str:
    """RAM for kinds of host memory, by llama.cpp's names for them."""
    return "RAM" if _HOST.search(kind) else kind


def _in_order(
    model: Mapping[str, int], context: Mapping[str, int], compute: Mapping[str, int]
) -> tuple[DeviceMemory, ...]:
    names = sorted({*model, *context, *compute} - {"RAM"})
    return tuple(
        DeviceMemory(name, model.get(name, 0), context.get(name, 0), compute.get(name, 0)) for name in ["RAM", *names]
    )


def _last_words(lines: Sequence[str]) -> str:
    said = [line.strip() for line in lines if "error" in line.lower() or "failed" in line.lower()]
    return said[0][:500] if said else "it gave no reason"


def _guard() -> None:
    """Bounds on this process: no core file, no longer than it may take, no longer than its parent."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(TIMEOUT_S)
    die_with_parent()
    # A debugger that ggml attaches for a backtrace would hold up the end of a process that is to end.
    os.environ["GGML_NO_BACKTRACE"] = "1"


def run_and_leave(argv: Sequence[str]) -> None:
    """Print the answer and end at once, whatever the libraries still hold. What they print goes to standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        _guard()
        answer = main(argv)
    except Exception as error:  # an answer that says why, rather than none
        answer = FailureAnswer(f"{type(error).__name__}: {error}"[:500])
    os.write(answers, msgspec.json.encode(answer) + b"\n")
    lifeline.leave(1 if isinstance(answer, FailureAnswer) else 0)


if __name__ == "__main__":
    run_and_leave(sys.argv[1:])
