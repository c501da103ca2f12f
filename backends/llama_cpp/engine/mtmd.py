"""A thin ctypes face over libmtmd: a model's projector, which turns images and sound into embeddings.

Owns the projector's context and what is made with it. Decides nothing about requests. Tokenizing is for any thread;
`encode` is for one thread at a time, and never the engine's, which has streams to serve meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llama_cpp.llama_cpp as llama
import llama_cpp.mtmd_cpp as mtmd
import numpy as np
import numpy.typing as npt

from backends.base import Offload
from backends.llama_cpp.engine import logs
from backends.llama_cpp.engine.model import Model, ModelLoadError
from backends.llama_cpp.engine.params import count_usable_cores, projector_device
from backends.llama_cpp.settings import LlamaCppSettings

NODES_PER_LOOK = 16
"""Steps of the encoder's graph between two looks at whether anyone still waits for it: about a layer."""
_NO_PROGRAMS = b"/nonexistent"
"""Where libmtmd is to look for ffmpeg, which it would start for bytes that it cannot read itself."""


class EncodeError(Exception):
    """llama.cpp could not make embeddings of a medium; its log says why."""


class StoppedError(Exception):
    """Nobody waits for the embeddings any more."""


@dataclass(frozen=True, slots=True)
class TextChunk:
    """Text between media, the projector's own marks around them included."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MediaChunk:
    """A medium or a part of one. `pointer` is valid as long as the chunks it came with."""

    medium: int
    """Number of the bitmap it came from."""
    n_tokens: int
    n_pos: int
    causal: bool
    pointer: Any


Chunk = TextChunk | MediaChunk


class Bitmap:
    """A decoded image or sound, or the mere size of one. Must be closed."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer
        self.width = int(mtmd.mtmd_bitmap_get_nx(pointer))
        """Of a sound, its samples."""
        self.height = int(mtmd.mtmd_bitmap_get_ny(pointer))

    def close(self) -> None:
        """Free it. Closing twice is harmless."""
        pointer, self.pointer = self.pointer, None
        if pointer:
            mtmd.mtmd_bitmap_free(pointer)


class Projector:
    """The encoder beside one model. `close` frees it, before the model; nothing may be called afterwards."""

    def __init__(self, ctx: Any, model: Model, keep: Sequence[object]) -> None:
        self._ctx = ctx
        self._keep = keep
        self._model = model
        self.sees = bool(mtmd.mtmd_support_vision(ctx))
        self.hears = bool(mtmd.mtmd_support_audio(ctx))
        self._mrope = bool(mtmd.mtmd_decode_use_mrope(ctx))
        self._options = mtmd.mtmd_helper_init_opt_default()
        self._options.video_params.ffmpeg_bin_dir = _NO_PROGRAMS
        self._stop: Callable[[], bool] = bool
        self._nodes = 0
        self.steps = 0
        """Parts of encodings finished, for whoever wants to see progress."""

    @classmethod
    def load(cls, model: Model, settings: LlamaCppSettings, offload: Offload) -> Projector | None:
        """Load the settings' `mmproj`; None without one. Computes nothing. Raises `ModelLoadError`."""
        path = settings.mmproj
        if path is None:
            return None
        mtmd.mtmd_helper_log_set(logs.callback, None)
        if not path.is_file():
            raise ModelLoadError(f"{path}: no such file", invalid=True)
        watch = _Watch()
        params = _params(settings, offload)
        params.cb_eval = watch.callback
        with logs.collect_errors() as errors:
            ctx = mtmd.mtmd_init_from_file(bytes(path), model.handle, params)
        if not ctx:
            reason = logs.reason(errors)
            raise ModelLoadError(f"{path}: {reason}", invalid=not logs.is_memory_trouble(errors))
        projector = cls(ctx, model, (watch, params))
        watch.projector = projector
        return projector

    def close(self) -> None:
        """Free the projector. Closing twice is harmless."""
        ctx, self._ctx = self._ctx, None
        if ctx:
            mtmd.mtmd_free(ctx)

    def decoded(self, data: bytes) -> Bitmap | None:
        """An image or sound from the bytes of its file, which have been looked at before; None if it cannot be read."""
        buffer = ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))
        made = mtmd.mtmd_helper_bitmap_init_from_buf_wrapper(self._ctx, buffer, len(data), False, self._options)
        return Bitmap(made.bitmap) if made.bitmap else None

    def sized(self, width: int, height: int) -> Bitmap:
        """An image without pixels: enough to learn how many tokens it will be."""
        return Bitmap(mtmd.mtmd_bitmap_init(width, height, None))

    @contextmanager
    def chunks(self, parts: Sequence[str | Bitmap], *, add_special: bool) -> Iterator[list[Chunk]]:
        """A prompt as chunks, in order. Texts may have special tokens written out.

        Raises `EncodeError` for a medium that the projector cannot take.
        """
        keep: list[object] = []
        array = (ctypes.POINTER(mtmd.mtmd_input_part) * len(parts))()
        numbers = 0
        for index, part in enumerate(parts):
            made = mtmd.mtmd_input_part()
            if isinstance(part, str):
                data = part.encode("utf-8", errors="replace")
                text = mtmd.mtmd_input_text(data, len(data), False, True)
                made.text = ctypes.pointer(text)
                keep += [data, text]
            else:
                # The chunks of a bitmap carry its name.
                mtmd.mtmd_bitmap_set_id(part.pointer, str(numbers).encode())
                made.bitmap = part.pointer
                numbers += 1
            array[index] = ctypes.pointer(made)
            keep.append(made)
        found = mtmd.mtmd_input_chunks_init()
        try:
            with logs.collect_errors() as errors:
                code = mtmd.mtmd_tokenize_from_parts(self._ctx, found, array, len(parts), add_special)
            if code != 0:
                raise EncodeError(logs.reason(errors))
            yield [
                self._chunk(mtmd.mtmd_input_chunks_get(found, index))
                for index in range(mtmd.mtmd_input_chunks_size(found))
            ]
        finally:
            mtmd.mtmd_input_chunks_free(found)

    def _chunk(self, pointer: Any) -> Chunk:
        n_tokens = int(mtmd.mtmd_input_chunk_get_n_tokens(pointer))
        if mtmd.mtmd_input_chunk_get_type(pointer) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
            count = ctypes.c_size_t(0)
            tokens: Any = mtmd.mtmd_input_chunk_get_tokens_text(pointer, ctypes.byref(count))
            return TextChunk(tuple(tokens[:n_tokens]))
        name = mtmd.mtmd_input_chunk_get_id(pointer)
        assert name is not None
        n_pos = int(mtmd.mtmd_input_chunk_get_n_pos(pointer))
        causal = not mtmd.mtmd_decode_use_non_causal(self._ctx, pointer)
        return MediaChunk(int(name), n_tokens, n_pos, causal, pointer)

    def positions(self, chunk: MediaChunk, start: int) -> npt.NDArray[np.int32]:
        """Absolute positions of a medium's tokens when its first is at `start`: one row, or four for M-RoPE."""
        if not self._mrope:
            return np.arange(start, start + chunk.n_tokens, dtype=np.int32)[np.newaxis]
        image = mtmd.mtmd_input_chunk_get_tokens_image(chunk.pointer)
        if not image:
            # Sound goes on in all four alike.
            return np.tile(np.arange(start, start + chunk.n_tokens, dtype=np.int32), (4, 1))
        places = (mtmd.mtmd_decoder_pos * chunk.n_tokens)()
        mtmd.mtmd_helper_image_get_decoder_pos(image, start, places)
        columns = np.frombuffer(memoryview(places).cast("B"), np.uint32).reshape(chunk.n_tokens, 4).astype(np.int32)
        # llama.cpp's sections are time, row, column and one more; the struct has the column first.
        return np.ascontiguousarray(columns[:, (0, 2, 1, 3)].T)

    def encode(self, chunk: MediaChunk, stop: Callable[[], bool]) -> npt.NDArray[np.float32]:
        """The embeddings of a medium, one row per token. Blocks; `stop` is asked now and then whether to give up.

        Raises `StoppedError` when it says so, `EncodeError` when llama.cpp fails.
        """
        self._stop = stop
        with logs.collect_errors() as errors:
            code = mtmd.mtmd_encode_chunk(self._ctx, chunk.pointer)
        self._stop = bool
        self.steps += 1
        if stop():
            raise StoppedError
        if code != 0:
            raise EncodeError(logs.reason(errors))
        rows: Any = mtmd.mtmd_get_output_embd(self._ctx)
        return np.ctypeslib.as_array(rows, shape=(chunk.n_tokens, self._model.n_embd_inp)).copy()

    def look(self, ask: bool) -> bool:
        """Called by llama.cpp for each node of the encoder's graph: whether to come back after it, or to go on."""
        if ask:
            self._nodes += 1
            return self._nodes % NODES_PER_LOOK == 0
        self.steps += 1
        return not self._stop()


class _Watch:
    """llama.cpp's callback while it encodes. Must never raise into it."""

    def __init__(self) -> None:
        self.projector: Projector | None = None
        self.callback = llama.ggml_backend_sched_eval_callback(self._on_node)

    def _on_node(self, _tensor: Any, ask: bool, _user: Any) -> bool:
        return self.projector.look(ask) if self.projector is not None else not ask


def _params(settings: LlamaCppSettings, offload: Offload) -> Any:
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.device = projector_device(settings, offload)
    params.print_timings = False
    params.n_threads = count_usable_cores() if settings.n_threads == "auto" else settings.n_threads
    params.image_min_tokens = settings.image_min_tokens or -1
    params.image_max_tokens = settings.image_max_tokens or -1
    # Reserves its buffers for an ordinary image now, so that too little memory shows while the model loads.
    params.warmup = True
    return params
