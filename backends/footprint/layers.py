"""What each block of a model keeps and how wide it is, from the header alone.

Owns the rules by which llama.cpp tells full, windowed, shared and recurrent layers apart. Must never read a file.
Sources: llama.cpp's src/llama-model.cpp llama_model_base::load_hparams and create_memory, llama-hparams.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from backends.base import InvalidModelError
from backends.footprint import designs
from backends.gguf import GgufHeader

MAX_LAYERS = 512
"""llama-hparams.h LLAMA_MAX_LAYERS; llama.cpp aborts beyond it."""
MAX_DIMENSION = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. Lengths are elements of one head."""

    n_head: int
    n_head_kv: int
    key_length: int
    value_length: int
    attends: bool = True
    owns_cache: bool = True
    """It attends to keys and values of its own; others use an earlier layer's."""
    windowed: bool = False
    turned: bool = True
    """Queries and keys are turned by position (RoPE)."""
    recurrent: bool = False
    indexed: bool = False

    @property
    def key_width(self) -> int:
        return self.key_length * self.n_head_kv

    @property
    def value_width(self) -> int:
        return self.value_length * self.n_head_kv


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What the formulas need of a header."""

    architecture: str
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    layers: tuple[Layer, ...]
    """One per block of llama.cpp's, those for speculation last."""
    n_trunk: int
    """Blocks that are loaded and run. The rest is for speculation, which is not asked for."""
    window: int = 0
    """Tokens of the sliding window, as llama.cpp tells it; 0 without."""
    windowed_cache: bool = False
    """Windowed layers have a cache of their own size."""
    latent: bool = False
    """MLA: one compressed key stands for keys and values."""
    indexer_length: int = 0
    indexer_heads: int = 0
    indexer_top_k: int = 0
    conv_state: int = 0
    """Elements per sequence of a recurrent layer's rolling state (llama_hparams::n_embd_r)."""
    recurrent_state: int = 0
    """Elements per sequence of its proper state (llama_hparams::n_embd_s)."""
    n_embd_out: int = 0
    """Length of an embedding that comes out; 0 is `n_embd`."""

    @property
    def n_layer(self) -> int:
        return len(self.layers)

    @property
    def key_length(self) -> int:
        return self.layers[0].key_length

    @property
    def value_length(self) -> int:
        return self.layers[0].value_length

    @property
    def widest_value(self) -> int:
        """llama-hparams.cpp n_embd_v_gqa_max."""
        return max(layer.value_width for layer in self.layers)


def dimensions(header: GgufHeader) -> Dimensions:
    """Take the dimensions from a header.

    Raises `InvalidModelError` when a key is missing, of a wrong type or out of range.
    """
    prefix = header.architecture
    n_file = required(header, f"{prefix}.block_count", MAX_LAYERS)
    n_embd = required(header, f"{prefix}.embedding_length", MAX_DIMENSION)
    n_trunk = (n_file - optional(header, f"{prefix}.nextn_predict_layers", 0, n_file)) or n_file
    window, windowed = _windows(header, n_file, n_trunk)
    layers = _with_memory(header, _plain_layers(header, n_file, n_embd, windowed), n_trunk)
    loops = max(1, optional(header, f"{prefix}.num_loops", 1, MAX_LAYERS // n_file)) if prefix == "nanbeige" else 1
    router = (replace(layers[0], n_head=1, n_head_kv=1),) if prefix in designs.ROUTER_LAYER else ()
    conv_state, state = _states(header, n_embd, layers[0].n_head)
    return Dimensions(
        architecture=prefix,
        n_embd=n_embd,
        n_vocab=header.length("tokenizer.ggml.tokens") or header.integer(f"{prefix}.vocab_size") or 0,
        n_ctx_train=required(header, f"{prefix}.context_length", MAX_DIMENSION),
        layers=(*layers * loops, *router),
        n_trunk=n_trunk * loops,
        window=window,
        windowed_cache=any(windowed),
        latent=_is_latent(header),
        indexer_length=optional(header, f"{prefix}.attention.indexer.key_length", 0),
        indexer_heads=optional(header, f"{prefix}.attention.indexer.head_count", 0),
        indexer_top_k=optional(header, f"{prefix}.attention.indexer.top_k", 0),
        conv_state=conv_state,
        recurrent_state=state,
        n_embd_out=optional(header, f"{prefix}.embedding_length_out", 0),
    )


def required(header: GgufHeader, key: str, most: int) -> int:
    """The number 1 <= n <= most under `key`. Raises `InvalidModelError`."""
    value = header.integer(key)
    if value is None:
        raise InvalidModelError(f"{header.path}: metadata key {key} is missing; the file is no complete model")
    return _ranged(header, key, value, 1, most)


def optional(header: GgufHeader, key: str, default: int, most: int = MAX_DIMENSION) -> int:
    """The number 0 <= n <= most under `key`, or the default. Raises `InvalidModelError`."""
    value = header.integer(key)
    return default if value is None else _ranged(header, key, value, 0, most)


def _ranged(header: GgufHeader, key: str, value: int, least: int, most: int) -> int:
    if least <= value <= most:
        return value
    raise InvalidModelError(f"{header.path}: metadata key {key} is {value}, it should be between {least} and {most}")


def _plain_layers(header: GgufHeader, n_layer: int, n_embd: int, windowed: tuple[bool, ...]) -> tuple[Layer, ...]:
    """Heads and their sizes; those of windowed layers may differ."""
    prefix = f"{header.architecture}.attention"
    heads = header.per_layer(f"{prefix}.head_count", n_layer) or (0,) * n_layer
    heads_kv = header.per_layer(f"{prefix}.head_count_kv", n_layer) or heads
    if max(*heads, *heads_kv, 0) > MAX_DIMENSION:
        raise InvalidModelError(f"{header.path}: metadata gives a layer more heads than can be")
    size = n_embd // heads[0] if heads[0] else 0
    key = optional(header, f"{prefix}.key_length", size) if heads[0] else 0
    value = optional(header, f"{prefix}.value_length", size) if heads[0] else 0
    key_swa = optional(header, f"{prefix}.key_length_swa", key)
    value_swa = optional(header, f"{prefix}.value_length_swa", value)
    return tuple(
        Layer(heads[il], heads_kv[il], key_swa, value_swa, windowed=True)
        if windowed[il]
        else Layer(heads[il], heads_kv[il], key, value)
        for il in range(n_layer)
    )


def _with_memory(header: GgufHeader, layers: tuple[Layer, ...], n_trunk: int) -> tuple[Layer, ...]:
    """Which blocks have a cache, a state or both (create_memory and its layer filters)."""
    architecture, n_layer = header.architecture, len(layers)
    widths = header.per_layer(f"{architecture}.feed_forward_length", n_layer) or (0,) * n_layer
    recurrent = _recurrent(header, layers, widths, n_trunk)
    hybrid = architecture in designs.NO_KEYS_MEAN_RECURRENT | designs.WITHOUT_MIXER_WHERE_WIDE
    last_cached = min(designs.SHARED_KV_FROM.get(architecture, n_layer), n_layer)
    if architecture in designs.SHARES_KV:
        last_cached -= optional(header, f"{architecture}.attention.shared_kv_layers", 0, n_layer)
    first_indexed = n_layer if architecture not in designs.INDEXED else 0
    if architecture in designs.INDEXED_AFTER_DENSE:
        first_indexed = optional(header, f"{architecture}.leading_dense_block_count", 0, n_layer)
    found = []
    for il, layer in enumerate(layers):
        attends = not recurrent[il] or architecture in designs.RECURRENT_BESIDE_ATTENTION
        if architecture in designs.WITHOUT_MIXER_WHERE_WIDE and widths[il]:
            attends = False
        found.append(
            replace(
                layer,
                attends=attends,
                owns_cache=attends and il < last_cached and (il < n_trunk or hybrid),
                recurrent=recurrent[il] and il < n_trunk,
                turned=_is_turned(architecture, layer, il),
                indexed=attends and first_indexed <= il < n_trunk,
            )
        )
    return tuple(found)


def _is_turned(architecture: str, layer: Layer, il: int) -> bool:
    if architecture in designs.WITHOUT_ROPE or (architecture in designs.ROPE_IN_WINDOWS and not layer.windowed):
        return False
    period = designs.ROPE_PERIODS.get(architecture, 0)
    return not period or (il + 1) % period != 0


def _windows(header: GgufHeader, n_layer: int, n_trunk: int) -> tuple[int, tuple[bool, ...]]:
    """Tokens of the window, and which layers have it (llama_model_base::load_swa_pattern)."""
    architecture, none = header.architecture, (False,) * n_layer
    rule = designs.WINDOWS.get(architecture)
    said = header.integer(f"{architecture}.attention.sliding_window")
    if architecture in designs.ALL_ATTENTION_WINDOWED and said:
        heads_kv = header.per_layer(f"{architecture}.attention.head_count_kv", n_layer) or (1,) * n_layer
        return said, tuple(bool(heads) for heads in heads_kv)
    if rule is None:
        return 0, none
    if rule.only_n_layer not in (0, n_trunk):
        return said or 0, none
    window = rule.default if said is None else said
    if not window:
        return 0, none
    pattern = f"{architecture}.attention.sliding_window_pattern"
    flags = header.flags(pattern, n_layer)
    if flags is None:
        period = optional(header, pattern, rule.period)
        full = 0 if rule.full_first else period - 1
        flags = tuple(il < n_trunk and (period == 0 or il % period != full) for il in range(n_layer))
    return rule.fixed or window, flags


def _recurrent(
    header: GgufHeader, layers: tuple[Layer, ...], widths: tuple[int, ...], n_trunk: int
) -> tuple[bool, ...]:
    """Which layers keep a state per sequence (is_recr_impl)."""
    architecture, n_layer = header.architecture, len(layers)
    if architecture in designs.RECURRENT_BESIDE_ATTENTION | designs.RECURRENT_ONLY:
        return (True,) * n_layer
    if architecture in designs.WITHOUT_MIXER_WHERE_WIDE:
        return tuple(not layer.n_head_kv and not width for layer, width in zip(layers, widths, strict=True))
    if architecture in designs.NO_KEYS_MEAN_RECURRENT:
        return tuple(layer.n_head_kv == 0 for layer in layers)
    if architecture not in designs.FULL_ATTENTION_INTERVALS:
        return (False,) * n_layer
    flags = header.flags(f"{architecture}.attention.recurrent_layers", n_layer)
    if flags is not None:
        return flags
    interval = optional(
        header, f"{architecture}.full_attention_interval", designs.FULL_ATTENTION_INTERVALS[architecture]
    )
    return tuple(il < n_trunk and (il + 1) % max(1, interval) != 0 for il in range(n_layer))


def _is_latent(header: GgufHeader) -> bool:
    prefix = f"{header.architecture}.attention"
    return bool(header.integer(f"{prefix}.key_length_mla") and header.integer(f"{prefix}.value_length_mla"))


def _states(header: GgufHeader, n_embd: int, n_head: int) -> tuple[int, int]:
    """Elements of a recurrent layer's two states for one sequence (llama-hparams.cpp n_embd_r, n_embd_s)."""
    prefix = header.architecture
    if prefix in designs.RWKV:
        shifts = optional(header, f"{prefix}.token_shift_count", 2)
        return shifts * n_embd, n_embd * optional(header, f"{prefix}.wkv.head_size", 0)
    if prefix in designs.SHORT_CONVOLUTION:
        return n_embd * max(0, optional(header, f"{prefix}.shortconv.l_cache", 0) - 1), 0
    kernel, inner, state, groups = (
        optional(header, f"{prefix}.ssm.{name}", 0)
        for name in ("conv_kernel", "inner_size", "state_size", "group_count")
    )
    if prefix in designs.DELTA_ATTENTION:
        size = optional(header, f"{prefix}.kda.head_dim", 0)
        return 3 * (kernel - 1 if kernel else 3) * n_head * size, size * size * n_head
    if prefix == "minimax-01":
        length = optional(header, f"{prefix}.attention.key_length", n_embd // n_head if n_head else 0)
        return 0, length * length * n_head
    if prefix in designs.WITHOUT_GROUPS:
        groups = 0
    return max(0, kernel - 1) * (inner + 2 * groups * state), state * inner
