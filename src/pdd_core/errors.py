"""Every error that this project raises.

::

    PDDError
    ├── ConfigurationError          a setting that cannot work; the message names it
    │   └── UnsupportedDeployment   the plugin cannot serve this deployment (no tokenizer, for one)
    ├── InvalidRequest              a field of a request to the device is wrong             (HTTP 400)
    │   └── InvalidGrammar          a JSON schema or grammar that cannot be compiled        (HTTP 400)
    ├── DeviceBusy                  the device's queue is full                              (HTTP 429)
    ├── ServerStopping              the device's server stops, and the answer has not begun (HTTP 503)
    ├── InvalidOptIn                a pdd_* request field is wrong                          (HTTP 400)
    │   └── HandoffInUse            the handoff id belongs to a running or deleted request  (HTTP 400)
    ├── SchemaVersionError          the other side uses another major version of the wire schema
    ├── TokenizerMismatch           device and cloud do not share one vocabulary
    ├── CloudError
    │   ├── CloudUnreachable        no connection, or no server that answers as vLLM does
    │   ├── CloudRefused            the cloud answered with an error
    │   └── CloudLost               the stream broke off before the cloud's part had ended
    ├── DeviceError
    │   ├── ContextOverflow         prompt and answer do not fit the device's context
    │   ├── DeviceEngineFailed      llama.cpp returned an error code, or made no token in time
    │   └── GrammarRejected         the device's grammar engine rejects the cloud's tokens
    ├── NotCaptured                 a prompt's attention was not captured, so it is not refined
    ├── EngineNotAddressable        this vLLM gives no way to ask one of several engines
    ├── ModelError                  a model file is missing, unreadable or of another kind
    ├── InvalidRefinement           a refined prompt has wrong indices or misses a protected token
    ├── InvalidCells                cells of a KV cache that are cut, corrupt or of another model
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
    "EngineNotAddressable",
    "GrammarRejected",
    "HandoffInUse",
    "InvalidCells",
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
    "first_of_ours",
    "named",
]


def named(error: BaseException) -> str:
    """Return ``Type: message``, as errors appear in outcomes, decisions and warnings."""
    return f"{type(error).__name__}: {error}"


def first_of_ours(error: BaseException) -> BaseException:
    """Return the first error of ours in an exception group, however deep. Without one, `error` is returned.

    Who waits for several tasks at once gets a group, of one error as well.
    """
    found = error
    while isinstance(found, BaseExceptionGroup):
        ours, _ = found.split(PDDError)
        if ours is None:
            return error
        found = ours.exceptions[0]
    return found


class PDDError(Exception):
    """The base of all errors. It is never raised itself.

    What to do: catch it to catch all errors.
    """


class ConfigurationError(PDDError):
    """A setting or an argument cannot work: it is unknown or out of range, or an extra is not installed.

    What to do: the message names the setting and what to change.
    """


class UnsupportedDeployment(ConfigurationError):
    """The plugin cannot serve this deployment. Raised at vLLM's start, never per request.

    Reasons are another scheduler class, no tokenizer, vLLM's Rust front end, `--tokens-only`, settings under which
    the attention that the server shall capture cannot be seen, and no folder that several API processes can share.

    What to do: change the setting that the message names.
    """


class InvalidRequest(PDDError):
    """A field of a request to the device has a value that an engine cannot obey; a 400 over HTTP.

    `param` is the field's path in the request. `code` is a stable word for programs. Each can be None.

    What to do: correct the field in `param`. The message says what to send instead.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class InvalidGrammar(InvalidRequest):
    """A JSON schema, regular expression or grammar cannot be compiled, or not safely; a 400 over HTTP.

    A grammar that is too large could end the process.

    What to do: the message has the grammar engine's reason.
    """


class DeviceBusy(PDDError):
    """The device's queue is full; a 429 over HTTP. `retry_after` estimates the seconds until it has room.

    What to do: ask again later, or raise `max_queue`.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerStopping(PDDError):
    """The device's server stops, and the answer has not begun; a 503 with the code `server_shutting_down`.

    What to do: start the server again.
    """


class InvalidOptIn(PDDError):
    """A ``pdd_*`` field of a request is wrong; a 400 over HTTP.

    `param` is the field's path in the request body, such as ``vllm_xargs.pdd_decode_budget``. `code` is a stable
    word for programs, where there is one.

    What to do: correct the field in `param`.
    """

    def __init__(self, message: str, *, param: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class HandoffInUse(InvalidOptIn):
    """The handoff id belongs to a running request, or to one that was deleted within the last minute; a 400.

    What to do: use a new id.
    """


class SchemaVersionError(PDDError):
    """The other side's wire schema has another major version than this reader's.

    What to do: upgrade pdd-device on the side that the message names, or pin the other one.
    """


class TokenizerMismatch(PDDError):
    """Device and cloud disagree on what a token means, the end of sequence, or which tokens are control tokens.

    So the two sides cannot exchange token ids. The message names the first difference, which is never one of
    spelling.

    What to do: use a GGUF of the model that the cloud serves.
    """


class CloudError(PDDError):
    """The base of errors between the device and the cloud. It is never raised itself."""


class CloudUnreachable(CloudError):
    """There is no connection to the cloud, or a server that was started does not serve in time.

    What to do: check the address, and that vLLM is up.
    """


class CloudRefused(CloudError):
    """The cloud answered with an error, has no plugin, or sent an answer that is too long or not of the schema.

    `status` is the HTTP status, `code` the code in its error object. `retry_after` is how many seconds it wants to
    pass before it is asked again; None where it did not say.

    What to do: with 401, give the key. With 404, start vLLM with `VLLM_PLUGINS=pdd`. With 429, ask again later.
    Behind a router, the message says what did not get through.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


class CloudLost(CloudError):
    """The stream broke off, was aborted, lacks or repeats an event, has an unreadable one, or has no proper end.

    It is also raised if no first token came within the device's patience, or if a started server ended by itself.

    What to do: nothing if a device takes part, since the device goes on.
    """


class DeviceError(PDDError):
    """The base of errors in the device's engine. Raised itself if the vocabulary of a closed engine is used."""


class ContextOverflow(DeviceError):
    """Prompt and `max_tokens` do not fit the device's context. Raised before anything is sent or computed.

    What to do: open the engine with a larger `n_ctx`, or ask for fewer tokens.
    """


class DeviceEngineFailed(DeviceError):
    """llama.cpp returned an error code, did not come back in time, or cannot make a context.

    It is also raised if the engine's thread died, or if the engine was closed during an answer.

    What to do: if there is a cloud, it finishes the answer: docs/device.md#faults.
    """


class GrammarRejected(DeviceError):
    """The device's grammar engine rejects tokens that the cloud's engine accepted.

    What to do: nothing, since the cloud finishes the answer.
    """


class ModelError(PDDError):
    """A model file is missing, not a GGUF, damaged, not to be converted whole, or has no chat template.

    What to do: the message names the file, and has llama.cpp's reason.
    """


class NotCaptured(PDDError):
    """The attention of a prompt was not fully captured. The request continues without a refined prompt.

    What to do: see the reason in `refinement` of the state: docs/wire.md#refinement.
    """


class EngineNotAddressable(PDDError):
    """One of several engines (data parallel) cannot be asked alone in this version of vLLM. Seen by no client.

    What to do: nothing. A DELETE waits for all engines then, and prompts are not refined by attention.
    """


class InvalidRefinement(PDDError):
    """A refined prompt is wrong.

    The kept indices are not ints that strictly increase within the prompt, or a protected index is missing, or
    scores, weights or texts do not fit the prompt.

    What to do: correct the refiner: docs/hooks.md#refinement. Device and cloud fall back by themselves.
    """


class InvalidCells(PDDError):
    """Cells of a KV cache that cannot be used: cut, corrupt, not finite, or not of the agreed geometry.

    What to do: nothing. The device prefills what they would have saved.
    """


class InvalidTrace(PDDError):
    """A trace file has no known format, or a malformed line.

    `line` is the number of the first such line, from 1, or None. `reason` says why.

    What to do: correct the line, or name the format with `--format`.
    """

    def __init__(self, path: Path, line: int | None, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}" if line else f"{path}: {reason}")
        self.line = line
        self.reason = reason


class PolicyError(PDDError):
    """No policy answered, or, with `strict`, a third-party policy failed.

    A policy fails if it cannot be loaded, raises, returns something unusable, or gives no refined prompt in time.

    What to do: the message names the plugin and the hook.
    """
