"""The classes that ``--scheduler-cls`` names: vLLM's schedulers with `scheduler_mixin.BudgetMixin`."""

from __future__ import annotations

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from pdd_vllm_plugin.scheduler_mixin import BudgetMixin


class PDDAsyncScheduler(BudgetMixin, AsyncScheduler):
    """vLLM's default scheduler with decode budgets. Use this one, with async scheduling on or off.

    A subclass of plain ``Scheduler`` would silently lose async scheduling (vllm#43724).
    """


class PDDScheduler(BudgetMixin, Scheduler):
    """vLLM's synchronous scheduler with decode budgets, for ``--no-async-scheduling`` deployments."""
