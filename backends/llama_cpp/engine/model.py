"""A thin ctypes face over one llama.cpp model and its context.

Owns both pointers. Decides nothing about requests. Everything but tokenizing
and reading the vocabulary is for the engine's one thread only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt

from backends.base import Offload
from backends.llama_cpp.engine import logs, vocabulary
from backends.llama_cpp.engine.adapters import apply_adapters, load_adapters
from backends.llama_cpp.engine.batch import AnyBatch, Batch
from backends.llama_cpp.engine.cuts import LONG_CHARS, Cuts
from backends.llama_cpp.engine.grammars import Grammars
from backends.llama_cpp.engine.params import (
    ModelFacts,
    ModelLoadError,
    context_params,
    count_usable_cores,
    keeps_prefixes,
    model_params,
    n_outputs_max,
    pooling_type,
)
from backends.llama_cpp.engine.types import SpecialTokens, Task
from backends.llama_cpp.settings import LlamaCppSettings

if TYPE_CHECKING:
    from llguidance import LLTokenizer

__all__ = ["Model", "ModelLoadError"]

WARM_UP_TOKENS = 16
"""Enough for the kernels of batches, which are others than those of single tokens."""
BRIEF_WARM_UP_TOKENS = 2
_META_BYTES = 256


class Model:
    """One loaded model with its context. `close` frees both; nothing may be called afterwards."""

    def __init__(self, model: Any, ctx: Any, settings: LlamaCppSettings, facts: ModelFacts) -> None:
        self._model = model
        self.ctx = ctx
        self.facts = facts
        self.embeddings = facts.embeddings
        self._vocab: Any = llama.llama_model_get_vocab(model)
        self._memory: Any = llama.llama_get_memory(ctx)
        self.n_ctx = int(llama.llama_n_ctx(ctx))
        self.n_ctx_request = min(settings.n_ctx, self._trained_context())
        self.n_batch = int(llama.llama_n_batch(ctx))
        self.n_ubatch = int(llama.llama_n_ubatch(ctx))
        self.n_threads = int(llama.llama_n_threads(ctx))
        self.n_seq_max = int(llama.llama_n_seq_max(ctx))
        self.n_outputs_max = n_outputs_max(settings, facts)
        self.n_vocab = int(llama.llama_vocab_n_tokens(self._vocab))
        self.n_embd = int(llama.llama_model_n_embd_out(model))
        self.n_embd_inp = int(llama.llama_model_n_embd_inp(model))
        """Width of a row of embeddings in the place of a token."""
        self.keeps_prefixes = self._memory is not None and keeps_prefixes(settings, facts)
        self.splits_inputs = self._memory is not None and facts.pools_last_token
        # What one pooled vector holds: a reranking model's are its classifier's outputs.
        self.n_pooled = int(llama.llama_model_n_cls_out(model)) if facts.task is Task.RANK else self.n_embd
        self.kv_bytes = 0
        """Size of the whole cache, known after the warm-up from what its tokens took."""
        self._pieces: list[bytes | None] = [None] * self.n_vocab
        self._control_pieces: dict[int, bytes] = {}
        self.grammars = Grammars(self._guidance_tokenizer)
        self._logits: npt.NDArray[np.float32] | None = None
        self._logits_address = 0

    @classmethod
    def load(
        cls,
        settings: LlamaCppSettings,
        offload: Offload,
        *,
        portable: bool,
        on_progress: Callable[[float], None],
    ) -> Model:
        """Load the file and make its context. Blocks; `on_progress` is called in this thread with 0 to 1.

        Raises `ModelLoadError`, and whatever `on_progress` raises.
        """
        logs.install()
        llama.llama_backend_init()
        if not settings.path.is_file():
            raise ModelLoadError(f"{settings.path}: no such file", invalid=True)
        params = model_params(settings, offload, portable)
        model = _load_file(settings, params.struct, on_progress)
        try:
            facts = facts_of(model, settings)
            adapters = load_adapters(model, settings.lora)
            with logs.collect_errors() as errors:
                ctx = llama.llama_init_from_model(model, context_params(settings, facts, count_usable_cores()))
            if not ctx:
                raise _load_error(f"{settings.path}: llama.cpp cannot make a context", errors)
        except BaseException:
            llama.llama_model_free(model)
            raise
        apply_adapters(ctx, adapters, settings.lora)
        loaded = cls(model, ctx, settings, facts)
        if loaded._memory is None and not facts.embeddings:
            loaded.close()
            raise ModelLoadError(f"{settings.path}: a model of this kind cannot generate text", invalid=True)
        return loaded

    def close(self) -> None:
        """Free the context and the model. Closing twice is harmless."""
        ctx, self.ctx = self.ctx, None
        if ctx:
            llama.llama_free(ctx)
            llama.llama_model_free(self._model)
            self._model = None

    def warm_up(self, *, brief: bool = False) -> None:
        """Decode a few tokens and forget them: pages in the weights and shows whether this CPU can run the kernels.

        Brief where that is known.
        """
        count = min(BRIEF_WARM_UP_TOKENS if brief else WARM_UP_TOKENS, self.n_batch, self.n_ctx_request)
        batch = Batch(count)
        batch.add_chunk([self._harmless_token()] * count, 0, 0, outputs=1)
        if self.embeddings:
            batch.output[:] = 1
        code = self.decode(batch)
        if code != 0:
            raise ModelLoadError(f"the first decode failed: llama_decode returned {code}", invalid=False)
        llama.llama_synchronize(self.ctx)
        if self._memory is not None:
            self.kv_bytes = self.state_bytes(0) * self.n_ctx // count
        # The formal test of what the facts say: some caches refuse to lose only their end.
        if self.keeps_prefixes and not self.remove(0, count // 2):
            self.keeps_prefixes = False
        self.clear()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. Safe in any thread."""
        if len(text) < LONG_CHARS:
            return self._tokenize(text, add_special=add_special, parse_special=parse_special)
        frame = self._tokenize("", add_special=add_special, parse_special=False)
        start = int(add_special and self.special_tokens.add_bos)
        tokens = frame[:start]
        for part in (self._cuts if parse_special else self._cuts_of_plain_text).parts(text):
            tokens += self._tokenize(part, add_special=False, parse_special=parse_special)
        return tokens + frame[start:]

    def _tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", errors="replace")
        capacity = len(data) + 8
        while True:
            tokens = (llama.llama_token * capacity)()
            count = llama.llama_tokenize(self._vocab, data, len(data), tokens, capacity, add_special, parse_special)
            if count >= 0:
                return list(tokens[:count])
            assert -count > capacity, f"llama_tokenize wants {-count} of {capacity} tokens"
            capacity = -count

    @cached_property
    def _cuts(self) -> Cuts:
        return vocabulary.cuts(self._vocab, self.n_vocab, parse_special=True)

    @cached_property
    def _cuts_of_plain_text(self) -> Cuts:
        return vocabulary.cuts(self._vocab, self.n_vocab, parse_special=False)

    def text_parts(self, text: str) -> list[str]:
        """A text in parts that llama.cpp tokenizes each by itself, in bounded time, to the tokens of the whole."""
        return [text] if len(text) < LONG_CHARS else self._cuts.parts(text)

    @property
    def handle(self) -> Any:
        """llama.cpp's model."""
        return self._model

    def chat_template(self, name: str | None = None) -> str | None:
        """The file's `tokenizer.chat_template`, or the one of that name below it, if it has one."""
        template = llama.llama_model_chat_template(self._model, name.encode() if name else None)
        return template.decode("utf-8", errors="replace") if template else None

    def token_text(self, token: int) -> str:
        """A token's text in the vocabulary, special tokens included; empty for one that does not exist."""
        if not 0 <= token < self.n_vocab:
            return ""
        return self._render(token, special=True).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """A token's bytes with special tokens written out. Safe in any thread."""
        return self._render(token, special=True)

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The tokens that prompts are built with."""
        return vocabulary.special_tokens(self._vocab)

    @property
    def longest_input(self) -> int:
        """Tokens that one input of an embeddings context may have: one that is not split must fit a micro-batch."""
        return self.n_ctx_request if self.splits_inputs else min(self.n_batch, self.n_ctx_request)

    @property
    def bos_token(self) -> str:
        return self.token_text(llama.llama_vocab_bos(self._vocab))

    @property
    def eos_token(self) -> str:
        return self.token_text(llama.llama_vocab_eos(self._vocab))

    def is_eog(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    @cached_property
    def eog_tokens(self) -> frozenset[int]:
        """Every token that ends a generation. Asks for each of the vocabulary: 30 ms for one of 49,152."""
        return frozenset(token for token in range(self.n_vocab) if llama.llama_vocab_is_eog(self._vocab, token))

    @cached_property
    def suppressed_tokens(self) -> tuple[int, ...]:
        """Tokens that the file says are never to be sampled."""
        count = ctypes.c_int32(0)
        tokens: Any = llama.llama_vocab_get_suppress_tokens(self._vocab, ctypes.byref(count))
        return tuple(tokens[: count.value]) if count.value else ()

    def piece(self, token: int, *, visible: bool = False) -> bytes:
        """A token's bytes as they appear in generated text; control tokens have none unless they are `visible`."""
        if visible:
            return self._control_piece(token)
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._render(token, special=False)
        return piece

    def _control_piece(self, token: int) -> bytes:
        piece = self._control_pieces.get(token)
        if piece is None:
            piece = self._control_pieces[token] = self._render(token, special=True)
        return piece

    def _guidance_tokenizer(self) -> LLTokenizer:
        return vocabulary.guidance_tokenizer(
            self._vocab, self.n_vocab, lambda token, visible: self.piece(token, visible=visible), self.eog_tokens
        )

    def decode(self, batch: AnyBatch) -> int:
        """Run a batch. llama.cpp's code: 0, 1 no room, 2 aborted, -1 a bad batch, below that fatal.

        The limits that llama.cpp guards by aborting the process are asserted here first.
        """
        assert 0 < len(batch) <= self.n_batch
        assert self.embeddings or batch.outputs <= self.n_outputs_max
        code = int(llama.llama_decode(self.ctx, batch.struct))
        if code == 0 and self._memory is not None and not self.embeddings:
            self._map_logits()
        return code

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """Logits of the last batch's output number `row`, counted in batch order. Valid until the next decode."""
        assert self._logits is not None
        view: npt.NDArray[np.float32] = self._logits[row]
        return view

    def embedding(self, seq_id: int) -> npt.NDArray[np.float32]:
        """A copy of the pooled vector of a sequence of the last batch, of `n_pooled` floats."""
        pointer = llama.llama_get_embeddings_seq(self.ctx, seq_id)
        assert pointer, f"sequence {seq_id} has no pooled embedding"
        return np.ctypeslib.as_array(pointer, shape=(self.n_pooled,)).copy()

    def copy_prefix(self, source: int, target: int, end: int) -> None:
        """Sequence `target`, which must be empty, shares the cells of `source` before position `end`."""
        llama.llama_memory_seq_cp(self._memory, source, target, 0, end)

    def remove(self, seq_id: int, start: int = -1) -> bool:
        """Drop a sequence's cells from position `start`. Dropping a whole sequence always works."""
        return bool(llama.llama_memory_seq_rm(self._memory, seq_id, start, -1))

    def state_bytes(self, seq_id: int) -> int:
        """Size of a copy of a sequence's cache."""
        return int(llama.llama_state_seq_get_size(self.ctx, seq_id))

    def save(self, seq_id: int) -> npt.NDArray[np.uint8]:
        """Copy a sequence's cache to host memory, in llama.cpp's own format."""
        state = np.empty(self.state_bytes(seq_id), np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = llama.llama_state_seq_get_data(self.ctx, pointer, state.size, seq_id)
        assert written == state.size, f"llama.cpp wrote {written} of {state.size} bytes of sequence {seq_id}"
        return state

    def restore(self, seq_id: int, state: npt.NDArray[np.uint8]) -> bool:
        """Put a copy back under an empty sequence id, in cells of its own. False if llama.cpp does not take it."""
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(llama.llama_state_seq_set_data(self.ctx, pointer, state.size, seq_id))

    def clear(self) -> None:
        """Drop every sequence."""
        if self._memory is not None:
            llama.llama_memory_clear(self._memory, False)

    def _map_logits(self) -> None:
        """Keep a writable view of llama.cpp's output rows; its buffer moves only when it has to grow."""
        pointer = llama.llama_get_logits(self.ctx)
        address = ctypes.addressof(pointer.contents)
        if address != self._logits_address:
            self._logits = np.ctypeslib.as_array(pointer, shape=(self.n_outputs_max, self.n_vocab))
            self._logits_address = address

    def _render(self, token: int, *, special: bool) -> bytes:
        capacity = 64
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            count = llama.llama_token_to_piece(self._vocab, token, buffer, capacity, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            capacity = -count

    def _harmless_token(self) -> int:
        bos = int(llama.llama_vocab_bos(self._vocab))
        return bos if 0 <= bos < self.n_vocab else 0

    def _trained_context(self) -> int:
        """Tokens the model was trained for, with the rope scaling that the file itself asks for."""
        trained = int(llama.llama_model_n_ctx_train(self._model))
        arch = _meta(self._model, "general.architecture") or ""
        factor = float(_meta(self._model, f"{arch}.rope.scaling.factor") or 0)
        original = int(_meta(self._model, f"{arch}.rope.scaling.original_context_length") or 0)
        return max(trained, int(factor * original))


def _load_file(settings: LlamaCppSettings, params: Any, on_progress: Callable[[float], None]) -> Any:
    failures: list[BaseException] = []

    def progress(value: float, _: Any) -> bool:
        # An exception that left a ctypes callback would be printed and lost.
        try:
            on_progress(value)
        except BaseException as error:
            failures.append(error)
            return False
        return True

    callback = llama.llama_progress_callback(progress)
    params.progress_callback = callback
    with logs.collect_errors() as errors:
        model = llama.llama_model_load_from_file(bytes(settings.path), params)
    if failures:
        if model:
            llama.llama_model_free(model)
        raise failures[0]
    if not model:
        raise _load_error(f"{settings.path}: llama.cpp cannot load it", errors)
    return model


def facts_of(model: Any, settings: LlamaCppSettings) -> ModelFacts:
    """What the loaded file says that its context depends on. Raises `ModelLoadError`."""
    arch = _meta(model, "general.architecture") or ""
    in_file = _meta(model, f"{arch}.pooling_type")
    in_file_pooling = int(in_file) if in_file is not None else None
    causal = _meta(model, f"{arch}.attention.causal") != "false"
    pools = in_file_pooling not in (None, llama.LLAMA_POOLING_TYPE_NONE)
    pools = pools or settings.pooling == "rank"
    embeddings = (pools or not causal) if settings.embeddings == "auto" else settings.embeddings
    if llama.llama_model_has_encoder(model) and llama.llama_model_has_decoder(model):
        raise ModelLoadError(f"{settings.path}: encoder-decoder models are not served", invalid=True)
    window = llama.llama_model_n_swa(model) > 0
    recurrent = llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
    return ModelFacts(
        embeddings=embeddings,
        pooling_type=pooling_type(settings, in_file_pooling),
        causal=causal,
        per_sequence_cache=window or recurrent,
        sliding_window=window and not recurrent,
    )


def _meta(model: Any, key: str) -> str | None:
    """A metadata value as llama.cpp prints it."""
    buffer = ctypes.create_string_buffer(_META_BYTES)
    length = llama.llama_model_meta_val_str(model, key.encode(), buffer, _META_BYTES)
    return buffer.value.decode("utf-8", errors="replace") if length >= 0 else None


def _load_error(what: str, errors: Sequence[str]) -> ModelLoadError:
    """llama.cpp returns nothing but NULL: what went wrong is in its log."""
    reason = logs.reason(errors)
    return ModelLoadError(f"{what}: {reason}", invalid=not logs.is_memory_trouble(errors))
