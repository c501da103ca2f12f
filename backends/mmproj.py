"""A model's projector (mmproj) as a file: whether it is one, what it reads, and what it takes beside the model.

Pure, over a header already read. Owns the bounds on images that the accounting rests on. Sources in llama.cpp's
tools/mtmd: clip.cpp (`load_hparams`, `load_tensors`, `reserve_compute_meta`, `clip_n_output_tokens`) and models/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from backends.base import Footprint, InvalidModelError
from backends.gguf import GgufHeader

MAX_IMAGE_PIXELS = 25_000_000
"""Larger images are refused. A photograph of 24 megapixels fits."""
DECODE_BYTES_PER_PIXEL = 16
"""What stb_image and libmtmd hold at most while an image is decoded and resized, one image at a time."""
MAX_SOUND_SECONDS = 300
KEPT_BYTES = 128 * 2**20
"""Embeddings of lately seen media that a worker keeps: a dozen images of a large model, hundreds of a small one."""

_MOST_TOKENS: dict[str, tuple[int, int]] = {
    "deepseek4v": (384, 1),
    "gemma4uv": (1120, 3),
    "gemma4v": (1120, 3),
    "glm4v": (4096, 2),
    "hunyuanvl": (16_384, 2),
    "kimik25": (4096, 1),
    "kimivl": (1024, 1),
    "lfm2": (256, 1),
    "ling3vl": (4096, 2),
    "minimax_m3": (576, 2),
    "muse-glimmer": (4096, 2),
    "pixtral": (1024, 1),
    "qwen2.5o": (4096, 2),
    "qwen2.5vl_merger": (4096, 2),
    "qwen2vl_merger": (4096, 2),
    "qwen3vl_merger": (4096, 2),
    "youtuvl": (62_500, 2),
}
"""Projectors that take images in their own size: most tokens of one unless told otherwise, and patches merged into a
token along each side (where the file does not say)."""
_TWO_CONVOLUTIONS = frozenset(("qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o", "qwen3vl_merger"))
_WINDOWED = "clip.vision.n_wa_pattern"
"""A projector with this key masks its attention with a matrix of all its patches."""
_STACKED = frozenset(("ultravox", "voxtral", "meralion"))
_WHISPER = frozenset((*_STACKED, "qwen2a", "qwen2.5o", "glma", "musicflamingo"))
"""Encoders that hear thirty seconds at a time: 3,000 frames, which they halve."""
_WHISPER_FRAMES = 3000
_FRAMES_PER_S = 25
"""Of other encoders, which hear everything at once."""
_MAX_DIMENSION = 2**20


@dataclass(frozen=True, slots=True)
class Projector:
    """What a projector reads, and what it takes on the device it is on. Figures are bytes."""

    sees: bool
    hears: bool
    weights_bytes: int
    compute_bytes: int
    """The encoder's buffer for the largest image it takes, or the longest sound."""


def read_projector(header: GgufHeader, *, image_max_tokens: int | None) -> Projector:
    """Judge a projector's file. Raises `InvalidModelError` for what is none, or cannot be used."""
    path = header.path
    if header.architecture != "clip":
        raise InvalidModelError(
            f"{path}: is not a multimodal projector but {header.architecture[:60] or 'of no architecture'}; "
            "name the model's mmproj file under mmproj"
        )
    sees = header.metadata.get("clip.has_vision_encoder") is True
    hears = header.metadata.get("clip.has_audio_encoder") is True
    if not sees and not hears:
        raise InvalidModelError(f"{path}: has neither a vision nor an audio encoder; get the model's mmproj file")
    compute = (_vision_bytes(header, image_max_tokens) if sees else 0) + (_audio_bytes(header) if hears else 0)
    return Projector(sees, hears, sum(tensor.size_bytes for tensor in header.tensors), compute)


def with_projector(footprint: Footprint, projector: Projector, *, offload: bool, embedding_bytes: int) -> Footprint:
    """The footprint of a model with this projector beside it.

    It lies with the output layer if it may leave RAM, its buffer included: both move together. `embedding_bytes` are
    those of a context full of media. What decodes images is in RAM always.
    """
    layers = list(footprint.layer_weights_bytes)
    host_weights = footprint.host_weights_bytes
    own = projector.weights_bytes + projector.compute_bytes
    if offload:
        layers[-1] += own
    else:
        host_weights += own
    pixels = MAX_IMAGE_PIXELS * DECODE_BYTES_PER_PIXEL if projector.sees else 0
    return replace(
        footprint,
        layer_weights_bytes=tuple(layers),
        host_weights_bytes=host_weights,
        process_bytes=footprint.process_bytes + pixels + KEPT_BYTES + embedding_bytes,
    )


def _vision_bytes(header: GgufHeader, image_max_tokens: int | None) -> int:
    kind = _kind(header, "vision")
    n_patches = _patches(header, kind, image_max_tokens)
    patch = _number(header, "clip.vision.patch_size")
    image = 4 * 3 * patch * patch * n_patches
    # Its unpacked form for each convolution after the first has nowhere to go that is free already.
    unpacked = image // 2 if kind in _TWO_CONVOLUTIONS else 0
    mask = 6 * n_patches * n_patches if _WINDOWED in header.metadata else 0
    return _encoder_bytes(header, "vision", n_patches, image) + unpacked + mask


def _patches(header: GgufHeader, kind: str, image_max_tokens: int | None) -> int:
    """Of the largest image that is encoded in one go."""
    patch = _number(header, "clip.vision.patch_size")
    size = _number(header, "clip.vision.image_size", 0)
    most_pixels = _number(header, "clip.vision.image_max_pixels", 0)
    if kind in _MOST_TOKENS and (image_max_tokens or not most_pixels):
        tokens, merge = _MOST_TOKENS[kind]
        merge = _number(header, "clip.vision.spatial_merge_size", 0) or _number(
            header, "clip.vision.projector.scale_factor", merge
        )
        return (image_max_tokens or tokens) * merge * merge
    return max(1, max(most_pixels, size * size) // (patch * patch))


def _audio_bytes(header: GgufHeader) -> int:
    kind = _kind(header, "audio")
    if kind in _STACKED:
        _check_stack(header)
    n_mel = _number(header, "clip.audio.num_mel_bins")
    if kind in _WHISPER:
        return _encoder_bytes(header, "audio", _WHISPER_FRAMES // 2, 4 * _WHISPER_FRAMES * n_mel)
    n_frames = MAX_SOUND_SECONDS * _FRAMES_PER_S
    return _encoder_bytes(header, "audio", n_frames, 4 * 4 * n_frames * n_mel)


def _check_stack(header: GgufHeader) -> None:
    """llama.cpp counts such a sound's tokens in two ways, and aborts the process where they differ."""
    stack = _number(header, "clip.audio.projector.stack_factor")
    foreseen = -(-_WHISPER_FRAMES // stack) // 2
    made = -(-(_WHISPER_FRAMES // 2) // stack)
    if foreseen != made:
        raise InvalidModelError(
            f"{header.path}: stacks {stack} frames of sound into a token, which this llama.cpp cannot do: it expects "
            f"{foreseen} tokens and makes {made}"
        )


def _encoder_bytes(header: GgufHeader, prefix: str, n_positions: int, input_bytes: int) -> int:
    """The widest moment of a transformer's layers, all activations F32 and attention without a matrix of scores.

    Five rows as wide as the embedding are alive in attention, three and the hidden layer in the feed-forward part. The
    input's own place is free by then, and as many of those rows lie in it as fit.
    """
    n_embd = _number(header, f"clip.{prefix}.embedding_length")
    n_ff = _number(header, f"clip.{prefix}.feed_forward_length")
    row = 4 * n_positions * n_embd
    gated = any(".ffn_gate." in tensor.name for tensor in header.tensors)
    widest = max(5 * row, 3 * row + 4 * n_positions * n_ff * (2 if gated else 1))
    return max(input_bytes + input_bytes // 2, widest + input_bytes % row)


def _kind(header: GgufHeader, prefix: str) -> str:
    own = header.string("clip.projector_type") or header.string(f"clip.{prefix}.projector_type")
    if not own:
        raise InvalidModelError(f"{header.path}: does not say what projector it is (clip.projector_type)")
    return own


def _number(header: GgufHeader, key: str, default: int | None = None) -> int:
    value = header.integer(key)
    if value is None and default is not None:
        return default
    if value is None or not 1 <= value <= _MAX_DIMENSION:
        found = "is missing" if value is None else f"is {value}"
        raise InvalidModelError(f"{header.path}: metadata key {key} {found}; get the projector again")
    return value
