"""What a vocabulary says of its special tokens. Reads only, and nothing that changes, so any thread may ask."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as llama

from backends.llama_cpp.engine.cuts import Cuts
from backends.llama_cpp.engine.types import SpecialTokens

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_USER_DEFINED = llama.LLAMA_TOKEN_ATTR_USER_DEFINED
_SPECIAL = _USER_DEFINED | llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
_STRIPS = llama.LLAMA_TOKEN_ATTR_LSTRIP | llama.LLAMA_TOKEN_ATTR_RSTRIP


def special_tokens(vocab: Any) -> SpecialTokens:
    """The tokens that prompts are built with; llama.cpp's LLAMA_TOKEN_NULL is None."""

    def known(token: int) -> int | None:
        return int(token) if token >= 0 else None

    return SpecialTokens(
        bos=known(llama.llama_vocab_bos(vocab)),
        eos=known(llama.llama_vocab_eos(vocab)),
        sep=known(llama.llama_vocab_sep(vocab)),
        add_bos=bool(llama.llama_vocab_get_add_bos(vocab)),
        add_eos=bool(llama.llama_vocab_get_add_eos(vocab)),
        add_sep=bool(llama.llama_vocab_get_add_sep(vocab)),
        fim_prefix=known(llama.llama_vocab_fim_pre(vocab)),
        fim_suffix=known(llama.llama_vocab_fim_suf(vocab)),
        fim_middle=known(llama.llama_vocab_fim_mid(vocab)),
        fim_repository=known(llama.llama_vocab_fim_rep(vocab)),
        fim_separator=known(llama.llama_vocab_fim_sep(vocab)),
    )


def cuts(vocab: Any, n_vocab: int, *, parse_special: bool) -> Cuts:
    """Where long texts may be cut. Tokens that a user defined count even where special tokens are read as text."""
    kinds = _SPECIAL if parse_special else _USER_DEFINED
    texts, strips = set(), False
    for token in range(n_vocab):
        attributes = llama.llama_vocab_get_attr(vocab, token)
        if attributes & kinds:
            texts.add((llama.llama_vocab_get_text(vocab, token) or b"").decode("utf-8", errors="replace"))
            strips = strips or bool(attributes & _STRIPS)
    return Cuts(texts, strips=strips)


def guidance_tokenizer(
    vocab: Any, n_vocab: int, piece: Callable[[int, bool], bytes], eog_tokens: Iterable[int]
) -> LLTokenizer:
    """The vocabulary for llguidance. `piece` gives a token's bytes, those of a control token if its argument is true.

    A token is what it adds to a text: control tokens add nothing, and llguidance knows them by a first byte of 0xFF.
    """
    import llguidance

    tokens = [piece(token, False) or b"\xff" + piece(token, True) for token in range(n_vocab)]
    tokenize = ctypes.cast(llama._lib.llama_tokenize, ctypes.c_void_p).value  # noqa: SLF001 (llguidance calls it from C)
    guidance: Any = llguidance.LLTokenizer
    made: LLTokenizer = guidance.from_llamacpp(
        tokens=tokens, vocab_ptr=vocab, tokenize_fptr=tokenize, eos_token=sorted(eog_tokens), slices=None
    )
    return made
