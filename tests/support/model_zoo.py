"""Models of many designs with the proportions of real ones and few layers, for what they would take.

Each has the tensors that llama.cpp demands of its architecture (src/models/*.cpp, load_arch_tensors).
"""

from __future__ import annotations

from collections.abc import Callable

from support.blueprints import Blueprint


def llama(n_layer: int = 4) -> Blueprint:
    """Llama 3.2 1B: grouped heads."""
    model = Blueprint("llama", n_embd=2048, n_layer=n_layer, n_head=32, n_head_kv=8, n_ff=8192, n_vocab=32000).edges()
    for layer in range(n_layer):
        model.attention(layer)
        model.feed_forward(layer)
    return model


def mistral(n_layer: int = 3) -> Blueprint:
    """Mistral 7B and its kin say llama; Ministral 3 has an architecture of its own and explicit head sizes."""
    model = Blueprint("mistral3", n_embd=3072, n_layer=n_layer, n_head=32, n_head_kv=8, n_ff=9216, head_k=128).edges(
        tied=True
    )
    model.key("attention.temperature_scale", 0.1)
    model.key("attention.temperature_length", 16384)
    for layer in range(n_layer):
        model.attention(layer)
        model.feed_forward(layer)
    return model


def qwen2(n_layer: int = 6) -> Blueprint:
    """Qwen 2.5 0.5B: biases, a tied output, an odd number of heads."""
    model = Blueprint("qwen2", n_embd=896, n_layer=n_layer, n_head=14, n_head_kv=2, n_ff=4864, n_vocab=50000)
    model.edges(tied=True)
    for layer in range(n_layer):
        model.attention(layer, bias=True)
        model.feed_forward(layer)
    return model


def qwen3(n_layer: int = 6) -> Blueprint:
    """Qwen 3 0.6B: heads wider than n_embd / n_head, normed."""
    model = Blueprint(
        "qwen3", n_embd=1024, n_layer=n_layer, n_head=16, n_head_kv=8, n_ff=3072, head_k=128, n_vocab=50000
    )
    model.edges(tied=True)
    for layer in range(n_layer):
        model.attention(layer, qk_norm=True)
        model.feed_forward(layer)
    return model


def qwen3moe(n_layer: int = 3) -> Blueprint:
    """Qwen 3 30B A3B: 8 of 128 experts."""
    model = Blueprint("qwen3moe", n_embd=2048, n_layer=n_layer, n_head=32, n_head_kv=4, n_ff=6144, head_k=128).edges()
    model.experts_used(128, 8, 768)
    for layer in range(n_layer):
        model.attention(layer, qk_norm=True)
        model.experts(layer, 128, 768)
    return model


def gemma2(n_layer: int = 4) -> Blueprint:
    """Gemma 2 2B: every other layer has a window, logits and scores are capped."""
    model = Blueprint("gemma2", n_embd=2304, n_layer=n_layer, n_head=8, n_head_kv=4, n_ff=9216, head_k=256).edges(
        tied=True
    )
    model.key("attention.sliding_window", 4096)
    model.key("attn_logit_softcapping", 50.0)
    model.key("final_logit_softcapping", 30.0)
    for layer in range(n_layer):
        model.attention(layer)
        model.norm(f"blk.{layer}.post_attention_norm")
        model.feed_forward(layer)
        model.norm(f"blk.{layer}.post_ffw_norm")
    return model


def gemma3(n_layer: int = 8) -> Blueprint:
    """Gemma 3 4B: five layers in six have a window."""
    model = Blueprint("gemma3", n_embd=2560, n_layer=n_layer, n_head=8, n_head_kv=4, n_ff=10240, head_k=256).edges(
        tied=True
    )
    model.key("attention.sliding_window", 1024)
    for layer in range(n_layer):
        model.attention(layer, qk_norm=True)
        model.norm(f"blk.{layer}.post_attention_norm")
        model.feed_forward(layer)
        model.norm(f"blk.{layer}.post_ffw_norm")
    return model


def gemma4(n_layer: int = 10) -> Blueprint:
    """Gemma 4 E2B: other heads in windowed layers, later layers share earlier caches, an embedding for each layer."""
    model = Blueprint("gemma4", n_embd=1536, n_layer=n_layer, n_head=8, n_head_kv=1, n_ff=6144, head_k=512).edges(
        tied=True
    )
    windowed = tuple(layer % 5 != 4 for layer in range(n_layer))
    model.key("attention.sliding_window", 512)
    model.key("attention.sliding_window_pattern", windowed)
    model.key("attention.shared_kv_layers", max(0, n_layer - 5))
    model.key("attention.key_length_swa", 256)
    model.key("attention.value_length_swa", 256)
    model.key("rope.dimension_count_swa", 256)
    model.key("embedding_length_per_layer_input", 256)
    model.key("final_logit_softcapping", 30.0)
    model.matrix("per_layer_token_embd", 256 * n_layer, model.n_vocab)
    model.matrix("per_layer_model_proj", model.n_embd, 256 * n_layer)
    model.norm("per_layer_proj_norm", 256)
    model.vector("rope_freqs.weight", 256)
    for layer in range(n_layer):
        model.head_k = model.head_v = 256 if windowed[layer] else 512
        model.attention(layer, qk_norm=True, own_kv=layer < 5)
        model.norm(f"blk.{layer}.post_attention_norm")
        model.feed_forward(layer)
        model.norm(f"blk.{layer}.post_ffw_norm")
        model.matrix(f"blk.{layer}.inp_gate", model.n_embd, 256)
        model.matrix(f"blk.{layer}.proj", 256, model.n_embd)
        model.norm(f"blk.{layer}.post_norm")
    return model


def gpt_oss(n_layer: int = 4) -> Blueprint:
    """gpt-oss 20B: attention sinks, biases everywhere, 4 of 32 experts, every other layer has a window."""
    model = Blueprint("gpt-oss", n_embd=2880, n_layer=n_layer, n_head=64, n_head_kv=8, n_ff=2880, head_k=64).edges()
    model.key("attention.sliding_window", 128)
    model.experts_used(32, 4, 2880)
    for layer in range(n_layer):
        model.attention(layer, bias=True, output_bias=True)
        model.norm(f"blk.{layer}.post_attention_norm")
        model.vector(f"blk.{layer}.attn_sinks.weight", model.n_head)
        model.experts(layer, 32, 2880, bias=True, norm=False)
    return model


def _deepseek(n_layer: int, *, absorbed: bool) -> Blueprint:
    heads_kv, head_k, head_v = (1, 576, 512) if absorbed else (16, 192, 128)
    model = Blueprint(
        "deepseek2", n_embd=2048, n_layer=n_layer, n_head=16, n_head_kv=heads_kv, n_ff=10944, head_k=head_k
    )
    model.key("attention.value_length", head_v)
    if absorbed:
        model.key("attention.key_length_mla", 192)
        model.key("attention.value_length_mla", 128)
    model.key("rope.dimension_count", 64)
    model.key("attention.q_lora_rank", 1536)
    model.key("attention.kv_lora_rank", 512)
    model.key("leading_dense_block_count", 1)
    model.key("expert_shared_count", 2)
    model.experts_used(64, 6, 1408)
    model.edges()
    for layer in range(model.n_layer):
        block = f"blk.{layer}"
        model.norm(f"{block}.attn_norm")
        model.norm(f"{block}.attn_q_a_norm", 1536)
        model.norm(f"{block}.attn_kv_a_norm", 512)
        model.matrix(f"{block}.attn_q_a", model.n_embd, 1536)
        model.matrix(f"{block}.attn_q_b", 1536, 16 * 192)
        model.matrix(f"{block}.attn_kv_a_mqa", model.n_embd, 576)
        if absorbed:
            model.matrix(f"{block}.attn_k_b", 128, 512, 16)
            model.matrix(f"{block}.attn_v_b", 512, 128, 16)
        else:
            model.matrix(f"{block}.attn_kv_b", 512, 16 * 256)
        model.matrix(f"{block}.attn_output", 16 * 128, model.n_embd)
        if layer == 0:
            model.feed_forward(layer)
        else:
            model.experts(layer, 64, 1408)
            model.feed_forward(layer, suffix="_shexp", width=2816, norm=False)
    return model


def deepseek2(n_layer: int = 4) -> Blueprint:
    """DeepSeek V2 Lite with the query of V2: one latent in place of keys and values."""
    return _deepseek(n_layer, absorbed=True)


def deepseek2_old(n_layer: int = 4) -> Blueprint:
    """The same from before llama.cpp knew MLA: keys and values of every head."""
    return _deepseek(n_layer, absorbed=False)


def phi3(n_layer: int = 3) -> Blueprint:
    """Phi 3.5 mini: one matrix for Q, K and V, one for both halves of the feed-forward layer."""
    model = Blueprint("phi3", n_embd=3072, n_layer=n_layer, n_head=32, n_head_kv=32, n_ff=8192).edges()
    model.key("attention.sliding_window", 262144)
    for layer in range(n_layer):
        model.attention(layer, fused=True)
        model.norm(f"blk.{layer}.ffn_norm")
        model.matrix(f"blk.{layer}.ffn_up", model.n_embd, 2 * 8192)
        model.matrix(f"blk.{layer}.ffn_down", 8192, model.n_embd)
    return model


def command_r(n_layer: int = 3) -> Blueprint:
    """Command R: attention and feed-forward side by side."""
    model = Blueprint("command-r", n_embd=4096, n_layer=n_layer, n_head=32, n_head_kv=8, n_ff=14336, layer_norm=True)
    model.edges(tied=True)
    model.key("logit_scale", 0.0625)
    for layer in range(n_layer):
        model.attention(layer)
        model.feed_forward(layer, norm=False)
    return model


def cohere2(n_layer: int = 4) -> Blueprint:
    """Command R7B: the same with a window in three layers of four."""
    model = Blueprint("cohere2", n_embd=4096, n_layer=n_layer, n_head=32, n_head_kv=8, n_ff=14336, layer_norm=True)
    model.edges(tied=True)
    model.key("attention.sliding_window", 4096)
    model.key("logit_scale", 0.25)
    for layer in range(n_layer):
        model.attention(layer)
        model.feed_forward(layer, norm=False)
    return model


def olmo2(n_layer: int = 3) -> Blueprint:
    """OLMo 2 7B: norms after attention and feed-forward instead of before, Q and K normed as a whole."""
    model = Blueprint("olmo2", n_embd=4096, n_layer=n_layer, n_head=32, n_head_kv=32, n_ff=11008).edges()
    for layer in range(n_layer):
        model.attention(layer, norm=False)
        model.norm(f"blk.{layer}.attn_q_norm")
        model.norm(f"blk.{layer}.attn_k_norm")
        model.norm(f"blk.{layer}.post_attention_norm")
        model.feed_forward(layer, norm=False)
        model.norm(f"blk.{layer}.post_ffw_norm")
    return model


def starcoder2(n_layer: int = 3) -> Blueprint:
    """StarCoder 2 3B: no gate, biases everywhere."""
    model = Blueprint("starcoder2", n_embd=3072, n_layer=n_layer, n_head=24, n_head_kv=2, n_ff=12288, layer_norm=True)
    model.edges(tied=True)
    model.vector("output_norm.bias", model.n_embd)
    for layer in range(n_layer):
        model.attention(layer, bias=True, output_bias=True)
        model.vector(f"blk.{layer}.attn_norm.bias", model.n_embd)
        model.feed_forward(layer, gated=False, bias=True)
        model.vector(f"blk.{layer}.ffn_norm.bias", model.n_embd)
    return model


def glm4moe(n_layer: int = 4) -> Blueprint:
    """GLM 4.5 Air: a dense layer, experts beside a shared one, a last block for speculation that is not loaded."""
    model = Blueprint("glm4moe", n_embd=2048, n_layer=n_layer, n_head=32, n_head_kv=4, n_ff=5632, head_k=128).edges()
    model.key("leading_dense_block_count", 1)
    model.key("nextn_predict_layers", 1)
    model.key("expert_shared_count", 1)
    model.key("expert_gating_func", 2)
    model.experts_used(64, 8, 704)
    for layer in range(n_layer):
        model.attention(layer, bias=True)
        model.norm(f"blk.{layer}.post_attention_norm")
        if layer == 0:
            model.feed_forward(layer, norm=False)
            continue
        model.experts(layer, 64, 704, norm=False)
        model.vector(f"blk.{layer}.exp_probs_b.bias", 64)
        model.feed_forward(layer, suffix="_shexp", width=704, norm=False)
    model.matrix(f"blk.{n_layer - 1}.nextn.eh_proj", 4096, 2048)
    for name in ("enorm", "hnorm", "shared_head_norm"):
        model.norm(f"blk.{n_layer - 1}.nextn.{name}")
    return model


def mamba(n_layer: int = 4) -> Blueprint:
    """Mamba 1.4B: no attention at all."""
    model = Blueprint("mamba", n_embd=2048, n_layer=n_layer, n_head=0, n_head_kv=0, n_ff=0).edges(tied=True)
    model.ssm(conv=4, inner=4096, state=16, rank=128)
    for layer in range(n_layer):
        block = f"blk.{layer}"
        model.norm(f"{block}.attn_norm")
        model.matrix(f"{block}.ssm_in", 2048, 8192)
        model.vector(f"{block}.ssm_conv1d.weight", 4, 4096)
        model.vector(f"{block}.ssm_conv1d.bias", 4096)
        model.matrix(f"{block}.ssm_x", 4096, 128 + 2 * 16)
        model.matrix(f"{block}.ssm_dt", 128, 4096)
        model.vector(f"{block}.ssm_dt.bias", 4096)
        model.vector(f"{block}.ssm_a", 16, 4096)
        model.vector(f"{block}.ssm_d", 4096)
        model.matrix(f"{block}.ssm_out", 4096, 2048)
    return model


def mamba2(n_layer: int = 4) -> Blueprint:
    """Mamba 2 1.3B: wide states."""
    model = Blueprint("mamba2", n_embd=2048, n_layer=n_layer, n_head=0, n_head_kv=0, n_ff=0).edges(tied=True)
    model.ssm(conv=4, inner=4096, state=128, rank=64, groups=1)
    for layer in range(n_layer):
        model.mamba2(layer, conv=4, inner=4096, state=128, rank=64, groups=1)
    return model


def granite_hybrid(n_layer: int = 5) -> Blueprint:
    """Granite 4 H 1B: Mamba 2 in most layers, attention in the others, a feed-forward layer in each."""
    heads_kv = tuple(4 if layer % 5 == 3 else 0 for layer in range(n_layer))
    model = Blueprint("granitehybrid", n_embd=1536, n_layer=n_layer, n_head=12, n_head_kv=heads_kv, n_ff=4096)
    model.edges(tied=True)
    model.ssm(conv=4, inner=3072, state=128, rank=48, groups=1)
    model.key("residual_scale", 0.22)
    for layer in range(n_layer):
        if heads_kv[layer]:
            model.attention(layer)
        else:
            model.mamba2(layer, conv=4, inner=3072, state=128, rank=48, groups=1)
        model.feed_forward(layer)
    return model


def falcon_h1(n_layer: int = 4) -> Blueprint:
    """Falcon H1 1.5B: attention and Mamba 2 side by side in every layer."""
    model = Blueprint("falcon-h1", n_embd=2048, n_layer=n_layer, n_head=8, n_head_kv=2, n_ff=4096, head_k=128).edges()
    model.ssm(conv=4, inner=3072, state=256, rank=48, groups=1)
    for layer in range(n_layer):
        model.attention(layer)
        model.mamba2(layer, conv=4, inner=3072, state=256, rank=48, groups=1, norm=False)
        model.feed_forward(layer, norm=False)
        model.vector(f"blk.{layer}.ffn_norm", model.n_embd)
    return model


def lfm2(n_layer: int = 6) -> Blueprint:
    """LFM2 1.2B: short convolutions in most layers."""
    heads_kv = tuple(8 if layer % 3 == 2 else 0 for layer in range(n_layer))
    model = Blueprint("lfm2", n_embd=2048, n_layer=n_layer, n_head=32, n_head_kv=heads_kv, n_ff=8192)
    model.edges(tied=True, output_norm="token_embd_norm")
    model.key("shortconv.l_cache", 3)
    for layer in range(n_layer):
        block = f"blk.{layer}"
        if heads_kv[layer]:
            model.attention(layer, qk_norm=True)
        else:
            model.norm(f"{block}.attn_norm")
            model.vector(f"{block}.shortconv.conv.weight", 3, 2048)
            model.matrix(f"{block}.shortconv.in_proj", 2048, 3 * 2048)
            model.matrix(f"{block}.shortconv.out_proj", 2048, 2048)
        model.feed_forward(layer)
    return model


def qwen3next(n_layer: int = 4) -> Blueprint:
    """Qwen 3 Next 80B A3B: gated delta nets in three layers of four, attention with a gate in the fourth."""
    model = Blueprint("qwen3next", n_embd=2048, n_layer=n_layer, n_head=16, n_head_kv=2, n_ff=5120, head_k=256).edges()
    model.experts_used(64, 10, 512)
    model.key("expert_shared_feed_forward_length", 512)
    _delta_nets(model, {"ssm_ba": 64})
    for layer in range(n_layer):
        model.experts(layer, 64, 512, norm=False)
        model.vector(f"blk.{layer}.ffn_gate_inp_shexp.weight", 2048)
        model.feed_forward(layer, suffix="_shexp", width=512, norm=False)
    return model


def qwen35(n_layer: int = 4) -> Blueprint:
    """Qwen 3.5 4B: the same without experts, its gates' matrices apart."""
    model = Blueprint("qwen35", n_embd=2560, n_layer=n_layer, n_head=16, n_head_kv=4, n_ff=9216, head_k=256)
    model.edges(tied=True)
    model.key("rope.dimension_sections", (11, 11, 10, 0))
    _delta_nets(model, {"ssm_alpha": 32, "ssm_beta": 32})
    for layer in range(n_layer):
        model.feed_forward(layer, norm=False)
    return model


def _delta_nets(model: Blueprint, gates: dict[str, int]) -> None:
    """What mixes tokens, with its norms; `gates` are the rows of the matrices of a delta net's own gates."""
    model.key("rope.dimension_count", 64)
    model.ssm(conv=4, inner=4096, state=128, rank=32, groups=16)
    for layer in range(model.n_layer):
        block = f"blk.{layer}"
        model.norm(f"{block}.attn_norm")
        model.norm(f"{block}.post_attention_norm")
        if layer % 4 == 3:
            model.matrix(f"{block}.attn_q", model.n_embd, 2 * 16 * 256)
            model.matrix(f"{block}.attn_k", model.n_embd, model.heads_kv(layer) * 256)
            model.matrix(f"{block}.attn_v", model.n_embd, model.heads_kv(layer) * 256)
            model.matrix(f"{block}.attn_output", 16 * 256, model.n_embd)
            model.norm(f"{block}.attn_q_norm", 256)
            model.norm(f"{block}.attn_k_norm", 256)
            continue
        model.matrix(f"{block}.attn_qkv", model.n_embd, 8192)
        model.matrix(f"{block}.attn_gate", model.n_embd, 4096)
        model.vector(f"{block}.ssm_conv1d.weight", 4, 8192)
        model.vector(f"{block}.ssm_dt.bias", 32)
        model.vector(f"{block}.ssm_a", 32)
        for name, rows in gates.items():
            model.matrix(f"{block}.{name}", model.n_embd, rows)
        model.norm(f"{block}.ssm_norm", 128)
        model.matrix(f"{block}.ssm_out", 4096, model.n_embd)


def nemotron_h(n_layer: int = 6) -> Blueprint:
    """Nemotron H 4B: a layer is Mamba 2, attention or a feed-forward layer, and only that."""
    kinds = tuple("m-a-m-"[layer % 6] for layer in range(n_layer))
    model = Blueprint(
        "nemotron_h",
        n_embd=3072,
        n_layer=n_layer,
        n_head=32,
        n_head_kv=tuple(8 if kind == "a" else 0 for kind in kinds),
        n_ff=tuple(12288 if kind == "-" else 0 for kind in kinds),
        head_k=128,
    ).edges()
    model.key("attention.layer_norm_epsilon", 1e-5)
    model.ssm(conv=4, inner=7168, state=128, rank=112, groups=8)
    for layer, kind in enumerate(kinds):
        if kind == "m":
            model.mamba2(layer, conv=4, inner=7168, state=128, rank=112, groups=8)
        elif kind == "a":
            model.attention(layer)
        else:
            model.norm(f"blk.{layer}.attn_norm")
            model.feed_forward(layer, gated=False, norm=False)
    return model


def bert(n_layer: int = 6) -> Blueprint:
    """BGE base: an encoder, for embeddings only."""
    model = Blueprint(
        "bert", n_embd=768, n_layer=n_layer, n_head=12, n_head_kv=12, n_ff=3072, n_ctx_train=512, layer_norm=True
    )
    model.key("attention.causal", False)
    model.key("pooling_type", 2)
    model.metadata["tokenizer.ggml.token_type_count"] = 2
    model.matrix("token_embd", 768, model.n_vocab)
    model.matrix("token_types", 768, 2)
    model.matrix("position_embd", 768, 512)
    model.norm("token_embd_norm", bias=True)
    for layer in range(n_layer):
        model.attention(layer, bias=True, output_bias=True, norm=False)
        model.norm(f"blk.{layer}.attn_output_norm", bias=True)
        model.feed_forward(layer, gated=False, bias=True, norm=False)
        model.norm(f"blk.{layer}.layer_output_norm", bias=True)
    return model


ZOO: dict[str, Callable[..., Blueprint]] = {
    make.__name__: make
    for make in (
        llama, mistral, qwen2, qwen3, qwen3moe, gemma2, gemma3, gemma4, gpt_oss, deepseek2, deepseek2_old, phi3,
        command_r, cohere2, olmo2, starcoder2, glm4moe, mamba, mamba2, granite_hybrid, falcon_h1, lfm2,
        qwen3next, qwen35, nemotron_h, bert,
    )
}  # fmt: skip
