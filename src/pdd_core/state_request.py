"""What can be asked of a cloud beside answers, and its form inside a POST, which every router forwards.

``POST /v1/chat/completions`` or ``/v1/completions`` with one of the fields `Verb.INFO` to `Verb.CANCEL` in
``vllm_xargs`` is answered as the route under ``/v1/pdd`` of the same purpose is. Nothing else in the body is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pdd_core.optin import COUNTS_BELOW, check_handoff_id, invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

AFTER = "pdd_after"
WAIT = "pdd_wait"
USED = "pdd_used"
FROM = "pdd_from"
TO = "pdd_to"
MAX_WAIT_S = 60.0
"""Longest time that one request may wait for a change."""


class Verb(StrEnum):
    """What is asked. The values of the first five are names of fields."""

    INFO = "pdd_info"
    """``GET /v1/pdd/info``"""
    VOCABULARY = "pdd_vocabulary"
    """``GET /v1/pdd/vocabulary?start=``"""
    READ = "pdd_read"
    """``GET /v1/pdd/handoffs/{id}?after=&wait=``"""
    CANCEL = "pdd_cancel"
    """``DELETE /v1/pdd/handoffs/{id}?used=``"""
    CELLS = "pdd_cells"
    """``GET /v1/pdd/handoffs/{id}/kv?from=&to=``"""
    RETRIEVE = "retrieve"
    """``GET /v1/chat/completions/{id}``, by the completion's id or the handoff id."""
    DELETE = "delete"
    """``DELETE /v1/chat/completions/{id}``"""


BY_POST = (Verb.INFO, Verb.VOCABULARY, Verb.READ, Verb.CANCEL, Verb.CELLS)
BY_HANDOFF = frozenset({Verb.READ, Verb.CANCEL, Verb.CELLS})
"""Their id is a handoff's."""
BY_COMPLETION = frozenset({Verb.RETRIEVE, Verb.DELETE})
"""Their id is a completion's or a handoff's."""


@dataclass(frozen=True, slots=True)
class StateRequest:
    """One question."""

    verb: Verb
    id: str = ""
    """Handoff id, or a completion's with `Verb.RETRIEVE` and `Verb.DELETE`."""
    after: int = 0
    """Output ids to leave out."""
    wait: float | None = None
    """Seconds to wait for a change."""
    used: int | None = None
    """How many tokens of the answer the client had a use for."""
    start: int = 0
    """First token id of the piece of the vocabulary."""
    begin: int = 0
    """First position of the cells that are asked for."""
    end: int | None = None
    """Position behind the last one; None: behind the last cell there is."""

    def xargs(self) -> dict[str, str | int | float]:
        """Return the fields as they go into ``vllm_xargs``; of a verb in `BY_POST`."""
        value: str | int = {Verb.INFO: 1, Verb.VOCABULARY: self.start}.get(self.verb, self.id)
        fields = {str(self.verb): value, AFTER: self.after or None, WAIT: self.wait, USED: self.used}
        fields |= {FROM: self.begin or None, TO: self.end}
        return {name: field for name, field in fields.items() if field is not None}


def parse_state_request(xargs: Mapping[str, Any]) -> StateRequest | None:
    """Read a question out of ``vllm_xargs``. Returns None when there is none.

    Raises:
        InvalidOptIn: a field is of the wrong type, out of range, or does not go with the question.
    """
    asked = [verb for verb in BY_POST if verb in xargs]
    if not asked:
        return None
    verb = asked[0]
    goes_with = {Verb.READ: (AFTER, WAIT), Verb.CANCEL: (USED,), Verb.CELLS: (FROM, TO)}.get(verb, ())
    for name in xargs:
        if name.startswith("pdd_") and name != verb and name not in goes_with:
            raise invalid(name, f"does not go with {verb}")
    value = xargs[verb]
    if verb is Verb.INFO and value != 1:  # JSON's true is 1 by the time that vLLM hands it on
        raise invalid(verb, "must be true")
    return StateRequest(
        verb,
        id=check_handoff_id(value, verb) if verb in BY_HANDOFF else "",
        after=_count(AFTER, xargs.get(AFTER, 0)),
        wait=_seconds(xargs[WAIT]) if WAIT in xargs else None,
        used=_count(USED, xargs[USED]) if USED in xargs else None,
        start=_count(verb, value) if verb is Verb.VOCABULARY else 0,
        begin=_count(FROM, xargs.get(FROM, 0)),
        end=_count(TO, xargs[TO]) if TO in xargs else None,
    )


def _count(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < COUNTS_BELOW:
        raise invalid(field, f"must be an integer from 0 to {COUNTS_BELOW - 1}")
    return value


def _seconds(value: object) -> float:
    # compared first: an integer of hundreds of digits is no float
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_WAIT_S
    if not number:
        raise invalid(WAIT, f"must be a number of seconds from 0 to {MAX_WAIT_S:g}")
    return float(value)  # type: ignore[arg-type]
