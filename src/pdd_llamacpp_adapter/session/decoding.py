"""The device's tokens, once the answer is its own: chosen one by one until the answer ends."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.engine.drafting import LookupDrafter
from pdd_llamacpp_adapter.engine.steps import Choice

if TYPE_CHECKING:
    import numpy as np

    from pdd_llamacpp_adapter.engine.sampler import Sampler
    from pdd_llamacpp_adapter.session.answer import Answer
    from pdd_llamacpp_adapter.session.batches import Batches
    from pdd_llamacpp_adapter.session.live_answer import LiveAnswer


async def decode(logits: np.ndarray, sampler: Sampler, *, batches: Batches, live: LiveAnswer) -> None:
    """Make the rest of the answer. `logits` are those behind all there is; changed in place.

    Raises:
        DeviceError: the engine failed, or has no room for another token.
    """
    choices = _Choices(sampler, live.answer)
    if batches.throttle.profile is not None:
        await _decode_throttled(logits, choices, batches, live)
        return
    answer, drafter = live.answer, None
    if batches.slot.drafts:
        text = (*answer.prompt, *answer.ids)
        drafter = LookupDrafter(text, left=answer.max_tokens - len(answer), costs=batches.speed.step_costs)
    begun = batches.waits_since = live.now()
    async with aclosing(batches.slot.generate(logits, choices.choose, drafter)) as steps:
        async for step in steps:
            now = live.now()
            batches.decoded(step, now - begun)
            begun = batches.waits_since = now
            for choice in step.choices:
                _made(choice, live)
            live.changed()


async def _decode_throttled(logits: np.ndarray, choices: _Choices, batches: Batches, live: LiveAnswer) -> None:
    """Make each token no sooner than the profiled device would."""
    following: np.ndarray | None = logits
    while following is not None and not live.answer.finished:
        choice = choices.choose(following)
        _made(choice, live)
        live.changed()
        following = None
        if not choice.last:
            _, following = await batches.process([choice.token], want_logits=True)
            live.answer.device_processed(1)


def _made(choice: Choice, live: LiveAnswer) -> None:
    answer = live.answer
    if answer.finished:  # by a stop string, while the engine was a step ahead
        return
    answer.device_processed(answer.behind)  # to have made a token is to have processed all before it
    answer.device_made(choice.token, choice.logprobs)


class _Choices:
    """Chooses an answer's tokens, on the engine's thread: all it needs to know of the answer is how long it is."""

    def __init__(self, sampler: Sampler, answer: Answer) -> None:
        self._sampler = sampler
        self._stop_ids = answer.stop_ids
        self._left = answer.max_tokens - len(answer)

    def choose(self, logits: np.ndarray) -> Choice:
        """Return the next token; `logits` are changed in place."""
        token, logprobs = self._sampler.sample(logits)
        self._left -= 1
        return Choice(token, token in self._stop_ids or self._left <= 0, logprobs)
