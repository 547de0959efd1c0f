"""What the cloud tells of its part inside the stream of one leg: the decode budget, and the refined prompt.

Whatever it tells, and in whatever order, the tokens are what they are: a wrong update costs the refined prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.errors import CloudRefused, SchemaVersionError, named
from pdd_core.handoff import HandoffUpdate
from pdd_llamacpp_adapter.cloud.cloud_gate import checked, shown

if TYPE_CHECKING:
    from pdd_core.handoff import DecodeBudget
    from pdd_llamacpp_adapter.session.live_answer import LiveAnswer
    from pdd_llamacpp_adapter.session.refined_prompt_fetch import RefinedPromptFetch

LAST_WORDS_S = 15.0
"""For what comes behind the last token: longer than the cloud holds the stream's end back for it."""
_MOST_BUDGETS = 8
"""Changes of the budget that are written down: a policy decides a few times, a broken cloud without end."""


class LegUpdates:
    """Takes the updates of one leg.

    Args:
        live: the answer.
        handoff_id: the leg's.
        fetch: of the refined prompt that the leg was asked for; None where it was asked for none.
    """

    def __init__(self, live: LiveAnswer, handoff_id: str, fetch: RefinedPromptFetch | None) -> None:
        self._live = live
        self._handoff_id = handoff_id
        self._fetch = fetch
        self._budgets: list[DecodeBudget] = []
        if fetch is not None:
            fetch.expect()

    @property
    def budget(self) -> int | None:
        """Tokens that the cloud decodes at most, as last told; None before that."""
        return self._budgets[-1].tokens if self._budgets else None

    @property
    def waited_for(self) -> bool:
        """Whether the refined prompt may yet come."""
        return self._fetch is not None and not self._fetch.settled

    def take(self, told: object) -> None:
        """Take the JSON of an update, whatever it is. Never raises for what the cloud says."""
        try:
            update = checked(told, HandoffUpdate)
        except (CloudRefused, SchemaVersionError) as error:
            self._wrong(named(error))
            return
        if update.handoff_id != self._handoff_id:
            self._wrong("the cloud's event is about another handoff")
            return
        if update.decode_budget is not None:
            self._decided(update.decode_budget)
        if update.refinement is not None and self._fetch is not None:
            self._fetch.told(update.refinement)

    def _wrong(self, why: str) -> None:
        if self._fetch is not None:
            self._fetch.give_up("invalid", why)
            self._live.changed()

    def _decided(self, budget: DecodeBudget) -> None:
        if self._budgets[-1:] == [budget] or len(self._budgets) >= _MOST_BUDGETS:
            return
        self._budgets.append(budget)
        if budget.set_by != "client":
            self._live.decided(f"the cloud decodes {budget.tokens} tokens at most, set by {shown(budget.set_by)}")

    def ended(self, *, begun: bool) -> None:
        """Expect no more: the stream is over. If it has not `begun`, another may still be asked."""
        if self._fetch is not None:
            self._fetch.expect_no_more(begun=begun)
