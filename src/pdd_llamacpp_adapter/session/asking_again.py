"""What the loss of a cloud says about asking it again."""

from __future__ import annotations

from pdd_core.errors import CloudLost, CloudRefused, CloudUnreachable
from pdd_llamacpp_adapter.session.leg_plan import NOT_REPEATED

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which asking again may help."""


def is_passing(error: Exception) -> bool:
    """Return whether the next request may fare better."""
    if isinstance(error, CloudRefused):
        return error.status in _PASSING
    return isinstance(error, CloudUnreachable | CloudLost)


def is_unlike(error: Exception) -> bool:
    """Return whether the cloud has made the answer again, and differently. The next time it may not."""
    return isinstance(error, CloudRefused) and error.code == NOT_REPEATED


def told_to_wait(error: Exception) -> float:
    """Return the seconds that the cloud wants to be left alone; 0 where it did not say."""
    return (isinstance(error, CloudRefused) and error.retry_after) or 0.0
