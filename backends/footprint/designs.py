"""What single architectures do their own way: which layers have a window, which are recurrent, how a block is built.

Owns names and numbers only, for the pinned llama.cpp (in llama-cpp-python 0.3.36). Sources in its src/: of
models/NAME.cpp load_arch_hparams and the graph; llama-arch.cpp llm_arch_is_recurrent and llm_arch_is_hybrid;
llama-model.cpp create_memory and llama_model_rope_type.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WindowRule:
    """Which layers have a sliding window when the file has no pattern of its own (llama_hparams::set_swa_pattern)."""

    period: int
    """Of so many layers one is full; 0 is a file that must say it, layer by layer."""
    full_first: bool = False
    """The full layer is the first of its group rather than the last."""
    default: int = 0
    """Tokens when the file does not say; 0 means that there is no window then."""
    fixed: int = 0
    """Tokens whatever a file that has a window says."""
    only_n_layer: int = 0
    """The rule is for models of this depth only."""


WINDOWS: dict[str, WindowRule] = {
    "afmoe": WindowRule(4),
    "cohere2": WindowRule(4),
    "cohere2moe": WindowRule(4, full_first=True),
    "dots3note": WindowRule(0),
    "exaone-moe": WindowRule(4, default=128),
    "exaone4": WindowRule(4, default=4096, only_n_layer=64),
    "gemma-embedding": WindowRule(6),
    "gemma2": WindowRule(2, default=4096),
    "gemma3": WindowRule(6),
    "gemma3n": WindowRule(5),
    "gemma4": WindowRule(0),
    "gpt-oss": WindowRule(2),
    "granite_swa": WindowRule(0),
    "laguna": WindowRule(4, full_first=True),
    "llama4": WindowRule(4, default=8192, fixed=8192),
    "maple": WindowRule(0),
    "mellum": WindowRule(4),
    "mimo2": WindowRule(0),
    "modern-bert": WindowRule(3, full_first=True),
    "muse-glimmer": WindowRule(4),
    "olmo2": WindowRule(4),
    "plamo3": WindowRule(8),
    "smallthinker": WindowRule(4, full_first=True, fixed=4096),
    "spark2_5": WindowRule(0),
    "step35": WindowRule(0),
}
"""Every other architecture ignores `attention.sliding_window`, but for lfm2, whose attention layers all have it."""

ALL_ATTENTION_WINDOWED = frozenset(("lfm2",))

RECURRENT_ONLY = frozenset(("arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"))
"""No attention in any layer."""

RECURRENT_BESIDE_ATTENTION = frozenset(("falcon-h1",))
"""Both in every layer."""

FULL_ATTENTION_INTERVALS: dict[str, int] = {
    "minimax-01": 8,
    "qwen35": 4,
    "qwen35moe": 4,
    "qwen3next": 4,
    "qwen4exp": 4,
}
"""One layer of so many attends and the others are recurrent, unless the file says otherwise."""

WITHOUT_MIXER_WHERE_WIDE = frozenset(("nemotron_h", "nemotron_h_moe"))
"""A layer is recurrent, attends or is a feed-forward layer, and only that: the width tells."""

NO_KEYS_MEAN_RECURRENT = frozenset((
    "bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe", "plamo2",
))  # fmt: skip
"""Layers without key-value heads are the recurrent ones."""

RWKV = frozenset(("arwkv7", "rwkv6", "rwkv6qwen2", "rwkv7"))
SHORT_CONVOLUTION = frozenset(("lfm2", "lfm2moe"))
DELTA_ATTENTION = frozenset(("bailingmoe3", "glm5-next", "kimi-k3", "kimi-linear"))
WITHOUT_GROUPS = frozenset(("jamba", "mamba"))
"""What the states of recurrent layers are made of: all others are Mamba's, with groups."""

INDEXED = frozenset(("deepseek32", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "minimax-m3", "qwen4exp"))
"""Keep a further key per token to choose what to attend to. Counted for every layer that attends; some share theirs."""

SHARED_KV_FROM: dict[str, int] = {"gemma3n": 20}
"""Layers from this one on use the cache of earlier ones, whatever the file says."""

SHARES_KV = frozenset(("gemma4",))
"""So many of the last layers as the file says do."""

ROUTER_LAYER = frozenset(("graniteswitch",))
"""One more layer of one head at the end, which no block of the file stands for."""

WITHOUT_ROPE = frozenset((
    "bert", "bloom", "glm5-next", "gpt2", "gptj", "jais", "jamba", "jina-bert-v2", "kimi-k3", "kimi-linear", "mpt",
    "nemotron_h", "nemotron_h_moe", "refact", "starcoder", "t5",
))  # fmt: skip
"""Positions are added to the embedding, biased, or not told at all: Q and K are used as they are projected."""

ROPE_IN_WINDOWS = frozenset(("cohere2", "cohere2moe", "llama4", "muse-glimmer", "smallthinker"))
ROPE_PERIODS: dict[str, int] = {"afmoe": 4, "smollm3": 4}
"""Layers with a window have it; or all layers but every so manieth."""

GATED_ATTENTION = frozenset(("qwen35", "qwen35moe", "qwen3next", "qwen4exp"))
"""The query's matrix has a gate beside each head."""

LATE_SELECTION = frozenset((
    "bailingmoe3", "cohere2moe", "gemma4", "glm5-next", "gpt-oss", "hy_v3", "mimo2", "nemotron_h", "nemotron_h_moe",
    "qwen35", "qwen35moe", "qwen3next", "step35",
))  # fmt: skip
"""The last layer computes every token; others drop those without an output before its feed-forward part."""

RESIDUAL_FIRST = frozenset(("lfm2", "lfm2moe"))
"""The sum of a block's input and its mixer is written over the input."""

NORM_BEFORE_STATE = frozenset(("qwen35", "qwen35moe", "qwen3next", "qwen4exp"))
"""A recurrent block norms its input before it fetches its state; others fetch it before the block before is done."""

CAPPED_SCORES = frozenset(("gemma2", "grok"))
"""Attention scores are squeezed by a tanh, which costs nothing in place."""

WITHOUT_LOGITS = frozenset(("bert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert",
                            "nomic-bert", "nomic-bert-moe", "eurobert"))  # fmt: skip
"""Encoders end at their last layer."""

OUTPUT_BEFORE_EMBEDDING = frozenset(("gemma4",))
"""A tied output is created before the embedding it is tied to: without a mapped file the two are not one in RAM."""

INDEXED_AFTER_DENSE = frozenset(("minimax-m3",))
"""The dense layers at the beginning have no indexer."""

ATTENTION_FIRST = frozenset(("phi2",))
"""Where attention and the feed-forward part stand side by side: the first is done before the other begins."""

ROUGH = frozenset((
    "arwkv7", "bailingmoe3", "deepseek32", "deepseek4", "dots3note", "gemma3n", "glm-dsa", "glm5-next", "hy_v4",
    "jina-bert-v2", "kimi-k3", "kimi-linear", "minimax-01", "qwen4exp", "rwkv6", "rwkv6qwen2", "rwkv7", "talkie",
))  # fmt: skip
"""Blocks with parts that are not laid out one by one: their compute buffer has `ROUGH_MARGIN` on top."""

ROUGH_MARGIN = 0.25
