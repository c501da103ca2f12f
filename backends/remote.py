"""Describes a server elsewhere that speaks OpenAI's dialect: another swapd, a vLLM rack, a cloud's endpoint.

Nothing is started and no memory is held. Owns the keys of such models and the reading of the server's key, which is in
no setting and goes nowhere but into the address's headers. Must never open a connection.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from backends.address import Tls, UrlAddress
from backends.base import (
    FIRST_TOKEN_TIMEOUT_S,
    Capabilities,
    Duration,
    Footprint,
    Inspection,
    InvalidModelError,
    LaunchOrder,
    LaunchSpec,
    Peer,
    Settings,
)
from backends.plain import PlainBackend

MAX_KEY_BYTES = 16 * 1024
_NOTHING = Footprint((0,), (0,), host_weights_bytes=0, compute_bytes=0, output_bytes=0, process_bytes=0)
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)
_BASE_PATH = re.compile(r"(/[A-Za-z0-9._~%!$&'()*+,;=:@-]+)*", re.ASCII)
_HEALTH_PATH = re.compile(r"/[!-~]*", re.ASCII)


class RemoteSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the server is and what it can do."""

    proxy: str
    """`http://host:port` or `https://host`, with the path that comes before `/v1` if there is one."""
    api_key_file: Path | None = None
    """A file with the server's key alone. Relative paths are relative to the configuration file."""
    api_key_env: str | None = None
    """The variable of swapd's own environment that has it."""
    health: str = "/v1/models"
    """The path that answers 200 while the server is healthy, or `none`: that it takes connections is enough."""
    verify_tls: bool = True
    ca_file: Path | None = None
    """Certificates in PEM to trust in place of the system's."""
    n_parallel: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 8
    """Requests at once."""
    n_ctx: Annotated[int, msgspec.Meta(ge=1, le=16_777_216)] | None = None
    """The context there, for those who ask for the list of models; None is not known."""
    connect_timeout: Annotated[float, msgspec.Meta(ge=0.1, le=300, extra={"unit": "seconds"})] = 5.0
    first_token_timeout: Duration = FIRST_TOKEN_TIMEOUT_S
    """Without a byte, while an answer has not begun; after that `stall_timeout` counts."""
    traceparent: bool = False
    """Whether the server gets the headers `traceparent` and `tracestate`, by which its spans join a client's trace."""
    chat: bool = True
    completions: bool = True
    embeddings: bool = False
    rerank: bool = False
    vision: bool = False
    audio: bool = False

    def __post_init__(self) -> None:
        _split(self.proxy)
        if self.health != "none" and not _HEALTH_PATH.fullmatch(self.health):
            raise ValueError(f"health is {self.health[:80]!r}; write a path such as /health or /v1/models, or none")
        if self.api_key_file is not None and self.api_key_env is not None:
            raise ValueError("api_key_file and api_key_env are both given; one of them has the key")
        if self.proxy.lower().startswith("http:") and (self.ca_file is not None or not self.verify_tls):
            raise ValueError("proxy is http, which has no certificate; ca_file and verify_tls belong to https")

    @property
    def address(self) -> UrlAddress:
        """The server, without its key."""
        parts = _split(self.proxy)
        is_safe = parts.scheme == "https"
        tls = Tls(self.verify_tls, self.ca_file) if is_safe else None
        # What SDKs call the base URL ends with the /v1 that every path here begins with.
        base_path = parts.path.rstrip("/").removesuffix("/v1")
        port = parts.port or (443 if is_safe else 80)
        return UrlAddress(parts.hostname or "", port, tls, base_path, takes_traces=self.traceparent)


class RemoteBackend(PlainBackend):
    """`backends.base.Backend` for servers elsewhere."""

    name: ClassVar[str] = "remote"
    settings_type: ClassVar[type[Settings]] = RemoteSettings

    def inspect(self, settings: RemoteSettings) -> Inspection:
        """What the settings say. Reads the key to see that there is one. Raises `InvalidModelError`."""
        self.peer(settings)
        return Inspection(
            footprint=_NOTHING,
            slots=settings.n_parallel,
            capabilities=Capabilities(
                chat=settings.chat,
                completions=settings.completions,
                embeddings=settings.embeddings,
                rerank=settings.rerank,
                vision=settings.vision,
                audio=settings.audio,
            ),
            n_ctx=settings.n_ctx or 0,
            n_gpu_layers=0,
            description=f"at {settings.address}",
            elsewhere=True,
            reports_usage=False,
            first_token_timeout_s=settings.first_token_timeout,
        )

    def files(self, settings: RemoteSettings) -> tuple[Path, ...]:
        """The key's file and the certificates'."""
        return tuple(file for file in (settings.api_key_file, settings.ca_file) if file is not None)

    def peer(self, settings: RemoteSettings) -> Peer:
        """The server with its key. Raises `InvalidModelError`."""
        key = _key(settings)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        at = settings.address
        address = replace(at, headers=MappingProxyType(headers))
        return Peer(address, None if settings.health == "none" else settings.health, settings.connect_timeout)

    def launch(self, settings: RemoteSettings, order: LaunchOrder) -> LaunchSpec:
        """Never asked for."""
        raise AssertionError(f"{settings.proxy}, a server elsewhere, is not started for {order.model_id}")


def _split(proxy: str) -> SplitResult:
    """The address's parts. Raises `ValueError` in the words of the key."""
    example = "write https://host, http://host:port, or either with a path"
    try:
        parts = urlsplit(proxy)
        port = parts.port
    except ValueError:
        raise ValueError(f"proxy has no valid host and port; {example}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("proxy must not hold a user or a password; put the key into a file and name it: api_key_file")
    if parts.scheme not in ("http", "https") or not _is_host(parts.hostname or "") or port == 0:
        raise ValueError(f"proxy is no address of a server; {example}")
    if parts.query or parts.fragment or not _BASE_PATH.fullmatch(parts.path.rstrip("/")):
        raise ValueError(f"proxy has more than a path after its host; {example}")
    return parts


def _is_host(host: str) -> bool:
    try:
        return bool(_HOST.fullmatch(host)) or ipaddress.IPv6Address(host) is not None
    except ValueError:
        return False


def _key(settings: RemoteSettings) -> str | None:
    """The server's key. Raises `InvalidModelError`, which never says what was read."""
    if settings.api_key_env is not None:
        found, where = os.environ.get(settings.api_key_env), f"the variable {settings.api_key_env} (api_key_env)"
        if found is None:
            raise InvalidModelError(f"{where} is not set for swapd")
    elif settings.api_key_file is not None:
        where = f"{settings.api_key_file} (api_key_file)"
        try:
            with settings.api_key_file.open("rb") as file:
                found = file.read(MAX_KEY_BYTES + 1).decode("ascii", "replace")
        except OSError as error:
            raise InvalidModelError(f"{where} cannot be read: {error.strerror}") from None
    else:
        return None
    key = found.strip()
    if not key or len(key) > MAX_KEY_BYTES or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidModelError(f"{where} must hold one key and nothing else, in printable characters without spaces")
    return key
