"""What the device reads for one answer, and how far it is: the prompt or a refined one, then the answer. Pure.

Without refinement the device reads the prompt, or as much of it as the cloud's cells leave to read. A refined
prompt takes the place of what is not read yet: tokens that were processed stay, and positions go on without a
hole. The answer's tokens follow behind either.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.engine.history import common_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_llamacpp_adapter.engine.history import RefinedHistory


class Reading:
    """How far the device is in one prompt and the answer behind it."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = tuple(prompt)
        """The whole prompt, as client and cloud have it."""
        self.ids = list(prompt)
        """What the device reads in its place."""
        self.processed = 0
        """Tokens of `ids`, then of the answer, that the device has processed."""
        self.back: int | None = None
        """First position of the cloud's cells that the device holds, which go on to the prompt's last token and do
        not have that; None without any."""
        self.joined: int | None = None
        """Tokens that the device had processed when the cells took the place of the others; None before that."""
        self._ends: Sequence[int] = range(1, len(self.prompt) + 1)
        """Per token of `ids`: the length of the prompt's beginning that it ends."""

    @property
    def refined(self) -> bool:
        """The device reads something else than the prompt."""
        return len(self.ids) < len(self.prompt)

    @property
    def by_cloud(self) -> bool:
        """What the device has of the prompt, or will have, does not all come of its own reading of the whole."""
        return self.refined or self.back is not None

    @property
    def before_cells(self) -> int:
        """Tokens to process before the device meets the cloud's cells, or the prompt's last token without any."""
        end = len(self.ids) - 1 if self.back is None else self.back
        return max(0, end - self.processed)

    @property
    def prompt_done(self) -> bool:
        """Only the answer is left to read."""
        return self.processed >= len(self.ids)

    @property
    def prompt_position(self) -> int:
        """Where the device is in the whole prompt; what a refined prompt left out before that counts as read."""
        read = min(self.processed, len(self.ids))
        return self._ends[read - 1] if read else 0

    def behind(self, answer: Sequence[int]) -> int:
        """Return how many tokens are left to process."""
        have = 0 if self.back is None or self.joined is not None else len(self.ids) - 1 - self.back
        return len(self.ids) + len(answer) - self.processed - have

    def readable(self, answered: int) -> int:
        """Return how many tokens can be processed now; `answered` is the answer's length."""
        if self.back is not None and self.joined is None:
            return self.before_cells
        return len(self.ids) + answered - self.processed

    def pending(self, answer: Sequence[int], limit: int) -> list[int]:
        """Return the next tokens to process, at most `limit`."""
        if self.back is not None and self.joined is None:
            return self.ids[self.processed : min(self.processed + limit, self.back)]
        start, end = self.processed, self.processed + limit
        length = len(self.ids)
        return [*self.ids[start:end], *answer[max(0, start - length) : max(0, end - length)]]

    def resume(self, position: int, history: RefinedHistory | None) -> None:
        """Begin behind what the device's memory holds already.

        Args:
            position: where that ends in the whole prompt; before its end.
            history: what was read in place of the prompt's beginning; None where that was the prompt itself.
        """
        self.restore()  # the device may have begun before
        self.processed = position
        if history is None:
            return
        gone_by = len(history.prompt)
        head = [*history.ids, *self.prompt[gone_by:position]]
        self.ids = [*head, *self.prompt[position:]]
        self._ends = [*[position] * len(head), *range(position + 1, len(self.prompt) + 1)]
        self.processed = len(head)

    def refine(self, kept: Sequence[int]) -> int:
        """Leave out what is neither kept nor processed; return how many tokens that saves, 0 if none.

        Args:
            kept: increasing positions of the prompt; the last one is the prompt's last token.
        """
        if self.prompt_done:
            return 0
        read = self.processed
        rest = kept[bisect_left(kept, self.prompt_position) :]
        saved = len(self.ids) - read - len(rest)
        if saved <= 0:
            return 0
        self.ids[read:] = [self.prompt[index] for index in rest]
        self._ends = [*self._ends[:read], *(index + 1 for index in rest)]
        return saved

    def reread(self, kept: Sequence[int]) -> int:
        """Read the tokens `kept` alone, also in place of what was processed.

        Returns how many of the processed tokens are right nevertheless; they count as processed, the others are to
        be dropped. `kept` is as for `refine`; all positions bring the whole prompt back.
        """
        read = self.ids[: self.processed]
        self.ids = [self.prompt[index] for index in kept]
        self._ends = [index + 1 for index in kept]
        self.processed = common_prefix(read, self.ids)
        return self.processed

    def restore(self) -> int:
        """Go back to the whole prompt; returns as `reread` does."""
        return self.reread(range(len(self.prompt)))

    def join(self) -> int:
        """Have the cloud's cells take the place of what is not processed; return how many they are.

        They begin where the processed tokens end. The prompt's last token stays to be processed.
        """
        last = len(self.ids) - 1
        self.joined, self.processed = self.processed, last
        return last - self.joined

    def without_cells(self) -> int:
        """Do without the cloud's cells, joined or not; returns as `reread` does."""
        if self.joined is not None:
            self.processed = self.joined
        self.back = self.joined = None
        return self.processed
