"""How many examples a property test draws."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100
"""What hypothesis draws where a test does not say."""


def examples(count: int, **others) -> settings:
    """Settings of a test that needs `count` examples, and in a profile of many as many times more."""
    return settings(max_examples=max(1, count * settings().max_examples // _USUAL), **others)
