"""From configured models to what the core schedules: files are inspected, footprints become `LayerCosts`.

Owns the translation between the configuration, the backends and the core's vocabulary. Functions here may
read files and are called in a thread; none of them holds state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache

from backends.base import Backend, Capabilities, Footprint, Inspection, InvalidModelError, Offload
from swapd.config.schema import Config, Model
from swapd.core.layout import Layout, parts
from swapd.core.spec import RAM, LayerCosts, ModelSpec, Placement, SplitMode
from swapd.errors import BadRequestError, UnknownModelError, UnsupportedEndpointError
from swapd.pool.fixed import Fixed, fixed_costs, fixed_of, with_measured
from swapd.pool.learned import Lesson
from swapd.pool.lease import Ability, Sense
from swapd.pool.measure import corrected

ENDPOINTS: Mapping[Ability, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "transcriptions": "/v1/audio/transcriptions",
    "speech": "/v1/audio/speech",
    "images": "/v1/images/generations",
}
"""Where each ability is asked for."""

_HIDING_VARIABLES = frozenset((
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
    "GGML_VK_VISIBLE_DEVICES", "ONEAPI_DEVICE_SELECTOR", "ZE_AFFINITY_MASK",
))  # fmt: skip
"""They change which GPU a name stands for."""

FilesSeen = tuple[tuple[str, int, int, int, int], ...] | None
"""Path, device, inode, size and modification time of each file; None while one is missing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model, inspected: its configuration, what its file says, and how the core sees it."""

    model: Model
    identity: FilesSeen
    inspection: Inspection | None
    """None when the file cannot be used; `spec.verdict` then says why."""
    spec: ModelSpec
    """Its costs are corrected by what was learned of the model."""
    formula: LayerCosts | None = None
    """The costs as they are worked out from the file and the settings alone."""
    fixed: Fixed | None = None
    """Of an engine that places itself, what its settings say that it takes."""


def inspect(
    model: Model,
    config: Config,
    backend: Backend,
    device_names: Collection[str],
    lesson_of: Callable[[str], Lesson] = lambda _: Lesson(),
) -> Entry:
    """Read a model's file and settings. Never raises for a bad file: that is the entry's verdict.

    `lesson_of` gives what was learned of a model, by the key of its workers.
    """
    identity: FilesSeen = None
    inspection: Inspection | None = None
    fixed: Fixed | None = None
    verdict: str | None = None
    try:
        identity = file_identity(backend, model)
        inspection = backend.inspect(model.settings)
        fixed = fixed_of(inspection, device_names)
        verdict = _impossible_wishes(model, inspection, set(device_names))
    except InvalidModelError as error:
        verdict = f"model {model.id!r} cannot be loaded: {error}"
    if verdict is not None:
        return Entry(model, identity, inspection, _spec(model, config, backend, identity, None, verdict))
    spec = _spec(model, config, backend, identity, inspection, None)
    if fixed is not None:
        gpus = tuple(name for name in fixed if name != RAM)
        spec = replace(spec, fixed=fixed, costs=fixed_costs(fixed), devices=gpus, n_gpu_layers=None if gpus else 0)
        assert inspection is not None
        if inspection.sleep is not None:
            spec = replace(spec, asleep_bytes=inspection.sleep.kept_bytes)
    entry = Entry(model, identity, inspection, spec, formula=spec.costs, fixed=fixed)
    return with_lesson(entry, lesson_of(spec.launch_key))


def with_lesson(entry: Entry, lesson: Lesson) -> Entry:
    """The entry with what was learned of its model: corrected costs, and how long it loads."""
    if entry.formula is None:
        return entry
    if entry.fixed is not None:
        assert entry.inspection is not None
        fixed = with_measured(entry.fixed, entry.inspection.declared_bytes, lesson.measured_bytes)
        spec = replace(entry.spec, fixed=fixed, costs=fixed_costs(fixed), learned_load_s=lesson.load_s)
        return replace(entry, spec=spec)
    costs = corrected(entry.formula, lesson.surplus)
    return replace(entry, spec=replace(entry.spec, costs=costs, learned_load_s=lesson.load_s))


def file_identity(backend: Backend, model: Model) -> FilesSeen:
    """Changes whenever one of the model's files is replaced or written to. Raises `InvalidModelError`."""
    found = []
    for path in backend.files(model.settings):
        try:
            stat = path.stat()
        except OSError:
            return None
        found.append((str(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def is_stale(entry: Entry, backend: Backend) -> bool:
    """Whether the model's files are no longer those that were inspected."""
    try:
        return file_identity(backend, entry.model) != entry.identity
    except InvalidModelError:
        return entry.identity is not None


def layer_costs(footprint: Footprint) -> LayerCosts:
    """The core's view of a backend's footprint: parts that move with layers, and parts that do not."""
    return LayerCosts(
        layer_weights_bytes=footprint.layer_weights_bytes,
        layer_kv_bytes=footprint.layer_kv_bytes,
        host_bytes=footprint.host_bytes,
        compute_bytes=footprint.compute_bytes,
        tied_output_bytes=footprint.tied_output_bytes,
        host_weights_bytes=footprint.host_weights_bytes,
        layer_expert_bytes=footprint.layer_expert_bytes,
        gpu_compute_bytes=footprint.gpu_compute_bytes,
        gpu_host_compute_bytes=footprint.gpu_host_compute_bytes,
        gpu_pipeline_bytes=footprint.gpu_pipeline_bytes,
        gpu_context_bytes=footprint.gpu_context_bytes,
        gpu_layer_copy_bytes=footprint.gpu_layer_copy_bytes,
        gpu_expert_copy_bytes=footprint.gpu_expert_copy_bytes,
        gpu_kept_copy_bytes=footprint.gpu_kept_copy_bytes,
    )


def offload(placement: Placement) -> Offload:
    """A placement as the worker is told of it: as many layers on each device as were reserved for it."""
    return Offload(
        n_gpu_layers=placement.n_gpu_layers,
        devices=placement.devices,
        tensor_split=tuple(float(count) for count in placement.tensor_split),
        n_cpu_moe=placement.n_cpu_moe,
        main_gpu=placement.main_gpu,
    )


def spare_sizes(config: Config, backends: Mapping[str, Backend]) -> dict[str, int]:
    """The bytes of RAM of each backend's spare process: of those that some model is run by, and that offer one."""
    if not config.server.warm_spare:
        return {}
    used = {model.backend for model in config.models.values()}
    return {name: backends[name].spare_bytes for name in sorted(used) if backends[name].spare_bytes}


def unmapped_bytes(entry: Entry, placement: Placement) -> int:
    """What a worker placed so takes of RAM beside pages of its file."""
    taken_bytes = placement.device_bytes.get(RAM, 0)
    if entry.inspection is None or entry.formula is None or not entry.inspection.maps_weights:
        return taken_bytes
    layout = Layout(
        placement.devices, placement.tensor_split, placement.n_cpu_moe, entry.spec.split_mode is SplitMode.ROW
    )
    return max(0, taken_bytes - parts(entry.formula, layout)[RAM].weights_bytes)


def require(entry: Entry, needs: Ability | None, senses: Iterable[tuple[Sense, str]] = ()) -> None:
    """Refuse a request that the model cannot answer before anything is loaded for it.

    Raises `UnsupportedEndpointError`, and `BadRequestError` for media that the model does not take.
    """
    if entry.inspection is None:
        return  # a file that cannot be used has a verdict of its own
    able = entry.inspection.capabilities
    for sense, param in senses:
        if not getattr(able, sense):
            takes = ", ".join(modalities(able))
            raise BadRequestError(f"{param}: model {entry.model.id!r} takes {takes} only", param=param)
    if needs is not None and not getattr(able, needs):
        offers = " and ".join(path for ability, path in ENDPOINTS.items() if getattr(able, ability))
        raise UnsupportedEndpointError(
            f"model {entry.model.id!r} does not serve {ENDPOINTS[needs]}, it serves {offers or 'nothing of its kind'}",
            param="model",
        )


def modalities(able: Capabilities) -> tuple[str, ...]:
    """What a model takes, in OpenAI's and others' words."""
    return ("text", *(["image"] if able.vision else []), *(["audio"] if able.audio else []))


@cache
def capabilities(able: Capabilities) -> tuple[str, ...]:
    """What a model can do, by name."""
    return tuple(field.name for field in fields(able) if getattr(able, field.name))


def resolve(entries: Mapping[str, Entry], name: str, others: Iterable[str] = ()) -> Model:
    """The model with this id or alias. Raises `UnknownModelError`, which lists close names, `others` among them."""
    entry = entries.get(name)
    if entry is not None:
        return entry.model
    for candidate in entries.values():
        if name in candidate.model.aliases:
            return candidate.model
    names = [*entries, *others, *(alias for entry in entries.values() for alias in entry.model.aliases)]
    close = get_close_matches(name[:200], names, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(repr(one) for one in close)}?" if close else "see GET /v1/models"
    raise UnknownModelError(f"there is no model {name[:200]!r}; {hint}", param="model")


def _spec(
    model: Model,
    config: Config,
    backend: Backend,
    identity: FilesSeen,
    inspection: Inspection | None,
    verdict: str | None,
) -> ModelSpec:
    spec = ModelSpec(
        id=model.id,
        launch_key=_launch_key(model, identity),
        slots=1,
        costs=None,
        verdict=verdict or "",
        has_portable_mode=backend.has_portable_mode,
        replicas=model.replicas,
        # Some variables are only read when a process starts, so none of a spare's can be changed.
        spare=None if model.env else model.backend,
        pin=model.pin,
        priority=model.priority,
        max_waiting=config.queue.max_waiting,
        max_waiting_tokens=config.queue.max_waiting_tokens,
        max_per_client=config.queue.max_per_client,
        queue_timeout_s=config.queue.timeout_s,
        max_wait_s=config.turns.max_wait_s if model.max_wait_s is None else model.max_wait_s,
        turn_s=config.turns.turn_s,
        idle_unload_s=model.idle_unload_s,
        load_timeout_s=model.load_timeout_s,
        stall_timeout_s=model.stall_timeout_s,
        drain_s=config.server.drain_s,
    )
    return spec if verdict is not None or inspection is None else _inspected(spec, inspection, identity)


def _inspected(spec: ModelSpec, inspection: Inspection, identity: FilesSeen) -> ModelSpec:
    """The spec with what the model's file and its settings for placement say."""
    return replace(
        spec,
        slots=inspection.slots,
        costs=layer_costs(inspection.footprint),
        verdict=None,
        n_gpu_layers=inspection.n_gpu_layers,
        devices=inspection.devices,
        tensor_split=inspection.tensor_split,
        split_mode=SplitMode(inspection.split_mode),
        main_gpu=inspection.main_gpu,
        n_cpu_moe=inspection.n_cpu_moe,
        mapped_files=_pages_key(identity) if inspection.shares_weights else None,
        elsewhere=inspection.elsewhere,
        first_token_timeout_s=None if inspection.reports_usage else inspection.first_token_timeout_s,
    )


def _pages_key(identity: FilesSeen) -> str | None:
    """The same for models whose files are the same ones, under whatever name."""
    return None if identity is None else repr([inode for _, *inode in identity])


def _launch_key(model: Model, identity: FilesSeen) -> str:
    said = repr((model.backend, model.settings, sorted(model.env.items()), identity))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _impossible_wishes(model: Model, inspection: Inspection, known: set[str]) -> str | None:
    """Why the settings ask for GPUs that are not there, or None if they do not."""
    has = f"this machine has {', '.join(sorted(known)) or RAM}. See `swapd devices`."
    kept = {} if inspection.sleep is None else inspection.sleep.kept_bytes
    asked = (("devices", inspection.devices), ("memory", inspection.declared_bytes), ("sleep.memory", kept))
    for key, names in asked:
        missing = [name for name in names if name not in known]
        if missing:
            return f"model {model.id!r} asks for {', '.join(missing)} ({key}); {has}"
    if inspection.places_itself:
        return None  # how its program counts GPUs is between the user and the program
    gpus = inspection.devices or tuple(known - {RAM})
    if not gpus:
        return None  # llama.cpp's way, too: without a GPU it is no matter how GPUs should be used
    hidden = sorted(_HIDING_VARIABLES & model.env.keys())
    if hidden:
        return (
            f"model {model.id!r} sets {', '.join(hidden)} in env: its worker would count GPUs otherwise than swapd. "
            "Name the ones it may use in devices, or set the variable for swapd itself"
        )
    if len(inspection.tensor_split) > len(gpus):
        return f"model {model.id!r} has {len(inspection.tensor_split)} shares in tensor_split; {has}"
    if inspection.tensor_split and not any(inspection.tensor_split):
        return f"model {model.id!r} has only zeros in tensor_split; leave it out, or give a device a share"
    if inspection.main_gpu is not None and inspection.main_gpu >= len(gpus):
        return f"model {model.id!r} asks for main_gpu {inspection.main_gpu}, counted from 0; {has}"
    return None
