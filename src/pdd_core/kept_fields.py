"""vLLM's own fields that a handoff's state keeps: bounded, since vLLM takes them in any length."""

from __future__ import annotations

from collections.abc import Mapping

from pdd_core.errors import InvalidOptIn

KEPT_TEXTS = ("stop", "stop_sequences", "bad_words")
"""Fields of a request whose texts a state keeps. The second is Anthropic's name of the first."""
MAX_STOP_CHARS = 16_384
"""Characters of `KEPT_TEXTS` together, each text counting as one at least."""
KEPT_IDS = ("stop_token_ids", "allowed_token_ids", "logit_bias")
"""Fields of a request whose token ids a state keeps."""
MAX_KEPT_IDS = 131_072
"""Entries of `KEPT_IDS` together. So one request takes a fifth of what all states may hold, and no more."""


def check_kept_fields(request: Mapping[str, object]) -> None:
    """Check the fields of a request that opts in. What is of no such type is left to vLLM.

    Raises:
        InvalidOptIn: they have more than `MAX_STOP_CHARS` characters, or `MAX_KEPT_IDS` entries.
    """
    for names, most, count, what in (
        (KEPT_TEXTS, MAX_STOP_CHARS, _characters, "characters"),
        (KEPT_IDS, MAX_KEPT_IDS, _entries, "entries"),
    ):
        found = 0
        for name in names:
            found += count(request.get(name))
            if found > most:
                bound = f"at most {most:,} {what} together, for an answer to be handed over"
                raise InvalidOptIn(f"{', '.join(names)} must have {bound}, not {found:,}", param=name)


def _characters(value: object) -> int:
    texts = value if isinstance(value, list | tuple) else [value]
    return sum(max(1, len(text)) for text in texts if isinstance(text, str))


def _entries(value: object) -> int:
    return len(value) if isinstance(value, list | tuple | Mapping) else 0
