"""What the header says of each block: full, windowed, shared, recurrent."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.blueprints import Blueprint
from support.gguf_files import Shape, write_model
from support.model_zoo import ZOO

from backends.base import InvalidModelError
from backends.footprint.layers import Dimensions, dimensions
from backends.gguf import read_header


class Describe:
    """Writes a model's header and reads its dimensions."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, model: Blueprint) -> Dimensions:
        return dimensions(read_header(model.write(self.directory / "model.gguf")))


@pytest.fixture
def described(tmp_path: Path) -> Describe:
    return Describe(tmp_path)


def dense(architecture: str, n_layer: int, **keys: float | tuple[bool, ...]) -> Blueprint:
    model = Blueprint(architecture, n_embd=256, n_layer=n_layer, n_head=4, n_head_kv=2, n_ff=512, n_vocab=512)
    for name, value in keys.items():
        model.key(f"attention.{name}", value)
    return model.edges()


def test_windows_follow_the_architectures_own_pattern(described: Describe) -> None:
    def windowed(architecture: str, n_layer: int) -> list[bool]:
        dims = described(dense(architecture, n_layer, sliding_window=512))
        return [layer.windowed for layer in dims.layers]

    assert windowed("gemma3", 7) == [True] * 5 + [False, True]
    assert windowed("gemma2", 3) == [True, False, True]
    assert windowed("smallthinker", 5) == [False, True, True, True, False]
    assert windowed("olmo2", 4) == [True, True, True, False]


def test_a_window_is_ignored_where_llama_cpp_ignores_it(described: Describe) -> None:
    dims = described(dense("qwen2", 4, sliding_window=512))
    assert (dims.window, dims.windowed_cache) == (0, False)


def test_a_pattern_in_the_file_wins(described: Describe) -> None:
    flags = (False, True, True, False)
    dims = described(dense("gemma3", 4, sliding_window=512, sliding_window_pattern=flags))
    assert tuple(layer.windowed for layer in dims.layers) == flags
    dims = described(dense("gemma3", 4, sliding_window=512, sliding_window_pattern=2))
    assert [layer.windowed for layer in dims.layers] == [True, False, True, False]


def test_some_architectures_have_a_window_whether_the_file_says_so_or_not(described: Describe) -> None:
    assert described(dense("gemma2", 2)).window == 4096
    assert described(dense("gemma3", 2)).window == 0
    assert described(dense("smallthinker", 2, sliding_window=512)).window == 4096


def test_a_rule_for_one_depth_leaves_others_alone(described: Describe) -> None:
    assert not described(dense("exaone4", 4, sliding_window=512)).windowed_cache
    assert described(dense("exaone4", 64, sliding_window=512)).windowed_cache


def test_layers_that_use_the_cache_of_earlier_ones_own_none(described: Describe) -> None:
    dims = described(ZOO["gemma4"](10))
    assert [layer.owns_cache for layer in dims.layers] == [True] * 5 + [False] * 5
    assert all(layer.attends for layer in dims.layers)
    assert {layer.key_length for layer in dims.layers if layer.windowed} == {256}
    assert {layer.key_length for layer in dims.layers if not layer.windowed} == {512}


def test_a_hybrids_layers_attend_or_are_recurrent(described: Describe) -> None:
    dims = described(ZOO["granite_hybrid"]())
    assert all(layer.attends != layer.recurrent for layer in dims.layers)
    assert any(layer.attends for layer in dims.layers)


def test_falcon_h1_has_both_in_every_layer(described: Describe) -> None:
    assert all(layer.attends and layer.recurrent for layer in described(ZOO["falcon_h1"]()).layers)


def test_nemotron_h_has_layers_with_neither(described: Describe) -> None:
    layers = described(ZOO["nemotron_h"]()).layers
    assert any(not layer.attends and not layer.recurrent for layer in layers)


def test_a_model_without_attention_has_states_only(described: Describe) -> None:
    dims = described(ZOO["mamba"]())
    assert all(layer.recurrent and not layer.owns_cache for layer in dims.layers)
    assert dims.conv_state > 0
    assert dims.recurrent_state > 0


def test_a_compressed_cache_is_told_by_the_head_sizes_it_stands_for(described: Describe) -> None:
    assert described(ZOO["deepseek2"]()).latent
    assert not described(ZOO["deepseek2_old"]()).latent


def test_blocks_for_speculation_are_not_run(described: Describe) -> None:
    model = dense("glm4moe", 4)
    model.key("nextn_predict_layers", 1)
    dims = described(model)
    assert (dims.n_layer, dims.n_trunk) == (4, 3)
    assert [layer.owns_cache for layer in dims.layers] == [True, True, True, False]


def test_a_model_that_runs_its_blocks_twice_has_a_cache_for_each_time(described: Describe) -> None:
    model = dense("nanbeige", 4)
    model.key("num_loops", 2)
    assert (described(model).n_layer, described(model).n_trunk) == (8, 8)


def test_heads_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "deci.gguf",
        Shape(n_embd=256, n_head=8, n_head_kv=(2, 4, 8, 1), n_ff=1024, n_layer=4, n_vocab=1024, architecture="deci"),
    )
    dims = dimensions(read_header(path))
    assert [layer.n_head_kv for layer in dims.layers] == [2, 4, 8, 1]
    assert dims.widest_value == 8 * 32


@pytest.mark.parametrize(
    ("shape", "metadata", "message"),
    [
        (Shape(n_layer=0), {}, r"llama\.block_count is 0, it should be between 1 and 512"),
        (Shape(n_ctx_train=0), {}, r"llama\.context_length is 0"),
        (Shape(), {"llama.attention.key_length": "wide"}, r"llama\.attention\.key_length should be a whole number"),
        (Shape(), {"llama.nextn_predict_layers": 9}, r"llama\.nextn_predict_layers is 9, it should be between 0 and 2"),
    ],
)
def test_dimensions_out_of_range_name_the_key(
    tmp_path: Path, shape: Shape, metadata: dict[str, int | str], message: str
) -> None:
    path = write_model(tmp_path / "odd.gguf", shape, metadata=metadata)
    with pytest.raises(InvalidModelError, match=message):
        dimensions(read_header(path))
