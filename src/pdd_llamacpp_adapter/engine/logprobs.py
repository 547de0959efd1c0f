"""Logprobs of one step, as vLLM's default ``logprobs_mode`` (``raw_logprobs``) defines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pdd_core.timeline import TokenLogprob, TokenLogprobs


@dataclass(frozen=True, slots=True, eq=False)
class NextToken:
    """A token that came next."""

    token: int
    allowed: np.ndarray | None = None
    """What a grammar let come, bool of shape (n_vocab,); None where everything."""


Following = Mapping[int, NextToken]
"""Index in a batch -> what came behind that token."""


def log_likelihood(logits: np.ndarray, seen: NextToken) -> float:
    """Return the logprob of the token that came next, by the same definition as `log_probabilities`.

    Args:
        logits: float32 of shape (n_vocab,), as the model gave them; unchanged.
        seen: the token, and what the grammar let come in its place.
    """
    among = logits if seen.allowed is None else logits[seen.allowed]
    return float(logits[seen.token]) - _log_total(among)


def log_probabilities(logits: np.ndarray, token: int, top: int) -> TokenLogprobs:
    """Return the logprobs of `token` and of the `top` most likely tokens, best first, lower ids first at ties.

    Args:
        logits: float32 of shape (n_vocab,), before bias, penalties and temperature. A grammar's mask is on them
            already, as in vLLM: what it forbids has logprob ``-inf`` and no share of the probability.
        token: the chosen token.
        top: how many to list; at most n_vocab are.
    """
    total = _log_total(logits)

    def logprob(token_id: int) -> TokenLogprob:
        return TokenLogprob(token_id, float(logits[token_id]) - total)

    return TokenLogprobs(logprob(token), tuple(logprob(int(token_id)) for token_id in _most_likely(logits, top)))


def _log_total(logits: np.ndarray) -> float:
    peak = float(logits.max())
    with np.errstate(over="ignore"):  # what is that far below the peak adds nothing
        return peak + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))


def _most_likely(logits: np.ndarray, top: int) -> np.ndarray:
    """Return the ids of the `top` highest logits, highest first."""
    top = min(top, logits.size)
    if top == 0:
        return np.empty(0, dtype=np.int64)
    least = np.partition(logits, -top)[-top]
    above = np.flatnonzero(logits > least)
    equal = np.flatnonzero(logits == least)[: top - above.size]
    best: np.ndarray = np.concatenate([above[np.argsort(-logits[above], kind="stable")], equal])
    return best
