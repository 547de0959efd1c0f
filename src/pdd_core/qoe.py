"""Quality of experience of one streamed answer, as Andes defines it (arXiv 2404.16283).

A reader expects the first token after `ttft` seconds and then one every ``1 / rate``. A reader at that
pace takes a token in when it is there, when the one before it has been read, and no sooner than expected: tokens
that come early earn nothing, a stall delays everything behind it. ``QoE = 1 - S_delay / S_whole``, where `S_delay`
is the area between the expected and the real curve of tokens taken in over time, and `S_whole` the area below the
expected one, both up to the moment at which the last token has been read, for which ``1 / rate`` is allowed. So 1
is an answer that never kept its reader waiting. It is a share of the time up to the end: of two answers that began
equally late the longer one scores better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

RATE = 20.0
"""Tokens per second that a reader expects, where nobody says otherwise."""
TTFT_S = 0.5
"""Seconds that a reader waits for the first token without minding, where nobody says otherwise."""

STALL_GAPS = 1.5
"""A reader who waits for a token longer than this many gaps of ``1 / rate`` notices: a stall."""


def qoe(shown_at: ArrayLike, *, rate: float = RATE, ttft: float = TTFT_S) -> float:
    """Return the QoE of one answer, 0 to 1; 1 for one without a token: its reader waited for none.

    Args:
        shown_at: when each token was there for the reader, seconds since the request began, shape (tokens,),
            not decreasing.
        rate: tokens per second that the reader takes in.
        ttft: seconds after which the reader expects the first token.

    Raises:
        ConfigurationError: `rate` is not positive and finite, or `ttft` is negative.
    """
    if not (0 < rate < np.inf and 0 <= ttft < np.inf):
        raise ConfigurationError(f"QoE needs a rate above 0 and a TTFT of 0 or more, not {rate} and {ttft}")
    shown = np.asarray(shown_at, dtype=float)
    if not shown.size:
        return 1.0
    reading = np.arange(shown.size) / rate
    expected = ttft + reading
    # read[i] = max over j <= i of max(shown[j], expected[j]) + (i - j) / rate
    read = np.maximum.accumulate(np.maximum(shown, expected) - reading) + reading
    whole = float((read[-1] + 1 / rate - expected).sum())
    return 1.0 - float((read - expected).sum()) / whole


def longest_wait(shown_at: ArrayLike, *, rate: float) -> float:
    """Return the longest time between two tokens for a reader at `rate`, seconds; 0 with fewer than two tokens.

    Counted from the moment at which the reader had taken in the token before: what came in a burst is still being
    read while nothing comes, and that is no wait. A smooth answer has ``1 / rate``, a stalled one more than
    `STALL_GAPS` times as much.

    Args:
        shown_at: when each token was there for the reader, seconds, shape (tokens,), not decreasing.
        rate: tokens per second that the reader takes in; ``inf`` counts from each token's arrival.
    """
    shown = np.asarray(shown_at, dtype=float)
    if shown.size < 2:
        return 0.0
    reading = np.arange(shown.size) / rate
    read = np.maximum.accumulate(shown - reading) + reading
    return float(np.max(np.diff(read)))
