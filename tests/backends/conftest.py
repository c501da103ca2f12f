"""The small models that several modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.engine_driver import load, tiny_settings
from support.structured_model import control_settings

from backends.llama_cpp.engine.model import Model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A random model with a small vocabulary."""
    loaded = load(tiny_settings(tmp_path_factory.mktemp("tiny"), n_parallel=8))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """One whose vocabulary has control tokens that families use."""
    loaded = load(control_settings(tmp_path_factory.mktemp("control"), n_parallel=4))
    yield loaded
    loaded.close()
