"""Decides who works on an answer next: begins the cloud's legs, stops what is not needed, and gives up."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

from pdd_core.errors import named
from pdd_core.optin import OptIn
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.session.asking_again import is_passing, is_unlike, told_to_wait
from pdd_llamacpp_adapter.session.cloud_leg import CloudLeg
from pdd_llamacpp_adapter.session.leg_plan import plan_leg
from pdd_llamacpp_adapter.session.outcome import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from pdd_llamacpp_adapter.session.arrivals import Arrivals
    from pdd_llamacpp_adapter.session.device_part import DevicePart
    from pdd_llamacpp_adapter.session.session_setup import SessionSetup

_WATCH_S = 0.1
"""How often to look at a late device whose buffer runs down."""
STRETCH = 1.25
"""How far the gaps may be stretched to wait for the device, before the cloud is asked for more: less than a reader
takes for a stall (`pdd_core.qoe.STALL_GAPS`)."""
_LEAST_EXTENSION = 4
_FIRST_EXTENSION = 16
"""Tokens to ask for where neither the request nor the device gives a figure."""
_GUESSED_RATE = 16.0
_HEADROOM = 1.5
"""Of an extension over the device's own estimate, which has just proved too low."""


class Conductor:
    """Runs one answer's legs, as `Mode` says.

    An answer of the cloud alone is a plain request first, and the device begins if that is lost. An answer of the
    device alone gets a leg only if the device fails. `device` None is an answer that only the cloud can make.
    """

    def __init__(self, setup: SessionSetup, tasks: TaskGroup, device: DevicePart | None) -> None:
        self._setup = setup
        self._live = setup.live
        self._request = setup.request
        self._cloud = setup.options.cloud
        self._rate = setup.options.rate
        self._patience = setup.options.patience
        self._tasks = tasks
        self._device = device
        self._begins = setup.options.mode is not Mode.DEVICE_ONLY
        self._alone = setup.options.mode is Mode.CLOUD_ONLY
        self._leg: CloudLeg | None = None
        self._repeatable = True
        self.first_arrivals: Arrivals | None = None
        """When the tokens of the first leg came; None where there was none."""
        self._not_before = 0.0
        self._idle_since = 0.0
        self.extensions = 0
        """Further budgets that a late device was helped out with."""
        self.retries = 0
        """Further attempts after the cloud was lost."""
        self.handoff_id: str | None = None
        """Of the latest leg; None when none was opted in."""
        self._cancel_confirmed: bool | None = None

    @property
    def cancel_confirmed(self) -> bool | None:
        """Whether the cloud confirmed the last cancel; None where none was needed, or answered."""
        # the leg outlives a conductor that is cancelled: its consumer left
        latest = None if self._leg is None else self._leg.cancel_confirmed
        return self._cancel_confirmed if latest is None else latest

    async def run(self) -> None:
        """Return when the answer is finished and nothing is at work for it any more."""
        answer = self._live.answer
        if self._cloud is not None and self._begins:
            self._begin(self._request.max_tokens if self._alone else self._request.decode_budget)
        elif self._device is None:
            answer.give_up()
        while not answer.finished:
            self._close_idle_leg()
            if self._leg is None or self._leg.over:
                self._go_on()
            if not answer.finished:
                await self._live.next_change(within=_WATCH_S if self._watching() else math.inf)
        if self._device is not None:
            self._device.stop()
        self._close_idle_leg()
        await self._live.until(lambda: self._leg is None or self._leg.over)
        self._look_back()

    def leave(self) -> None:
        """Do not wait long for the cloud: the answer's consumer leaves, and everything will be cancelled."""
        if self._leg is not None:
            self._leg.leave()

    def cloud_left(self) -> int | None:
        """Return how many tokens the running leg may still add; 0 if none runs, None if that is not known."""
        leg, answer = self._leg, self._live.answer
        if leg is None or leg.closing or not answer.cloud_running:
            return 0
        limit = leg.limit
        return None if limit is None else max(0, limit - len(answer))

    def _watching(self) -> bool:
        """Whether time alone may call for a decision."""
        answer = self._live.answer
        idle = self._cloud is not None and not answer.cloud_running
        return idle and (answer.owner is Source.CLOUD or answer.stranded)

    def _close_idle_leg(self) -> None:
        answer, leg = self._live.answer, self._leg
        if leg is not None and not leg.closing and (answer.finished or not answer.cloud_running):
            self._tasks.start_soon(leg.close)

    def _go_on(self) -> None:
        """Nothing runs in the cloud: begin another leg if the answer needs one, or give up."""
        answer = self._live.answer
        self._look_back()
        stranded = answer.stranded
        if not stranded and not (self._begins and answer.owner is Source.CLOUD and self._device_late()):
            return
        if not self._may_ask_again():
            if stranded:
                self._give_up("nobody can go on")
            return
        if self._live.now() < self._not_before:
            return
        budget = self._next_budget(stranded=stranded)
        if not self._begin(budget) and stranded:
            self._give_up("the cloud cannot be asked to go on: the answer so far is random, without a seed")

    def _give_up(self, why: str) -> None:
        self._live.decided(why)
        self._live.answer.give_up()
        self._live.changed()

    def _device_late(self) -> bool:
        """Whether the user would wait for the device longer than it takes to ask the cloud again."""
        answer, device = self._live.answer, self._device
        if device is None or not answer.device_able or answer.caught_up or answer.cloud_running:
            return False
        lasts = STRETCH * (self._live.buffered + 1) / self._rate
        ready_in = device.ready_in()
        if ready_in is None:  # it cannot say: then it is late once it has been waited for
            ready_in = math.inf if self._live.now() - self._idle_since > self._patience.late_s else 0.0
        return ready_in > lasts + self._patience.late_s

    def _may_ask_again(self) -> bool:
        answer = self._live.answer
        if self._cloud is None:
            return False
        if answer.cloud_error is None:
            return True
        if told_to_wait(answer.cloud_error) > self._patience.cloud_silence_s:
            return False
        # an able device is worth waiting for: its answer is the one that was asked for
        may_pass = is_passing(answer.cloud_error) or (answer.stranded and is_unlike(answer.cloud_error))
        return may_pass and self.retries < self._patience.cloud_retries

    def _next_budget(self, *, stranded: bool) -> int | None:
        """Return how many tokens to ask for, and write down why."""
        answer, live = self._live.answer, self._live
        lost, answer.cloud_error = answer.cloud_error, None
        if lost is not None:
            self.retries += 1
            live.decided(f"asked the cloud again after {type(lost).__name__}")
        remaining = answer.max_tokens - len(answer)
        if stranded:
            lost_device = answer.device_error
            why = "nobody else is left" if lost_device is None else named(lost_device)
            live.decided(f"the cloud finishes: {why}")
            return remaining
        tokens = min(remaining, self._extension())
        if lost is not None:
            return tokens
        if self.extensions >= self._patience.max_extensions:
            live.decided("the cloud may finish: the device is too slow")
            return remaining
        self.extensions += 1
        live.decided(f"extended the cloud's budget by {tokens}: the device is late")
        return tokens

    def _extension(self) -> int:
        """Tokens that last until the device is ready, with room for its being wrong again."""
        ready_in = None if self._device is None else self._device.ready_in()
        if ready_in is None:
            return self._request.decode_budget or _FIRST_EXTENSION
        rate = min(self._rate, self._live.arrival_rate or _GUESSED_RATE)
        return max(_LEAST_EXTENSION, math.ceil(_HEADROOM * (rate * ready_in - self._live.buffered)))

    def _begin(self, budget: int | None) -> bool:
        """Start a leg; return whether the cloud can be asked for one."""
        answer = self._live.answer
        plan = plan_leg(self._request, answer.ids, budget=budget, repeatable=self._repeatable)
        if plan is None or self._cloud is None:
            return False
        opt_in: OptIn | None = None
        on_begun: Callable[[], object] | None = None
        if self._device is not None and not self._alone:
            asked, fetch, cells = plan.request, self._setup.fetch, self._setup.cells
            opt_in = OptIn(uuid4().hex, asked.decode_budget, least_budget=asked.least_budget)
            if len(answer):
                opt_in = replace(opt_in, extends=self.handoff_id)
            elif fetch is not None and not fetch.settled:
                opt_in = replace(opt_in, refine_ratio=fetch.ratio, protect=fetch.protected)
                on_begun = partial(fetch.start, self._tasks, self._cloud, opt_in.handoff_id)
            elif cells is not None and cells.reason is None:
                opt_in = replace(opt_in, kv=True)
                on_begun = partial(cells.start, self._tasks, self._cloud, opt_in.handoff_id)
            self.handoff_id = opt_in.handoff_id
        answer.cloud_resumes()
        self._leg = CloudLeg(self._setup, self._cloud, plan, opt_in=opt_in, on_begun=on_begun)
        if self.first_arrivals is None:
            self.first_arrivals = self._leg.arrivals
        self._tasks.start_soon(self._leg.run)
        return True

    def _look_back(self) -> None:
        """Record, once, how the leg ended that is over."""
        leg, self._leg = self._leg, None
        if leg is None:
            return
        self._idle_since = self._live.now()
        if leg.cancel_confirmed is not None:
            self._cancel_confirmed = leg.cancel_confirmed
        if (error := self._live.answer.cloud_error) is not None:
            self._live.decided(f"the cloud was lost: {type(error).__name__}")
            self._repeatable = self._repeatable and not is_unlike(error)
            self._alone = False
            if self._device is not None:
                self._device.wake()
            if (on_cloud_error := self._setup.options.on_cloud_error) is not None:
                on_cloud_error(error)
            delay = max(self._patience.retry_delay_s * 2**self.retries, told_to_wait(error))
            self._not_before = self._live.now() + delay
