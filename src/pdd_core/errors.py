"""Every error this project raises, in one place.

::

    PDDError
    ├── ConfigurationError          a setting that cannot work; raised at start-up, names the setting
    │   └── UnsupportedDeployment   a deployment the plugin cannot serve (several API servers, data parallel)
    ├── InvalidRequest              a field of a request to the device is wrong             (HTTP 400)
    │   └── InvalidGrammar          a JSON schema or grammar that cannot be compiled        (HTTP 400)
    ├── DeviceBusy                  more answers are asked for than the device's queue holds (HTTP 429)
    ├── ServerStopping              the device's server was told to stop before an answer began (HTTP 503)
    ├── InvalidOptIn                a pdd_* request field is wrong                          (HTTP 400)
    │   └── HandoffInUse            the handoff id belongs to a running or deleted request  (HTTP 400)
    ├── HandoffNotFound             unknown or expired id                                   (HTTP 404)
    ├── SchemaVersionError          the other side speaks a newer major version of the wire schema
    ├── TokenizerMismatch           device and cloud do not share one vocabulary
    ├── CloudError
    │   ├── CloudUnreachable        no connection, or no server that answers as vLLM does
    │   ├── CloudRefused            the cloud answered with an error of its own
    │   └── CloudLost               the stream broke off before the cloud's part had ended
    ├── DeviceError
    │   ├── ContextOverflow         prompt and answer do not fit the device's context
    │   ├── DeviceEngineFailed      llama.cpp returned an error code, or made no token in time
    │   └── GrammarRejected         the cloud's tokens do not fit the device's reading of the grammar
    ├── NotCaptured                 a prompt's attention was not seen: it is not refined
    ├── ModelError                  a model file is missing, unreadable or not what it claims to be
    ├── InvalidRefinement           a refined prompt breaks its contract
    ├── InvalidTrace                a trace file has a line that cannot be read
    └── PolicyError                 a third-party hook failed, and `strict` asks for a stop
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CloudError",
    "CloudLost",
    "CloudRefused",
    "CloudUnreachable",
    "ConfigurationError",
    "ContextOverflow",
    "DeviceBusy",
    "DeviceEngineFailed",
    "DeviceError",
    "GrammarRejected",
    "HandoffInUse",
    "HandoffNotFound",
    "InvalidGrammar",
    "InvalidOptIn",
    "InvalidRefinement",
    "InvalidRequest",
    "InvalidTrace",
    "ModelError",
    "NotCaptured",
    "PDDError",
    "PolicyError",
    "SchemaVersionError",
    "ServerStopping",
    "TokenizerMismatch",
    "UnsupportedDeployment",
    "named",
]


def named(error: BaseException) -> str:
    """Return ``Type: message``, as errors appear in outcomes, decisions and warnings."""
    return f"{type(error).__name__}: {error}"


class PDDError(Exception):
    """Base of all errors of this project."""


class ConfigurationError(PDDError):
    """A setting that cannot work. The message names the setting and what to change."""


class UnsupportedDeployment(ConfigurationError):
    """A deployment the plugin cannot serve. Raised at start-up, never per request."""


class InvalidRequest(PDDError):
    """A field of a request has a value that cannot be obeyed. The message says what to send instead.

    `param` is the field's path in the request, `code` a stable word for programs, or None.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class InvalidGrammar(InvalidRequest):
    """A JSON schema, regular expression or grammar that cannot be compiled."""


class DeviceBusy(PDDError):
    """The device's queue is full. `retry_after` is a guess of the seconds until it is not."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerStopping(PDDError):
    """The device's server was told to stop before the answer began."""


class InvalidOptIn(PDDError):
    """A ``pdd_*`` field of a request is wrong.

    `param` is the field's path in the request body, such as ``vllm_xargs.pdd_decode_budget``.
    """

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class HandoffInUse(InvalidOptIn):
    """The handoff id names a request that is running, or one that was deleted a moment ago."""


class HandoffNotFound(PDDError):
    """No state for this id: it never existed, has expired, or was deleted."""


class SchemaVersionError(PDDError):
    """The other side's schema has a higher major version than this reader knows."""


class TokenizerMismatch(PDDError):
    """Device and cloud disagree on a token, so token ids cannot cross. Names the first difference."""


class CloudError(PDDError):
    """Anything that goes wrong between the device and the cloud."""


class CloudUnreachable(CloudError):
    """No connection to the cloud."""


class CloudRefused(CloudError):
    """The cloud answered with an error. `status` is its HTTP status, `code` the code in its error object."""

    def __init__(self, message: str, *, status: int | None = None, code: str | int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class CloudLost(CloudError):
    """The stream ended without a finish reason, or with an error event."""


class DeviceError(PDDError):
    """Anything that goes wrong in the device's engine."""


class ContextOverflow(DeviceError):
    """Prompt plus answer need more tokens than the device's context holds."""


class DeviceEngineFailed(DeviceError):
    """llama.cpp returned an error code, made no token in time, or its engine thread died."""


class GrammarRejected(DeviceError):
    """The device's grammar engine refuses tokens that the cloud's let through: the cloud has to finish."""


class ModelError(PDDError):
    """A model file is missing, unreadable, or not what it claims to be."""


class NotCaptured(PDDError):
    """The attention of a prompt was not, or not wholly, captured. Its request goes on without a refined prompt."""


class InvalidRefinement(PDDError):
    """A refined prompt breaks its contract: indices out of order or range, a protected token dropped, no fit."""


class InvalidTrace(PDDError):
    """A trace file cannot be read. `line` is the number of the first malformed line, from 1, or None."""

    def __init__(self, path: Path, line: int | None, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}" if line else f"{path}: {reason}")
        self.line = line
        self.reason = reason


class PolicyError(PDDError):
    """A third-party hook raised or returned nonsense while `strict` is set."""
