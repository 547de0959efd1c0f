"""The opt-in fields of a request: their names, their bounds, and one check that both sides use.

They travel in vLLM's ``vllm_xargs`` (``SamplingParams.extra_args``), whose values must be scalars or flat lists of
them. vLLM hands them through unchecked, so this is the only check there is.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidOptIn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HANDOFF = "pdd_handoff"
DECODE_BUDGET = "pdd_decode_budget"
REFINE_RATIO = "pdd_refine_ratio"

PROTECT = "pdd_protect"
LEAST_BUDGET = "pdd_least_budget"
TENANT = "pdd_tenant"
EXTENDS = "pdd_extends"
INLINE = "pdd_inline"
KV = "pdd_kv"
TOKENIZER = "pdd_tokenizer"

PREFIX = "pdd_"
FIELDS = (HANDOFF, DECODE_BUDGET, LEAST_BUDGET, REFINE_RATIO, PROTECT, TENANT, EXTENDS, INLINE, KV, TOKENIZER)
MAX_DECODE_BUDGET = 1_000_000
"""Far above any context length; larger values are typing errors, not wishes."""

COUNTS_BELOW = 2**31
"""Above any count of tokens, and any position in a prompt: both engines keep them in C ints."""
MAX_PROTECTED = 4096
"""Spans that a refined prompt can be asked to keep. A state keeps them, so they are bounded."""

HANDOFF_ID_CHARS = (16, 128)
"""Shortest and longest handoff id. 16 characters is where guessing stops being practical."""
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_LONGEST_NAME = 64
"""Characters of an unknown field's name that an error shows."""
TENANT_CHARS = (1, 64)
"""Shortest and longest name of a tenant."""
TENANT_PATTERN = rf"^[A-Za-z0-9._-]{{{TENANT_CHARS[0]},{TENANT_CHARS[1]}}}$"

DIGEST_CHARS = 64
"""Hexadecimal digits of a tokenizer's digest."""
_DIGEST = re.compile(rf"[0-9a-f]{{{DIGEST_CHARS}}}")
FOREIGN_TOKENIZER = "tokenizer_mismatch"
"""`code` of the error of a request whose token ids mean something else here."""

STOP_REASON = "pdd_handoff"
"""``stop_reason`` of a choice that ended because its decode budget was used up."""


@dataclass(frozen=True, slots=True)
class OptIn:
    """A request's valid opt-in."""

    handoff_id: str
    """Chosen by the client; required with any other ``pdd_`` field. It is the only handle of the state, so it
    must be unguessable: use ``uuid4().hex``."""
    decode_budget: int | None = None
    """Tokens the cloud may decode. A policy or the server's ceiling can lower it, nothing raises it. None leaves
    it to the cloud's policy."""
    refine_ratio: float | None = None
    """Share of the prompt's tokens to keep in a refined prompt. None asks for no refinement."""
    protect: tuple[tuple[int, int], ...] = ()
    """Half-open spans of prompt positions that a refined prompt keeps, increasing and apart. Template tokens, the
    system prompt and the last paragraph of the last user turn (at most 128 tokens) are kept anyway."""
    least_budget: int | None = None
    """The budget below which the user would wait. Under load the cloud may go down to it, also while the request
    runs: docs/policies.md#under-load. None: not at all."""
    tenant: str | None = None
    """For whom the request is made: the key of ceilings per tenant, docs/policies.md#tenants. A name, not a
    proof."""
    extends: str | None = None
    """Handoff id of the request that this one goes on from; it is only counted."""
    inline: bool = False
    """Have a streamed answer carry the budget, the refined prompt and the final status: `HandoffUpdate`."""
    kv: bool = False
    """Keep the prompt's KV cache for the device: ``GET /v1/pdd/handoffs/{id}/kv``."""
    tokenizer: str | None = None
    """Digest of the tokenizer that the client takes the cloud's to be, as `CloudInfo` told it. A server that has
    another one by now refuses the request. None: the client reads text, and sends no ids."""

    def xargs(self) -> dict[str, str | int | float | list[int]]:
        """Return the fields as they go into ``vllm_xargs``."""
        fields = {
            HANDOFF: self.handoff_id,
            DECODE_BUDGET: self.decode_budget,
            LEAST_BUDGET: self.least_budget,
            REFINE_RATIO: self.refine_ratio,
            PROTECT: [bound for span in self.protect for bound in span] or None,
            TENANT: self.tenant,
            EXTENDS: self.extends,
            INLINE: 1 if self.inline else None,
            KV: 1 if self.kv else None,
            TOKENIZER: self.tokenizer,
        }
        return {name: value for name, value in fields.items() if value is not None}


def parse_opt_in(xargs: Mapping[str, Any] | None) -> OptIn | None:
    """Check the ``pdd_*`` fields of `xargs`.

    Returns None when there is none, or only that of `check_tokenizer_digest`: the request has not opted in.

    Raises:
        InvalidOptIn: a field is unknown, of the wrong type or out of range, or ``pdd_handoff`` is missing.
    """
    if not xargs or not any(name.startswith(PREFIX) and name != TOKENIZER for name in xargs):
        return None
    for name in xargs:
        if name.startswith(PREFIX) and name not in FIELDS:
            raise invalid(name, f"is not a field; the fields are {', '.join(FIELDS)}")
    handoff_id = check_handoff_id(xargs.get(HANDOFF))
    budget = _budget(DECODE_BUDGET, xargs[DECODE_BUDGET]) if DECODE_BUDGET in xargs else None
    least = _budget(LEAST_BUDGET, xargs[LEAST_BUDGET]) if LEAST_BUDGET in xargs else None
    if budget is not None and least is not None and least > budget:
        raise invalid(LEAST_BUDGET, f"must be at most {DECODE_BUDGET} ({budget}), not {least}")
    return OptIn(
        handoff_id=handoff_id,
        decode_budget=budget,
        refine_ratio=_refine_ratio(xargs[REFINE_RATIO]) if REFINE_RATIO in xargs else None,
        protect=_protect(xargs[PROTECT]) if PROTECT in xargs else (),
        least_budget=least,
        tenant=_name(TENANT, xargs[TENANT], TENANT_CHARS) if TENANT in xargs else None,
        extends=_name(EXTENDS, xargs[EXTENDS], HANDOFF_ID_CHARS) if EXTENDS in xargs else None,
        inline=_flag(INLINE, xargs[INLINE]) if INLINE in xargs else False,
        kv=_flag(KV, xargs[KV]) if KV in xargs else False,
        tokenizer=_digest(xargs[TOKENIZER]) if TOKENIZER in xargs else None,
    )


def check_handoff_id(value: object, field: str = HANDOFF) -> str:
    """Return `value`, which `field` has, if it can serve as a handoff id.

    Raises:
        InvalidOptIn: it is missing, not a string, too short, too long, or has characters outside ``A-Za-z0-9._-``.
    """
    if value is None:
        raise invalid(HANDOFF, "is required when another pdd_ field is given; use uuid4().hex")
    return _name(field, value, HANDOFF_ID_CHARS, hint="; use uuid4().hex")


def check_one_answer(n: object) -> None:
    """Check OpenAI's `n`: a handoff hands over one answer.

    Raises:
        InvalidOptIn: `n` is given and is not 1.
    """
    if n is not None and n != 1:
        raise InvalidOptIn(f"n must be 1 with {HANDOFF}: a handoff hands over one answer", param="n")


def check_tokenizer_digest(xargs: Mapping[str, Any] | None, own: str) -> None:
    """Check that token ids mean what the client takes them to mean, on a server whose tokenizer's digest is `own`.

    A request may ask for this alone, and is a plain one otherwise.

    Raises:
        InvalidOptIn: they do not; its `code` is `FOREIGN_TOKENIZER`. Or the digest is none.
    """
    if xargs and TOKENIZER in xargs and _digest(xargs[TOKENIZER]) != own:
        problem = f"{TOKENIZER} is not the digest of this server's tokenizer, which is {own}: read its info again"
        raise InvalidOptIn(problem, param=f"vllm_xargs.{TOKENIZER}", code=FOREIGN_TOKENIZER)


def check_protected(spans: Sequence[tuple[int, int]], prompt_tokens: int) -> None:
    """Check that spans, which increase, are within a prompt of so many tokens.

    Raises:
        InvalidOptIn: one ends behind it.
    """
    if spans and (end := spans[-1][1]) > prompt_tokens:
        problem = f"must end within the prompt, which has {prompt_tokens} tokens, not at {end}"
        raise invalid(PROTECT, problem)


def invalid(name: str, problem: str) -> InvalidOptIn:
    """Return the error of the field `name` of ``vllm_xargs``, which may be any client's invention."""
    name = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    return InvalidOptIn(f"{name} {problem}", param=f"vllm_xargs.{name}")


def _name(field: str, value: object, chars: tuple[int, int], *, hint: str = "") -> str:
    if not isinstance(value, str):
        raise invalid(field, f"must be a string, not {type(value).__name__}{hint}")
    shortest, longest = chars
    if not shortest <= len(value) <= longest:
        raise invalid(field, f"must have {shortest} to {longest} characters, not {len(value)}{hint}")
    if not _NAME.fullmatch(value):
        raise invalid(field, f"may only have the characters A-Z a-z 0-9 . _ -{hint}")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise invalid(TOKENIZER, f"must have {DIGEST_CHARS} hexadecimal digits, not {_show(value)}")
    return value


def _flag(field: str, value: object) -> bool:
    # JSON's true is 1 by the time that vLLM hands it on
    if not isinstance(value, int) or value not in {0, 1}:
        raise invalid(field, f"must be true or false, not {_show(value)}")
    return bool(value)


def _budget(field: str, value: object) -> int:
    # bool is an int in Python, and JSON's true is never a budget
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DECODE_BUDGET:
        raise invalid(field, f"must be an integer from 1 to {MAX_DECODE_BUDGET}, not {_show(value)}")
    return value


def _refine_ratio(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise invalid(REFINE_RATIO, f"must be a number above 0 and at most 1, not {_show(value)}")
    return float(value)


def _protect(value: object) -> tuple[tuple[int, int], ...]:
    if isinstance(value, list) and len(value) > 2 * MAX_PROTECTED:
        raise invalid(PROTECT, f"must have at most {MAX_PROTECTED:,} spans, not {(len(value) + 1) // 2:,}")
    bounds = [bound for bound in value if type(bound) is int] if isinstance(value, list) else []
    increasing = all(a < b for a, b in pairwise([-1, *bounds, COUNTS_BELOW]))
    if not isinstance(value, list) or len(bounds) != len(value) or len(bounds) % 2 or not increasing:
        wish = f"must be a list [start, end, start, end, ...] of increasing positions below {COUNTS_BELOW}"
        raise invalid(PROTECT, f"{wish}, not {_show(value)}")
    return tuple(zip(bounds[::2], bounds[1::2], strict=True))


def _show(value: object) -> str:
    text = reprlib.repr(value)  # which reads no more of a long value than it shows
    return text if len(text) <= 40 else f"{text[:40]}..."
