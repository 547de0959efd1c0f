"""Errors as OpenAI error objects: which HTTP status, type and code each of ours has.

https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from pdd_core.errors import (
    CloudError,
    CloudRefused,
    ContextOverflow,
    DeviceBusy,
    DeviceError,
    InvalidOptIn,
    InvalidRequest,
    PDDError,
    ServerStopping,
)

MODEL_NOT_FOUND = "model_not_found"
NOT_FOUND = "not_found"
TOO_LARGE = "request_too_large"
TOO_SLOW = "request_timeout"
CLIENT_GONE = 499
"""nginx' status for a client that left; nobody reads it but the metrics."""
_OTHER_STATUS = {MODEL_NOT_FOUND: 404, NOT_FOUND: 404, TOO_SLOW: 408, TOO_LARGE: 413}
"""Invalid requests with another HTTP status than 400, by their code."""


@dataclass(frozen=True, slots=True)
class ErrorObject:
    """OpenAI's error object, and the HTTP status that goes with it."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | int | None = None
    retry_after: float | None = None
    """Seconds until another try may succeed."""

    def body(self) -> dict[str, Any]:
        """Return ``{"error": {...}}``."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


INVALID = "invalid_request_error"
UNAVAILABLE = "unavailable_error"

LOADING = {"error": {"code": 503, "message": "Loading model", "type": UNAVAILABLE}}
"""llama.cpp's own body, which programs wait for; status 503."""
SHUTTING_DOWN = ErrorObject(503, "The server is shutting down", UNAVAILABLE, code="server_shutting_down")
DELETED = ErrorObject(404, "The answer was deleted while it was made", INVALID, code="answer_deleted")
INTERNAL = ErrorObject(500, "The server made a mistake; its log says more", "server_error", code="internal_error")


def error_object(error: PDDError) -> ErrorObject:
    """Return what a client is told about `error`."""
    message = str(error)
    match error:
        case InvalidRequest():
            status = _OTHER_STATUS.get(error.code or "", 400)
            return ErrorObject(status, message, INVALID, error.param, error.code)
        case InvalidOptIn():
            return ErrorObject(400, message, INVALID, error.param)
        case ContextOverflow():
            return ErrorObject(400, message, INVALID, code="context_length_exceeded")
        case DeviceBusy():
            return ErrorObject(
                429, message, "rate_limit_error", code="rate_limit_exceeded", retry_after=error.retry_after
            )
        case ServerStopping():
            return SHUTTING_DOWN
        case CloudError():
            wait = error.retry_after if isinstance(error, CloudRefused) else None
            return ErrorObject(503, message, UNAVAILABLE, code="cloud_unavailable", retry_after=wait)
        case DeviceError():
            return ErrorObject(503, message, UNAVAILABLE, code="device_unavailable")
        case _:
            return INTERNAL


def error_response(error: ErrorObject) -> JSONResponse:
    """Return `error` as an HTTP answer. ``x-should-retry: false`` where a retry can only end the same way."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    elif error.status not in (429, 503) or error.code == SHUTTING_DOWN.code:
        headers["x-should-retry"] = "false"
    return JSONResponse(error.body(), status_code=error.status, headers=headers)
