"""What is asked of a cloud to learn its speed, and how much load that is at most."""

from __future__ import annotations

from dataclasses import dataclass

from pdd_core.errors import ConfigurationError

MOST_TOKENS = 100_000
"""Prompt and answer tokens that a measurement may ask for in all, where nobody says otherwise."""
LENGTHS = (128, 256, 512, 1024, 2048)
WIDTHS = (1, 2, 4, 8)
CONTEXTS = (64, 768)
"""Prompt lengths of the answers whose gaps are measured: two, so that the cost of a long context shows."""
ANSWER_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudPlan:
    """What is measured. Requests go out one by one to measure prefill, `widths` at a time to measure decoding.

    Raises:
        ConfigurationError: it would ask for more than `most_tokens`, or for too little to tell the costs apart.
    """

    lengths: tuple[int, ...] = LENGTHS
    """Prompt lengths at which prefill is measured."""
    widths: tuple[int, ...] = WIDTHS
    """Answers at a time while decoding is measured."""
    contexts: tuple[int, ...] = CONTEXTS
    answer_tokens: int = ANSWER_TOKENS
    reps: int = 3
    round_trips: int = 30
    most_tokens: int = MOST_TOKENS

    def __post_init__(self) -> None:
        if len(self.lengths) < 2 or len(self.widths) < 2 or not self.contexts:
            raise ConfigurationError(
                "a step's costs can be told apart only with two --lengths and two --widths that the server holds"
            )
        if min(*self.lengths, *self.widths, self.reps) < 1:
            raise ConfigurationError("lengths, answers at a time and repetitions must be positive")
        if self.tokens > self.most_tokens:
            raise ConfigurationError(
                f"this would ask the cloud for {self.tokens:,} tokens, and --most-tokens allows "
                f"{self.most_tokens:,}: allow more, or fewer --reps, --lengths or --widths"
            )

    @property
    def tokens(self) -> int:
        """Prompt and answer tokens in all."""
        prefill = sum(length + 1 for length in self.lengths)
        decode = sum(self.widths) * sum(context + self.answer_tokens for context in self.contexts)
        return self.reps * (prefill + decode)

    @property
    def requests(self) -> int:
        """Requests in all, besides the round trips and the probe."""
        return self.reps * (len(self.lengths) + len(self.contexts) * sum(self.widths))

    def within(self, max_model_len: int | None) -> CloudPlan:
        """Return the same plan without what the server cannot hold.

        Raises:
            ConfigurationError: too little is left.
        """
        if max_model_len is None:
            return self
        return CloudPlan(
            lengths=tuple(length for length in self.lengths if length + 1 <= max_model_len),
            widths=self.widths,
            contexts=tuple(c for c in self.contexts if c + self.answer_tokens <= max_model_len),
            answer_tokens=self.answer_tokens,
            reps=self.reps,
            round_trips=self.round_trips,
            most_tokens=self.most_tokens,
        )


def parse_numbers(text: str, flag: str) -> tuple[int, ...]:
    """Return the numbers in ``1,2,4``, each once.

    Raises:
        ConfigurationError: it is something else; the message names `flag`.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigurationError(f"{flag} {text!r} is no list of numbers such as 1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))
