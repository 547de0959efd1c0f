"""Wire schema, hooks and policies of pdd-device. Imports neither vLLM nor llama.cpp."""

from pdd_core.handoff import SCHEMA_VERSION, CloudInfo, HandoffState, Status
from pdd_core.hookspecs import BudgetRequest, CloudLoad, Pacer, PaceRequest, PaceTarget, hookimpl
from pdd_core.optin import OptIn, parse_opt_in
from pdd_core.planner.types import CloudState, DeviceState, Estimate, Plan, PlanRequest, Verdict, Why
from pdd_core.plugins import Policies
from pdd_core.refinement.prompt import RefinePrompt
from pdd_core.refinement.scores import PromptScores
from pdd_core.timeline import ShownToken, Source, Timeline

__all__ = [
    "SCHEMA_VERSION",
    "BudgetRequest",
    "CloudInfo",
    "CloudLoad",
    "CloudState",
    "DeviceState",
    "Estimate",
    "HandoffState",
    "OptIn",
    "PaceRequest",
    "PaceTarget",
    "Pacer",
    "Plan",
    "PlanRequest",
    "Policies",
    "PromptScores",
    "RefinePrompt",
    "ShownToken",
    "Source",
    "Status",
    "Timeline",
    "Verdict",
    "Why",
    "hookimpl",
    "parse_opt_in",
]
