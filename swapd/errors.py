"""Everything a client can be told went wrong, as one small tree.

Owns the status, OpenAI `type` and `code` of each error; `swapd.http.errors` turns them into responses, and
`swapd.http.exchange` into events of streams that have begun. A message says what, which model, the limit and the
remedy. Must never carry prompts or keys.
"""

from __future__ import annotations

from typing import Any, ClassVar


class SwapdError(Exception):
    """An error with an HTTP shape. `param` names the offending request field, where there is one."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.details = details or {}

    def envelope(self) -> dict[str, Any]:
        """OpenAI's error object. `details` are further fields of it, such as `n_ctx`."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
                **self.details,
            }
        }


class BadRequestError(SwapdError):
    status = 400
    type = "invalid_request_error"


class ActivityUnavailableError(SwapdError):
    """What was kept of past requests cannot be read now."""

    status = 503
    code = "activity_unavailable"


class PreviousResponseNotFoundError(BadRequestError):
    """A request goes on from a response that is not stored for its client."""

    code = "previous_response_not_found"


class UnsupportedEndpointError(SwapdError):
    """The model is of another kind than this endpoint's."""

    status = 400
    type = "invalid_request_error"
    code = "unsupported_endpoint"


class UnauthorizedError(SwapdError):
    """No key, or none that is known here."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ForbiddenError(SwapdError):
    """The key is known, and not for this."""

    status = 403
    type = "permission_error"
    code = "scope_missing"


class StructuredForbiddenError(SwapdError):
    """The key may not have answers held to a grammar or a schema."""

    status = 403
    type = "permission_error"
    code = "structured_not_allowed"


class ForeignHostError(SwapdError):
    """The request calls this server by a name that it does not know: DNS rebinding looks so."""

    status = 403
    type = "permission_error"
    code = "host_not_allowed"


class ForeignOriginError(SwapdError):
    """A web page of somewhere else wants something done."""

    status = 403
    type = "permission_error"
    code = "origin_not_allowed"


class UnknownModelError(SwapdError):
    status = 404
    type = "not_found_error"
    code = "model_not_found"


class ModelForbiddenError(UnknownModelError):
    """The key may not use this model, or there is none of that name: both read the same.

    Whoever tries several readings of a name goes on to the next, as after one that is unknown.
    """

    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class ModelDisabledError(SwapdError):
    """The profile in force leaves the model out. No use in trying again until somebody switches."""

    status = 404
    type = "not_found_error"
    code = "model_disabled"


class UnknownProfileError(SwapdError):
    status = 404
    type = "not_found_error"
    code = "profile_not_found"


class UnknownDeviceError(SwapdError):
    status = 404
    type = "not_found_error"
    code = "device_not_found"


class NotFoundError(SwapdError):
    status = 404
    type = "not_found_error"


class NotOfferedError(SwapdError):
    """Another server's endpoint for something that is done otherwise here."""

    status = 501
    type = "invalid_request_error"
    code = "not_offered"


class MethodNotAllowedError(SwapdError):
    status = 405
    type = "invalid_request_error"


class ModelNotLoadedError(SwapdError):
    """A request that may load nothing, because it must not change anything, finds no worker."""

    status = 409
    type = "invalid_request_error"
    code = "model_not_loaded"


class ForeignPageError(SwapdError):
    """A web page of another origin asks for what only the daemon's own pages and programs may."""

    status = 403
    type = "permission_error"
    code = "foreign_origin"


class BodyTimeoutError(SwapdError):
    """The client sent its body too slowly."""

    status = 408
    type = "timeout_error"
    code = "body_timeout"


class HeadersTimeoutError(SwapdError):
    """The client sent a request's headers too slowly."""

    status = 408
    type = "timeout_error"
    code = "headers_timeout"


class TooManyConnectionsError(SwapdError):
    """Told to a connection before it has said anything, which is closed then."""

    status = 503
    type = "unavailable_error"
    code = "too_many_connections"


class BodyTooLargeError(SwapdError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class ModelDoesNotFitError(SwapdError):
    """Permanent: the model's budget can never hold it."""

    status = 422
    type = "invalid_request_error"
    code = "model_does_not_fit"


class InvalidModelFileError(SwapdError):
    """Permanent until the file or its settings change."""

    status = 422
    type = "invalid_request_error"
    code = "invalid_model_file"


class QueueFullError(SwapdError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class ClientLimitError(SwapdError):
    """The client has as many requests in flight as one may have."""

    status = 429
    type = "rate_limit_error"
    code = "client_limit"


class KeyLimitError(SwapdError):
    """The API key has used up what its entry allows for now."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class RequestCancelledError(SwapdError):
    """Somebody cancelled it. gRPC's mapping of CANCELLED; clients' libraries do not retry it."""

    status = 499
    type = "cancelled_error"
    code = "request_cancelled"


class LoadFailedError(SwapdError):
    status = 503
    type = "unavailable_error"
    code = "model_load_failed"


class ShuttingDownError(SwapdError):
    status = 503
    type = "unavailable_error"
    code = "shutting_down"


class WorkerLostError(SwapdError):
    """The worker died or was stopped under a request."""

    status = 502
    type = "server_error"
    code = "worker_lost"


class WorkerFailedError(SwapdError):
    """The worker answered with an error of its own (5xx), and nothing else."""

    status = 502
    type = "server_error"
    code = "worker_failed"


class UpstreamRefusedError(SwapdError):
    """A server elsewhere did not accept swapd as its client; what it said is not for ours."""

    status = 502
    type = "server_error"
    code = "upstream_refused"


class UpstreamTimeoutError(SwapdError):
    """A server elsewhere was silent for longer than it may be."""

    status = 504
    type = "timeout_error"
    code = "upstream_timeout"


class QueueTimeoutError(SwapdError):
    status = 504
    type = "timeout_error"
    code = "queue_timeout"


class LoadTimeoutError(SwapdError):
    status = 504
    type = "timeout_error"
    code = "load_timeout"


class StartupError(Exception):
    """The daemon cannot start; the message is one line for the person at the terminal, exit code 1."""
