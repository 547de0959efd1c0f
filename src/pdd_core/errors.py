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
    """Return ``Type: message``, as errors stand in outcomes, decisions and warnings."""
    return f"{type(error).__name__}: {error}"


class PDDError(Exception):
    """Never raised itself: the base of all.

    What to do: catch it to catch all.
    """


class ConfigurationError(PDDError):
    """A setting or an argument cannot work: it is unknown or out of range, or an extra is not installed.

    What to do: the message names the setting and what to change.
    """


class UnsupportedDeployment(ConfigurationError):
    """A deployment the plugin cannot serve. Raised at vLLM's start, never per request.

    Such are several API servers, data parallel, no tokenizer, another scheduler class, and `--tokens-only`.

    What to do: start one server per engine; add the scheduler flag that the message names.
    """


class InvalidRequest(PDDError):
    """A field of a request to the device has a value that neither engine could obey; a 400 over HTTP.

    `param` is the field's path in the request, `code` a stable word for programs, or None.

    What to do: mend the field in `param`; the message says what to send instead.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class InvalidGrammar(InvalidRequest):
    """A JSON schema, regular expression or grammar cannot be compiled, or not safely; a 400 over HTTP.

    One that is too large could take the process with it.

    What to do: the message has the grammar engine's reason.
    """


class DeviceBusy(PDDError):
    """The device's queue is full; a 429 over HTTP. `retry_after` is a guess of the seconds until it is not.

    What to do: ask again later, or raise `max_queue`.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerStopping(PDDError):
    """The device's server was told to stop before the answer began; a 503 with the code `server_shutting_down`.

    What to do: start it again.
    """


class InvalidOptIn(PDDError):
    """A ``pdd_*`` field of a request is wrong; a 400 over HTTP.

    `param` is the field's path in the request body, such as ``vllm_xargs.pdd_decode_budget``.

    What to do: mend the field in `param`.
    """

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class HandoffInUse(InvalidOptIn):
    """The handoff id names a request that is running, or one that was deleted within the last minute; a 400.

    What to do: use a new id.
    """


class HandoffNotFound(PDDError):
    """No state has this id: it never existed, has expired, or was deleted; a 404 over HTTP.

    What to do: start anew.
    """


class SchemaVersionError(PDDError):
    """The other side's wire schema has a higher major version than this reader knows.

    What to do: upgrade pdd-device here, or pin the other side.
    """


class TokenizerMismatch(PDDError):
    """Device and cloud disagree on a token, the end of sequence, or which tokens are control tokens.

    So token ids cannot cross. The message names the first difference.

    What to do: use a GGUF of the model that the cloud serves.
    """


class CloudError(PDDError):
    """Never raised itself: the base of what goes wrong between the device and the cloud."""


class CloudUnreachable(CloudError):
    """No connection to the cloud, or a server that is started does not serve in time.

    What to do: check the address, and that vLLM is up.
    """


class CloudRefused(CloudError):
    """The cloud answered with an error, has no plugin, or sent what is no answer of this schema.

    `status` is the HTTP status, `code` the code in its error object.

    What to do: 401: give the key. 404: start vLLM with `VLLM_PLUGINS=pdd`. 429: ask again later.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class CloudLost(CloudError):
    """The stream broke off, was aborted, ended without a finish reason, or with an error event.

    Also: no first token within the device's patience, or a server that was started ended by itself.

    What to do: nothing, where a device takes part: it goes on.
    """


class DeviceError(PDDError):
    """The vocabulary of a closed engine is used; else the base of what goes wrong in the device's engine."""


class ContextOverflow(DeviceError):
    """Prompt and `max_tokens` do not fit the device's context. Raised before anything is sent or computed.

    What to do: open the engine with a larger `n_ctx`, or ask for less.
    """


class DeviceEngineFailed(DeviceError):
    """llama.cpp returned an error code, did not come back in time, or cannot make a context.

    Also: its engine's thread died, or the engine was closed in mid-answer.

    What to do: where there is a cloud, it finishes: docs/device.md#faults.
    """


class GrammarRejected(DeviceError):
    """The device's grammar engine refuses tokens that the cloud's let through.

    What to do: nothing: the cloud finishes.
    """


class ModelError(PDDError):
    """A model file is missing, not a GGUF, damaged, or has no chat template.

    What to do: the message names the file.
    """


class NotCaptured(PDDError):
    """The attention of a prompt was not, or not wholly, captured. Its request goes on without a refined prompt.

    What to do: see the reason in `refinement` of the state: docs/wire.md#refinement.
    """


class InvalidRefinement(PDDError):
    """A refined prompt breaks its contract.

    Kept indices are not ints that strictly increase within the prompt, or a protected one is missing; or scores,
    weights or texts do not fit the prompt.

    What to do: mend the refiner: docs/hooks.md#refinement. Device and cloud fall back by themselves.
    """


class InvalidTrace(PDDError):
    """A trace file is of no known format, or has a malformed line.

    `line` is the number of the first such line, from 1, or None; `reason` says why.

    What to do: mend the line, or name the format with `--format`.
    """

    def __init__(self, path: Path, line: int | None, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}" if line else f"{path}: {reason}")
        self.line = line
        self.reason = reason


class PolicyError(PDDError):
    """No policy answered; or a third party's failed while `strict` is set.

    It cannot be loaded, raised, returned what is unusable, or gave no refined prompt in time.

    What to do: the message names the plugin and the hook.
    """
