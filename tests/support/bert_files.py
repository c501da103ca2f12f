"""Tiny BERT models with random weights: encoders for embeddings, and rerankers with a classifier on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from support.gguf_files import smollm2_vocabulary

N_EMBD, N_LAYER, N_HEAD, N_FF, N_CTX_TRAIN, N_VOCAB = 64, 2, 4, 128, 512, 512
BOS, EOS, SEP = 1, 2, 3


def write_bert(
    path: Path, *, pooling: gguf.PoolingType, seed: int = 0, classifier: bool = True, rerank_template: str | None = None
) -> Path:
    """Write a model that llama.cpp loads. With `classifier` it has RoBERTa's two-layer head with one output."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(N_CTX_TRAIN)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    vocabulary = smollm2_vocabulary(N_VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_token_type_count(2)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_sep_token_id(SEP)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(True)
    if rerank_template is not None:
        writer.add_chat_template([{"name": "rerank", "template": rerank_template}])
    for name, values in _tensors(np.random.default_rng(seed), classifier=classifier):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(rng: np.random.Generator, *, classifier: bool) -> list[tuple[str, np.ndarray[Any, Any]]]:
    found: list[tuple[str, np.ndarray[Any, Any]]] = []

    def matrix(name: str, rows: int, columns: int) -> None:
        found.append((f"{name}.weight", rng.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)))

    def bias(name: str, size: int) -> None:
        found.append((f"{name}.bias", rng.normal(0.0, 0.1, size).astype(np.float32)))

    def norm(name: str) -> None:
        found.append((f"{name}.weight", np.ones(N_EMBD, np.float32)))
        found.append((f"{name}.bias", np.zeros(N_EMBD, np.float32)))

    matrix("token_embd", N_VOCAB, N_EMBD)
    matrix("token_types", 2, N_EMBD)
    matrix("position_embd", N_CTX_TRAIN, N_EMBD)
    norm("token_embd_norm")
    for layer in range(N_LAYER):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{part}", N_EMBD, N_EMBD)
            bias(f"blk.{layer}.{part}", N_EMBD)
        norm(f"blk.{layer}.attn_output_norm")
        matrix(f"blk.{layer}.ffn_up", N_FF, N_EMBD)
        bias(f"blk.{layer}.ffn_up", N_FF)
        matrix(f"blk.{layer}.ffn_down", N_EMBD, N_FF)
        bias(f"blk.{layer}.ffn_down", N_EMBD)
        norm(f"blk.{layer}.layer_output_norm")
    if classifier:
        matrix("cls", N_EMBD, N_EMBD)
        bias("cls", N_EMBD)
        matrix("cls.output", 1, N_EMBD)
        bias("cls.output", 1)
    return found
