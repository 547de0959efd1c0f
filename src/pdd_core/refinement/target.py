"""How much of a prompt to keep: a share, a number of tokens, what is ready in time, or what fits the context."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, Self

from pdd_core.errors import ConfigurationError

AUTO_FROM_S = 2.0
"""Seconds of full prefill above which ``auto`` refines, and within which it wants the device to be ready."""
LEAST_RATIO = 0.25
"""``auto`` keeps at least this share for speed's sake; only a context that is too small takes more away."""
WORTH_BELOW = 0.9
"""A ratio from here on saves less than it risks: the full prompt it is, where it fits."""

Kind = Literal["off", "auto", "ratio", "tokens", "seconds", "context"]
FORMS = 'off, auto, context, a share such as 0.25, "512 tokens" or "2 s"'

_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:\s*(tokens?|s))?")


@dataclass(frozen=True, slots=True)
class RefineTarget:
    """What the user wants of refinement. Make it with `parse`."""

    kind: Kind
    value: float = 0.0
    """A share, a number of tokens, or seconds, as `kind` says."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a setting: off, auto, context, a share, a number of ``tokens``, or seconds (``s``).

        Raises:
            ConfigurationError: it is none of these, or the number is out of range.
        """
        # bool is an int in Python, and neither true nor false says how much
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _invalid(value)
        text = str(value).strip().lower()
        for kind in ("off", "auto", "context"):
            if text == kind:
                return cls(kind)
        number = _NUMBER.fullmatch(text) if isinstance(value, str) else None
        amount = float(number[1]) if number else math.nan if isinstance(value, str) else float(value)
        unit = (number[2] if number else None) or ""
        if not 0 < amount < math.inf or (not unit and amount > 1) or (unit.startswith("token") and amount % 1):
            raise _invalid(value)
        if unit:
            return cls("seconds" if unit == "s" else "tokens", amount)
        return cls("ratio", amount)

    def ratio(self, prompt_tokens: int, *, prefill_tps: float | None, n_ctx: int, max_tokens: int) -> float | None:
        """Return the share of the prompt to keep, or None for all of it.

        None if refinement is off, if the full prompt is cheap enough and fits, if nothing at all would fit, and if
        the full prompt fits and less than a tenth would be saved. Whatever was asked for, all but ``off`` keep no
        more than fits.

        Args:
            prompt_tokens: length of the full prompt.
            prefill_tps: tokens that the device prefills in a second; None while unknown, which asks for no time.
            n_ctx: tokens that the device's context holds.
            max_tokens: the longest the answer can get.
        """
        room = n_ctx - max_tokens
        if self.kind == "off" or prompt_tokens < 1 or room < 1:
            return None
        wanted = self._wanted(prompt_tokens, prefill_tps)
        if prompt_tokens > room:
            return min(wanted, room / prompt_tokens)
        return wanted if wanted < WORTH_BELOW else None

    def _wanted(self, prompt_tokens: int, prefill_tps: float | None) -> float:
        """Return the share that is asked for, 1 for all."""
        if self.kind == "ratio":
            return self.value
        if self.kind == "tokens":
            return min(1.0, self.value / prompt_tokens)
        if self.kind == "context" or not prefill_tps:
            return 1.0
        if self.kind == "seconds":
            return min(1.0, self.value * prefill_tps / prompt_tokens)
        return min(1.0, max(LEAST_RATIO, AUTO_FROM_S * prefill_tps / prompt_tokens))

    def __str__(self) -> str:
        amount = f"{self.value:g}"
        return {"ratio": amount, "tokens": f"{self.value:.0f} tokens", "seconds": f"{amount} s"}.get(
            self.kind, self.kind
        )


def _invalid(value: object) -> ConfigurationError:
    return ConfigurationError(f"refine must be {FORMS}, not {value!r}")
