"""The wire: what the cloud tells about a request it began, and about itself.

Readers ignore unknown fields; another major `schema_version` is refused, so that a field can change its meaning
only together with the number that says so.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PlainSerializer,
)

from pdd_core.fingerprint import Name, Natural, TokenizerFingerprint
from pdd_core.kv.geometry import KVGeometry, NoKV
from pdd_core.sampling_defaults import DefaultSamplingParams
from pdd_core.schema_version import check_version

SCHEMA_VERSION = "2.0"
"""Since 2, a vocabulary is compared by the bytes of its tokens; in 1 it was by how tokenizer.json spells them."""
BUDGET_POLICIES = "budget_policies"
"""In `CloudInfo.features`: the server knows the fields ``pdd_least_budget``, ``pdd_tenant`` and ``pdd_extends``,
and ``used`` with a DELETE. One that does not would refuse a request with them."""
INLINE_UPDATES = "inline"
"""In `CloudInfo.features`: the server knows the field ``pdd_inline``."""
BY_POST = "by_post"
"""In `CloudInfo.features`: the server knows the fields of `pdd_core.state_request`."""
KV_HANDOVER = "kv"
"""In `CloudInfo.features`: the server knows the field ``pdd_kv``, whether or not it has cells to give."""
TOKENIZER_DIGEST = "tokenizer_digest"
"""In `CloudInfo.features`: the server knows the field ``pdd_tokenizer``."""
SHARED_STORE = "shared_store"
"""In `CloudInfo.features`: ended states can be read from every server that has the same store."""


SchemaVersion = Annotated[
    str,
    Field(max_length=32, pattern=r"^[!-~]*$"),
    AfterValidator(lambda version: check_version(version, own=SCHEMA_VERSION)),
]


def _bytes(value: object) -> object:
    return bytes.fromhex(value) if isinstance(value, str) else value


HexBytes = Annotated[bytes, BeforeValidator(_bytes), PlainSerializer(bytes.hex, return_type=str, when_used="json")]
"""Bytes, in JSON as hexadecimal digits."""


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
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class DecodeBudget(_Wire):
    """How many tokens the cloud may decode, and which policy said so."""

    tokens: Natural
    """How many."""
    set_by: str
    """``client``, ``default``, ``max_decode_budget``, ``load``, ``tenant``, ``priority``, ``fixed``, or the name
    of a third party's plugin."""


class Refinement(_Wire):
    """The refined prompt: which of the prompt's tokens stay, by the cloud's own attention."""

    kind: Literal["refined"] = "refined"
    method: Name
    """Name of the plugin that chose: ``attention``, another built-in one, or a third party's."""
    ratio: float
    """The share of the prompt's tokens that was asked for; protected spans may keep more."""
    kept_indices: list[Natural]
    """Positions in `prompt_token_ids`, strictly increasing."""
    kept_token_ids: list[Natural]
    """The ids at these positions: the refined prompt, to be processed at consecutive positions."""
    protected: list[tuple[Natural, Natural]]
    """Half-open spans of positions that had to stay."""
    window: Natural
    """Prompt tokens whose attention was looked at; 0 where none was."""
    layers: list[Natural]
    """Numbers of the layers that were looked at; empty where none was."""


class NoRefinement(_Wire):
    """Why there is no refined prompt."""

    kind: Literal["none"] = "none"
    reason: Literal["not_requested", "not_enabled", "pending", "too_long", "not_captured", "spread", "failed"]
    """``pending`` may still become a refined prompt; the others stay."""
    message: str
    """The same for people, with what is known besides."""


class KVCells(_Wire):
    """The cells of a prompt's KV cache can be had, or will be: ``GET /v1/pdd/handoffs/{id}/kv``."""

    kind: Literal["cells"] = "cells"
    tokens: Natural
    """Cells, from the prompt's first token on: all but the last token's, which the device has to process."""


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
    prompt_token_ids: list[Natural]
    """The whole prompt; empty until the engine has answered for the first time, where the prompt came as text."""
    output_token_ids: list[Natural]
    """Exactly the ids that were streamed so far, end-of-sequence included; from `after` on. If the request is not
    streamed, those that were made."""
    after: Natural = 0
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
    kv: Annotated[KVCells | NoKV, Field(discriminator="kind")] | None = None
    """The prompt's KV cache, or why there is none; null from a server that does not know it."""


class HandoffUpdate(_Wire):
    """What a streamed answer tells of its handoff, if the request has ``pdd_inline``.

    It is the field `pdd` of a data object of its own, which has no choices. It comes when the budget is first
    known, when the refinement is settled, and before ``[DONE]``.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    """See docs/wire.md#versions."""
    handoff_id: str
    """As in the request."""
    request_id: str
    """The ``id`` of the completion."""
    status: Status
    """How far the cloud's part is."""
    finish_reason: str | None = None
    """As in the stream."""
    stop_reason: int | str | None = None
    """As in the stream."""
    decode_budget: DecodeBudget | None = None
    """As in `HandoffState`."""
    refinement: Annotated[Refinement | NoRefinement, Field(discriminator="kind")] | None = None
    """The refined prompt, or why there is none: once, in the first update after that is settled."""
    kv: Annotated[KVCells | NoKV, Field(discriminator="kind")] | None = None
    """As in `HandoffState`; null where the request does not ask for it."""


class Limits(_Wire):
    """Bounds the server enforces."""

    max_decode_budget: Natural
    """Tokens: ceiling on any budget."""
    max_handoffs: Natural
    """States kept at once."""
    ttl_s: NonNegativeFloat
    """Seconds for which the state of an ended request can be read."""
    cancel_timeout_s: NonNegativeFloat
    """Seconds: longest wait for the engine's word on a DELETE."""


class StructuredOutputs(_Wire):
    """vLLM's settings for answers that a grammar constrains (`StructuredOutputsConfig`)."""

    backend: Name = "auto"
    """``auto``, ``xgrammar``, ``guidance``, ``outlines`` or ``lm-format-enforcer``."""
    disable_any_whitespace: bool = False
    """JSON has no white space."""
    disable_additional_properties: bool = False
    """With ``guidance``, too, objects hold no properties but those that the schema names."""


class CloudInfo(_Wire):
    """``GET /v1/pdd/info``: what the plugin is and what it has switched on."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    """See docs/wire.md#versions."""
    plugin_version: Name
    """Version of pdd-device on the server."""
    engine: Name
    """Such as ``vllm 0.32.0``."""
    model: Name
    """The name that a request's `model` field takes."""
    max_model_len: Natural
    """Tokens of prompt and answer that fit."""
    tokenizer: TokenizerFingerprint
    """The vocabulary's fingerprint."""
    default_sampling_params: DefaultSamplingParams | None = None
    """What the server does where a request does not say how to choose tokens: the model's ``generation_config``,
    or nothing of its own with ``--generation-config vllm``. Null: not told."""
    features: list[Name]
    """``decode_budget``, ``budget_policies`` (the server knows ``pdd_least_budget``, ``pdd_tenant``,
    ``pdd_extends`` and ``used``), ``handoff_state``, ``inline``, ``by_post``, ``kv`` and ``tokenizer_digest`` (it
    knows ``pdd_kv`` and ``pdd_tokenizer``), ``refinement`` where it is on, and ``shared_store`` where there is
    one."""
    refinement: Name
    """``off``, or where refined prompts come from: ``attention``, ``lexical``, ``truncation``, ``random``."""
    structured_outputs: StructuredOutputs | None = None
    """What a schema means here. Null where the server does not tell."""
    limits: Limits
    """What the server enforces."""
    kv: Annotated[KVGeometry | NoKV, Field(discriminator="kind")] | None = None
    """What this server's cells look like, or why it gives none. Null from a server that does not know of it."""


class VocabularyPiece(_Wire):
    """``GET /v1/pdd/vocabulary?start=K``: what the tokens from id `start` on mean, null at holes."""

    start: Natural
    """Id of the first of them."""
    tokens: list[HexBytes | None]
    """Each token's bytes, in hexadecimal digits; at most 1,024 tokens."""


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
