"""One request, in vLLM's own names."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from pdd_core.errors import ContextOverflow, InvalidOptIn, InvalidRequest
from pdd_core.kept_fields import KEPT_IDS, KEPT_TEXTS, check_kept_fields
from pdd_core.optin import MAX_DECODE_BUDGET
from pdd_core.refinement.spans import merge_spans
from pdd_core.refinement.target import RefineTarget
from pdd_core.session_id import beginning_of_prompt, session_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pdd_core.env import ServeSettings

MAX_TOP_LOGPROBS = 20
"""As in OpenAI's API and vLLM's default."""
INT32, INT64 = 2**31, 2**63
LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY = 1e-6, 1e6
"""vLLM takes any above 0, but both engines would reckon with infinity: logits and penalties are float32."""


RESPONSE_FORMAT = "response_format"


def context_overflow(limit: int, problem: str) -> ContextOverflow:
    """Return the error of what does not fit a context of `limit` tokens, in OpenAI's words.

    LiteLLM and others look for the first sentence, to go on with a longer context or fewer messages. LangChain
    looks for "prompt is too long", so each `problem` says so.
    """
    return ContextOverflow(f"This model's maximum context length is {limit} tokens. However, {problem}.")


def requested(prompt: int, completion: int, *, where: str = "messages") -> str:
    """Return how many tokens a request is about, as in OpenAI's error; `where` is the field with the prompt."""
    counts = f"{prompt + completion} tokens ({prompt} in the {where}, {completion} in the completion)"
    return f"you requested {counts}: the prompt is too long for such a completion"


class GrammarKind(StrEnum):
    """The languages in which an answer can be constrained; names as in vLLM's ``StructuredOutputsParams``."""

    JSON = "json"
    """`Grammar.text` is a JSON schema."""
    JSON_OBJECT = "json_object"
    """Any JSON object; `Grammar.text` is empty."""
    REGEX = "regex"
    CHOICE = "choice"
    """`Grammar.text` is a JSON list of strings; the answer is one of them."""
    GRAMMAR = "grammar"
    """`Grammar.text` is a Lark grammar."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the whole answer has to look like."""

    kind: GrammarKind
    text: str = ""
    param: str = RESPONSE_FORMAT
    """The request's field that it comes from; an error names it."""
    explicit: bool = False
    """Nothing in it is left to an engine's defaults: `explicit_grammar` has made it."""
    compact: bool = False
    """JSON without white space, but for a space behind a separator."""
    differs: str | None = None
    """What in it the engines read differently, so that an answer is not handed over; None if nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and what else ends an answer: the one list. Names and meanings are vLLM's.

    What the cloud is sent, and the bodies that the server takes, have a field for each of these, by this name. A
    field's metadata bound that of a body further, in pydantic's words: OpenAI's bounds, or the size of a number.
    """

    temperature: float = field(default=0.0, metadata={"ge": 0, "le": 2})
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = field(default=None, metadata={"ge": -INT64, "lt": INT64})
    """None, or -1 as in vLLM, is another one each time."""
    stop: Sequence[str] = field(default_factory=tuple, metadata={"max_length": 4})
    """Strings that end the answer, and do not belong to it."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids, -100 to 100."""
    top_k: int = field(default=0, metadata={"lt": INT32})
    """0 or -1 keeps all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """1e-6 to 1e6."""
    min_tokens: int = field(default=0, metadata={"ge": 0, "lt": INT32})
    """No stop token before the answer has this many tokens, unless only such a token can come."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the answer, besides the model's own end of sequence."""
    ignore_eos: bool = False
    """Go on past the model's end of sequence; for benchmarks."""
    bad_words: Sequence[str] = field(default_factory=tuple, metadata={"max_length": 128})
    """Texts that the answer must not hold, known by their usual tokens."""
    allowed_token_ids: Sequence[int] | None = None
    """The only tokens that there may be, ends included; None allows all."""
    include_stop_str_in_output: bool = False
    """Show the stop string that ends the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSettings:
    """Settings of the server that one answer has otherwise, by their names; None leaves the server's."""

    rate: Literal["auto", "unlimited"] | float | None = None
    plan: Literal["auto", "off", "handoff", "cloud", "device"] | None = None
    refine: str | float | None = None

    @property
    def refines(self) -> bool:
        """Whether the prompt may be refined because of them."""
        return self.refine is not None and RefineTarget.parse(self.refine).kind != "off"

    def over(self, settings: ServeSettings) -> ServeSettings:
        """Return `settings` as they are for this answer.

        A fixed `decode_budget` means a handoff each time, so it does not count where `plan` says otherwise.
        """
        own = {name: value for name, value in asdict(self).items() if value is not None}
        if self.plan not in (None, "handoff"):
            own["decode_budget"] = "auto"
        return settings.model_copy(update=own) if own else settings


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest(SamplingParams):
    """A prompt and how to go on from it. Names and meanings are those of vLLM's ``SamplingParams``.

    Raises:
        InvalidRequest: a value that neither engine could obey; the message and `param` name the field.
    """

    prompt_token_ids: Sequence[int]
    """The whole prompt as ids, special tokens included. Never text: the engines may split text differently."""
    max_tokens: int
    logprobs: int | None = None
    """Return each token's logprob, and those of this many most likely tokens (0 to 20); None returns none."""
    grammar: Grammar | None = None
    """What the answer has to look like."""
    decode_budget: int | None = 64
    """Tokens the cloud may decode before it hands off; None leaves it to the cloud's policy."""
    least_budget: int | None = None
    """Tokens without which the user would wait: under load the cloud may go down to these. None: not at all."""
    cache_salt: str | None = None
    """Keeps the cloud's prefix cache apart from that of other salts."""
    session: str | None = None
    """What the conversation is called before routers: `pdd_core.session_id`. None is made of the prompt's first
    tokens."""
    refine_ratio: float | None = None
    """Share of the prompt's tokens that the device is to read, above 0 and at most 1; the cloud chooses which.
    None: all of them."""
    protect: Sequence[tuple[int, int]] = ()
    """Half-open spans of prompt positions that stay in any case, besides what the device protects by itself."""
    own: OwnSettings = field(default_factory=OwnSettings)
    """What this answer has otherwise than the server's settings say."""
    kv: bool = False
    """The device is to take the prompt's KV cache from the cloud, as far as it has not read the prompt itself."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_token_ids", tuple(self.prompt_token_ids))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "bad_words", tuple(self.bad_words))
        allowed = self.allowed_token_ids
        object.__setattr__(self, "allowed_token_ids", None if allowed is None else tuple(allowed))
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))
        object.__setattr__(self, "seed", None if self.seed == -1 else self.seed)
        _require(bool(self.prompt_token_ids), "prompt_token_ids", "must not be empty")
        _require(self.max_tokens >= 1, "max_tokens", "must be at least 1")
        _require(0 <= self.temperature < math.inf, "temperature", "must be 0 or a positive number")
        _require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        _require(self.top_k >= -1, "top_k", "must be -1 or more")
        _require(0 <= self.min_p <= 1, "min_p", "must be from 0 to 1")
        _require(-2 <= self.presence_penalty <= 2, "presence_penalty", "must be from -2 to 2")
        _require(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "must be from -2 to 2")
        repetition = LEAST_REPETITION_PENALTY <= self.repetition_penalty <= MOST_REPETITION_PENALTY
        bounds = f"from {LEAST_REPETITION_PENALTY:g} to {MOST_REPETITION_PENALTY:g}"
        _require(repetition, "repetition_penalty", f"must be {bounds}")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "must be from 0 to max_tokens")
        _require(all(self.stop), "stop", "must not hold an empty string")
        _require(all(map(str.strip, self.bad_words)), "bad_words", "must not hold an empty string")
        try:
            check_kept_fields({name: getattr(self, name, None) for name in (*KEPT_TEXTS, *KEPT_IDS)})
        except InvalidOptIn as error:  # a cloud would refuse what may be handed over
            raise InvalidRequest(str(error), param=error.param) from None
        _require(allowed is None or len(allowed) > 0, "allowed_token_ids", "must not be empty")
        _require(
            all(-100 <= bias <= 100 for bias in self.logit_bias.values()), "logit_bias", "must be from -100 to 100"
        )
        _require(all(token >= 0 for token in self.logit_bias), "logit_bias", "must have token ids as keys")
        known = self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS
        _require(known, "logprobs", f"must be None or from 0 to {MAX_TOP_LOGPROBS}")
        budget = self.decode_budget
        _require(budget is None or 1 <= budget <= MAX_DECODE_BUDGET, "decode_budget", "must be None or at least 1")
        least = self.least_budget
        _require(
            least is None or 1 <= least <= (budget or MAX_DECODE_BUDGET), "least_budget", "exceeds the budget"
        )
        ratio = self.refine_ratio
        share = ratio is None or (not isinstance(ratio, bool) and 0 < ratio <= 1)
        _require(share, "refine_ratio", "must be None, or above 0 and at most 1")
        object.__setattr__(self, "protect", _spans(self.protect, len(self.prompt_token_ids)))
        session = self.session or session_id(*beginning_of_prompt(self.prompt_token_ids))
        object.__setattr__(self, "session", session)


def _spans(spans: Iterable[tuple[int, int]], length: int) -> tuple[tuple[int, int], ...]:
    """Return `spans` sorted, those that touch as one."""
    given = [tuple(span) for span in spans]
    whole = all(len(span) == 2 and all(type(bound) is int for bound in span) for span in given)
    _require(
        whole and all(0 <= span[0] < span[1] <= length for span in given),
        "protect",
        f"must be pairs (start, end) of positions in the prompt, 0 <= start < end <= {length}",
    )
    return merge_spans(((span[0], span[1]) for span in given), length)


def check_token_ids(ids: Iterable[int], size: int, *, param: str) -> None:
    """Refuse ids that a vocabulary of `size` tokens does not have.

    Raises:
        InvalidRequest: there is one; `param` is its field.
    """
    for token in ids:
        if not 0 <= token < size:
            raise InvalidRequest(f"{param} has the token id {token}: the model has 0 to {size - 1}", param=param)


def _require(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise InvalidRequest(f"{name} {rule}", param=name)
