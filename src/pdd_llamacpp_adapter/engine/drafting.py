"""When a draft pays, and of how many tokens: decided for each step from what earlier steps took and came to."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from statistics import median, median_low
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.engine.lookup import PromptLookup

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_ROWS = 15
"""Tokens of the largest step: from 16 on, `engine/speed.py` takes a batch for a piece of a prompt."""
_KNOTS = (1, 4, 8, 16, 32, 64)
_FIRST_RATIOS = (1.0, 2.3, 3.7, 6.4, 11.0, 21.0)
"""What steps of so many tokens cost at first, in single ones: between F16 and 4 bits on a CPU."""
_KEPT = 5
"""Measurements whose median counts, so that a hiccup of the machine does not."""
_RUNS = (3, 4, 5, 7, 10, 15)
"""Lengths of a match from which on a draft is more likely to be right."""
_LIKELY = (0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.93)
"""How likely at first: below the first of `_RUNS`, from there on, and so on."""
_WEIGHT = 4.0
"""Tokens that this first guess counts for."""
_FORGETTING = 0.95
_WORTH = 1.05
"""By how much a step with a draft has to be faster, by the forecast, to be tried."""
_LOSS = 0.01
"""Share of an answer's time that drafts may lose, besides `_LOSS_STEPS` single steps."""
_LOSS_STEPS = 2.0
_HOPELESS = 0.05
_FIRST_REACH = 3
"""Tokens of a first draft, and of one behind a draft that was all wrong: the reader waits for such a step."""


class StepCosts:
    """What steps take, by how many tokens they process. Lives as long as the engine that they are of."""

    def __init__(self) -> None:
        self._singles = deque[float](maxlen=_KEPT)
        self._single: float | None = None
        self._scales = [deque[float](maxlen=_KEPT) for _ in _KNOTS]
        self._combine()

    def measured(self, rows: int, seconds: float) -> None:
        """Count a step of `rows` tokens that took `seconds`."""
        if seconds <= 0:
            return
        if rows == 1:
            self._singles.append(seconds)
            self._single = median(self._singles)
        elif self._single is not None:
            nearest = min(range(1, len(_KNOTS)), key=lambda knot: abs(_KNOTS[knot] - rows))
            ratio = seconds / self._single / self._ratio(rows) * self._ratio(_KNOTS[nearest])
            self._scales[nearest].append(max(0.0, (ratio - 1) / (_FIRST_RATIOS[nearest] - 1)))
            self._combine()

    def forget(self) -> None:
        """Forget one measurement of each size, so that one that did not pay is tried again some answers later."""
        for scales in self._scales:
            if scales:
                scales.popleft()
        self._combine()

    def seconds(self, rows: int) -> float | None:
        """Return what a step of `rows` tokens will take; None before a single one was measured."""
        return None if self._single is None else self._single * self._ratio(rows)

    def _combine(self) -> None:
        """What a size costs beyond the first guess, the next one will, until it is measured itself."""
        import numpy as np  # here, so that importing the package does not load it

        scale, ratios = 1.0, list[float]()
        for first, scales in zip(_FIRST_RATIOS, self._scales, strict=True):
            scale = median_low((scale, *scales))
            ratios.append(1 + (first - 1) * scale)
        self._ratios: list[float] = np.interp(range(_KNOTS[-1] + 1), _KNOTS, ratios).tolist()

    def _ratio(self, rows: int) -> float:
        return self._ratios[min(rows, _KNOTS[-1])]


class LookupDrafter:
    """Drafts for one answer. Whether a draft would be right is counted for each token, drafted or not.

    So an answer that repeats nothing costs nothing but the index, and one that begins to quote gets drafts then.
    Drafts that lose time all the same are stopped once they have lost a hundredth of the answer's.

    Args:
        ids: prompt and answer so far.
        left: tokens that the answer may still get.
        costs: of the engine.
    """

    def __init__(self, ids: Sequence[int], *, left: int, costs: StepCosts) -> None:
        self._ids = list(ids)
        self._left = left
        self._costs = costs
        self._lookup: PromptLookup | None = None
        self._right = [likely * _WEIGHT for likely in _LIKELY]
        self._counted = [_WEIGHT] * len(_LIKELY)
        self._reach = _FIRST_REACH
        self._spent = 0.0
        self._won = 0.0

    def draft(self, most: int, *, beside: int = 0) -> list[int]:
        """Return the tokens that are worth to be checked in the next step, at most `most`; often none.

        Args:
            most: a limit from outside.
            beside: tokens of other answers in the same step.
        """
        if self._lookup is None:  # here, and not before the first token is on its way
            self._lookup = PromptLookup(self._ids)
            self._costs.forget()
        most = min(most, self._left - 1, self._reach)
        alone = self._costs.seconds(beside + 1)
        if most < 1 or alone is None or not self._lookup.matched or self._loses(alone):
            return []
        return self._lookup.draft(self._best(most, beside, _WORTH * (beside + 1) / alone))

    def made(self, token: int) -> None:
        """Count a token that was chosen."""
        self._left -= 1
        if self._lookup is None:
            self._ids.append(token)
            return
        run = bisect_right(_RUNS, self._lookup.matched)
        if (right := self._lookup.append(token)) is not None:
            self._counted[run] = self._counted[run] * _FORGETTING + 1
            self._right[run] = self._right[run] * _FORGETTING + right

    def took(self, seconds: float, *, rows: int, made: int, beside: int = 0) -> None:
        """Count a step: `seconds` of computing for `rows` tokens of this answer, which gave `made`, and others."""
        self._spent += seconds
        single, forecast = self._costs.seconds(beside + 1), self._costs.seconds(beside + rows)
        if rows > 1 and single is not None and forecast is not None:
            lost = min(seconds, 2 * forecast) - made * single  # a hiccup is not the draft's
            self._won = min(self._won - lost, _LOSS_STEPS * single)
        if rows > 1 and made == rows:
            self._reach = min(2 * self._reach + 1, MOST_ROWS - 1)
        elif rows > 1 and made == 1:
            self._reach = _FIRST_REACH
        self._costs.measured(rows + beside, seconds)

    def _loses(self, step_s: float) -> bool:
        return self._won < -(_LOSS_STEPS * step_s + _LOSS * self._spent)

    def _best(self, most: int, beside: int, rate: float) -> int:
        """Return the length with which the most tokens per second are expected, 0 if not above `rate`."""
        matched = 0 if self._lookup is None else self._lookup.matched
        best, likely, expected = 0, 1.0, 1.0 + beside
        for length in range(1, most + 1):
            run = bisect_right(_RUNS, matched + length - 1)
            likely *= self._right[run] / self._counted[run]
            expected += likely
            if likely < _HOPELESS:
                break
            seconds = self._costs.seconds(beside + 1 + length)
            if seconds and expected / seconds > rate:
                best, rate = length, expected / seconds
        return best
