"""The wire: what the cloud tells about a request it began, and about itself.

Readers ignore unknown fields; a higher major `schema_version` is refused, so that a field can change its meaning
only together with the number that says so.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pdd_core.errors import SchemaVersionError
from pdd_core.fingerprint import TokenizerFingerprint

SCHEMA_VERSION = "1.0"
BUDGET_POLICIES = "budget_policies"
"""In `CloudInfo.features`: the server knows the fields ``pdd_least_budget``, ``pdd_tenant`` and ``pdd_extends``,
and ``used`` with a DELETE. One that does not would refuse a request with them."""


def _readable(version: str) -> str:
    major, _, _ = version.partition(".")
    if not major.isdigit() or int(major) > int(SCHEMA_VERSION.partition(".")[0]):
        raise SchemaVersionError(
            f"schema_version {version!r} is newer than {SCHEMA_VERSION}, the newest this side reads: "
            "upgrade pdd-device here, or pin the other side to the same major version"
        )
    return version


SchemaVersion = Annotated[str, AfterValidator(_readable)]


class Status(StrEnum):
    """State of a request's part in the cloud."""

    RUNNING = "running"
    HANDED_OFF = "handed_off"
    """The decode budget is used up: the device goes on."""
    FINISHED = "finished"
    """The answer ended in the cloud: end of sequence, stop string, or the client's own max_tokens."""
    ABORTED = "aborted"
    """Cancelled, disconnected, or lost with the engine."""


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class DecodeBudget(_Wire):
    """How many tokens the cloud may decode, and which policy said so."""

    tokens: int
    """How many."""
    set_by: str
    """``client``, ``default``, ``max_decode_budget``, ``load``, ``tenant``, ``priority``, ``fixed``, or the name
    of a third party's plugin."""


class Refinement(_Wire):
    """The refined prompt: which of the prompt's tokens stay, by the cloud's own attention."""

    kind: Literal["refined"] = "refined"
    method: str
    """Name of the plugin that chose: ``attention``, another built-in one, or a third party's."""
    ratio: float
    """The share of the prompt's tokens that was asked for; protected spans may keep more."""
    kept_indices: list[int]
    """Positions in `prompt_token_ids`, strictly increasing."""
    kept_token_ids: list[int]
    """The ids at these positions: the refined prompt, to be processed at consecutive positions."""
    protected: list[tuple[int, int]]
    """Half-open spans of positions that had to stay."""
    window: int
    """Prompt tokens whose attention was looked at; 0 where none was."""
    layers: list[int]
    """Numbers of the layers that were looked at; empty where none was."""


class NoRefinement(_Wire):
    """Why there is no refined prompt."""

    kind: Literal["none"] = "none"
    reason: Literal["not_requested", "not_enabled", "pending", "too_long", "not_captured", "failed"]
    """``pending`` may still become a refined prompt; the others stay."""
    message: str
    """The same for people, with what is known besides."""


class HandoffState(_Wire):
    """Everything needed to go on with a request elsewhere. ``GET /v1/pdd/handoffs/{id}``."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    """See docs/wire.md#versions."""
    handoff_id: str
    """As in the request."""
    request_id: str
    """The ``id`` of the completion as the client saw it."""
    model: str
    """The served model's name, or the LoRA adapter's."""
    tokenizer: str
    """Digest of the server's tokenizer fingerprint."""
    created: float
    """Unix time in seconds."""
    expires: float
    """Unix time in seconds at which the state is dropped; moves on while the request runs."""
    status: Status
    """How far the cloud's part is."""
    finish_reason: str | None = None
    """As in the stream; null while the request runs, and when the client left."""
    stop_reason: int | str | None = None
    """As in the stream."""
    prompt_token_ids: list[int]
    """The whole prompt; empty until the engine has answered for the first time, where the prompt came as text."""
    output_token_ids: list[int]
    """Exactly the ids that were streamed so far, end-of-sequence included; from `after` on."""
    after: int = 0
    """How many output ids were left out on request (``?after=K``)."""
    output_logprobs: list[dict[int, float]] | None = None
    """Per output id, token id to log probability; null unless the client asked for logprobs."""
    sampling_params: dict[str, Any]
    """vLLM's `SamplingParams` as the client gave them, less those that are null."""
    decode_budget: DecodeBudget | None = None
    """While the request runs, the budget as last told; in the end, the one that held then. Null until the
    scheduler has told of it."""
    refinement: Annotated[Refinement | NoRefinement, Field(discriminator="kind")]
    """The refined prompt, or why there is none."""


class Limits(_Wire):
    """Bounds the server enforces."""

    max_decode_budget: int
    """Tokens: ceiling on any budget."""
    max_handoffs: int
    """States kept at once."""
    ttl_s: float
    """Seconds for which the state of an ended request can be read."""
    cancel_timeout_s: float
    """Seconds: longest wait for the engine's word on a DELETE."""


class StructuredOutputs(_Wire):
    """vLLM's settings for answers that a grammar constrains (`StructuredOutputsConfig`)."""

    backend: str = "auto"
    """``auto``, ``xgrammar``, ``guidance``, ``outlines`` or ``lm-format-enforcer``."""
    disable_any_whitespace: bool = False
    """JSON has no white space."""
    disable_additional_properties: bool = False
    """With ``guidance``, too, objects hold no properties but those that the schema names."""


class CloudInfo(_Wire):
    """``GET /v1/pdd/info``: what the plugin is and what it has switched on."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    """See docs/wire.md#versions."""
    plugin_version: str
    """Version of pdd-device on the server."""
    engine: str
    """Such as ``vllm 0.32.0``."""
    model: str
    """The name that a request's `model` field takes."""
    max_model_len: int
    """Tokens of prompt and answer that fit."""
    tokenizer: TokenizerFingerprint
    """The vocabulary's fingerprint."""
    features: list[str]
    """``decode_budget``, ``budget_policies`` (the server knows ``pdd_least_budget``, ``pdd_tenant``,
    ``pdd_extends`` and ``used``), ``handoff_state``, and ``refinement`` where it is on."""
    refinement: str
    """``off``, or where refined prompts come from: ``attention``, ``lexical``, ``truncation``, ``random``."""
    structured_outputs: StructuredOutputs | None = None
    """What a schema means here. Null where the server does not tell."""
    limits: Limits
    """What the server enforces."""


class VocabularyPiece(_Wire):
    """``GET /v1/pdd/vocabulary?start=K``: raw token strings from id `start` on, null at holes."""

    start: int
    """Id of the first of them."""
    tokens: list[str | None]
    """At most 1,024 token strings."""


class HandoffDeleted(_Wire):
    """Answer to ``DELETE /v1/pdd/handoffs/{id}``."""

    id: str
    """The handoff id, or the completion's, as in the route."""
    object: str = "pdd.handoff.deleted"
    """``chat.completion.deleted`` where a completion was."""
    deleted: bool = True
    """Always true."""
    confirmed: bool
    """True: the engine has confirmed that it makes no further token. False: it did not answer in time."""
