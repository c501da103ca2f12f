from __future__ import annotations

import msgspec
import pytest

from backends.base import Settings
from backends.llama_cpp.settings import LlamaCppSettings


class StubBackend:
    """As much of a backend as the configuration looks at."""

    def __init__(self, name: str, settings_type: type[Settings]) -> None:
        self.name = name
        self.settings_type = settings_type


class RemoteSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    url: str
    headers: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    weights: tuple[float, ...] = ()
    n_ctx: int = 1


@pytest.fixture
def backends() -> dict[str, StubBackend]:
    return {
        "llama_cpp": StubBackend("llama_cpp", LlamaCppSettings),
        "remote": StubBackend("remote", RemoteSettings),
    }
