"""The core's refusals as errors with an HTTP shape."""

from __future__ import annotations

from swapd.core.effects import Refusal, RefusalKind
from swapd.errors import (
    ClientLimitError,
    InvalidModelFileError,
    LoadFailedError,
    LoadTimeoutError,
    ModelDoesNotFitError,
    ModelNotLoadedError,
    QueueFullError,
    QueueTimeoutError,
    ShuttingDownError,
    SwapdError,
    UnknownDeviceError,
    UnknownModelError,
)

ERRORS: dict[RefusalKind, type[SwapdError]] = {
    RefusalKind.NOT_LOADED: ModelNotLoadedError,
    RefusalKind.UNKNOWN_MODEL: UnknownModelError,
    RefusalKind.UNKNOWN_DEVICE: UnknownDeviceError,
    RefusalKind.INVALID_MODEL: InvalidModelFileError,
    RefusalKind.DOES_NOT_FIT: ModelDoesNotFitError,
    RefusalKind.QUEUE_FULL: QueueFullError,
    RefusalKind.CLIENT_LIMIT: ClientLimitError,
    RefusalKind.QUEUE_TIMEOUT: QueueTimeoutError,
    RefusalKind.LOAD_FAILED: LoadFailedError,
    RefusalKind.LOAD_TIMEOUT: LoadTimeoutError,
    RefusalKind.SHUTTING_DOWN: ShuttingDownError,
}


def error_for(refusal: Refusal) -> SwapdError:
    """The error that a client gets for a refusal."""
    return ERRORS[refusal.kind](refusal.message, retry_after_s=refusal.retry_after_s)
