"""Long texts are cut where it changes no token."""

from __future__ import annotations

import random
from collections.abc import Iterator

import gguf
import pytest
from support.bert_files import write_bert
from support.engine_driver import load, settings_for

from backends.llama_cpp.engine.cuts import LONG_CHARS, TOKENS_PER_PART, Cuts
from backends.llama_cpp.engine.model import Model

SEED = 11
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>")


@pytest.fixture(scope="module")
def real() -> Iterator[Model]:
    loaded = load(settings_for(n_ctx=256))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A vocabulary that adds a token at both ends."""
    loaded = load(settings_for(path=write_bert(tmp_path_factory.mktemp("b") / "b.gguf", pooling=gguf.PoolingType.MEAN)))
    yield loaded
    loaded.close()


def long_text(rng: random.Random) -> str:
    parts = (*SPECIAL, "word ", "  ", "\n\n", "émigré 世界 🙂", "<|im_", "12 345", "\t")
    return "".join(rng.choices(parts, weights=[4] * 4 + [1] * 7, k=6_000))


def test_parts_make_up_the_text_and_begin_with_a_special_token() -> None:
    text = long_text(random.Random(SEED))
    parts = Cuts(SPECIAL).parts(text)
    assert "".join(parts) == text
    assert len(parts) > 4
    assert all(part.startswith(SPECIAL) for part in parts[1:])
    assert not any(part[-1].isspace() for part in Cuts(SPECIAL, strips=True).parts(text)[:-1])


def test_a_short_text_and_one_without_special_tokens_stay_whole() -> None:
    assert Cuts(SPECIAL).parts("<|im_end|>" * 100) == ["<|im_end|>" * 100]
    assert len(Cuts(SPECIAL).parts("a" * LONG_CHARS)) == 1
    assert len(Cuts(()).parts("<|im_end|>" * LONG_CHARS)) == 1


def test_a_token_that_another_could_straddle_is_no_place_to_cut() -> None:
    assert len(Cuts(("ab", "bc")).parts("ab" * LONG_CHARS)) > 1
    assert len(Cuts(("bc", "ab")).parts("bc" * LONG_CHARS)) == 1


def test_spaces_before_a_token_that_strips_them_keep_it_where_it_is() -> None:
    text = "x <|im_end|>" * LONG_CHARS
    assert len(Cuts(SPECIAL, strips=True).parts(text)) == 1
    assert len(Cuts(SPECIAL).parts(text)) > 1


@pytest.mark.parametrize("parse_special", [True, False])
@pytest.mark.parametrize("add_special", [True, False])
def test_a_long_text_has_the_tokens_llama_cpp_gives_it_in_one_go(
    real: Model, framed: Model, add_special: bool, parse_special: bool
) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    for model in (real, framed):
        text = long_text(rng)
        assert len(text) > LONG_CHARS
        whole = model._tokenize(text, add_special=add_special, parse_special=parse_special)
        assert model.tokenize(text, add_special=add_special, parse_special=parse_special) == whole


def test_a_hundred_thousand_special_tokens_are_many_parts(real: Model) -> None:
    count = 100_000
    text = "<|im_end|>" * count
    assert len(real._cuts.parts(text)) == -(-(count - 1) // TOKENS_PER_PART)
    assert real.tokenize(text, add_special=False, parse_special=True) == [2] * count
