"""What the demo asks, and under which conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError
from pdd_core.refinement.guard import LEAST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pdd_cli.link import Link

QUESTION = "Discuss the historical background of this document and its influence on the world."
"""The demo model answers it with 410 tokens and ends by itself."""
DOCUMENT = "declaration.txt"
"""The Declaration of Independence of the United States: public domain, 1,700 tokens of the demo model."""
FREQUENCY_PENALTY = 0.6
"""A model of 135M parameters repeats itself under plain greedy decoding. Deterministic all the same: question and
penalty are chosen so that the best token leads by at least 0.017 nats throughout the answer."""
HEADROOM = 1.1
"""How far above the break-even the budget lies, for a device a little slow. That its prefill begins before the
cloud's first token is shown is a reserve of its own."""
READING_RATE = 5.0
"""Tokens per second: no faster than one reads, where the cloud can make them."""
RATE_MARGIN = 0.6
"""Share of the cloud's own speed at which its tokens are shown, so that a hiccup of the machine is no stall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoScenario:
    """One demo."""

    gguf: Path | None = None
    """The device's model; None is the demo model."""
    document: Path | None = None
    """None is the Declaration of Independence."""
    question: str | None = None
    max_tokens: int
    decode_budget: int | None = None
    """Tokens that the cloud may decode; None computes it."""
    rate: float | None = None
    """Tokens per second at which every mode's answer is shown; None measures what the cloud can keep up."""
    profile: str
    """Name of a device profile."""
    threads: int = 1
    """The device's CPU threads."""
    link: Link | None = None
    """The link to emulate between device and cloud; None takes the connection as it is."""

    def asked(self) -> str:
        """Return the question."""
        return self.question or QUESTION

    def message(self) -> str:
        """Return the user's message: the document, then the question.

        Raises:
            ConfigurationError: the document cannot be read as UTF-8.
        """
        return f"{self._document_text().strip()}\n\n{self.asked()}"

    def _document_text(self) -> str:
        if self.document is None:
            return files("pdd_cli").joinpath("data", DOCUMENT).read_text(encoding="utf-8")
        try:
            return self.document.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self.document} cannot be read as UTF-8 text: {error}") from error


def kv_budget(
    prompt_tokens: int,
    *,
    rate: float,
    prefill_tps: float,
    cells_per_s: float,
    rtt_s: float,
    headroom: float = HEADROOM,
) -> int | None:
    """Return how many tokens the cloud may decode where cells come from the back while the device prefills.

    The two meet after T = round trip + L / (p + s) seconds, and the tokens shown until then have to be processed
    as well: N = r T / (1 - r / p). `headroom` multiplies it, and the guard judges by some tokens.
    None: the device is too slow to catch up.
    """
    if prefill_tps <= rate:
        return None
    meet_s = rtt_s + prompt_tokens / (prefill_tps + cells_per_s)
    return max(LEAST_TOKENS + 1, math.ceil(headroom * rate * meet_s / (1 - rate / prefill_tps)))


def sustained_rate(received_at: Sequence[float]) -> float:
    """Return the rate to show an answer at, from the cloud's tokens while the device computes beside it.

    Both engines share this machine, so the cloud's speed is the machine's. In steps of half a token per second.
    """
    if len(received_at) < 3:
        return READING_RATE
    per_second = (len(received_at) - 1) / (received_at[-1] - received_at[0])
    return max(1.0, min(READING_RATE, math.floor(2 * RATE_MARGIN * per_second) / 2))
