"""What the sentences below the table own up to."""

from dataclasses import replace

from pdd_lab.plan.plan_figures import figures
from pdd_lab.plan.plan_options import PlanOptions
from pdd_lab.plan.report import sentences
from pdd_lab.simulator.evaluation import ceiling, compare


def found(**options):
    scenario = PlanOptions(trace="chat", device="laptop", cloud="h200-8b", requests=300, **options).scenario()
    return scenario, compare(scenario, budgets=(8,))


def test_a_policy_that_breaks_the_limit_of_stalls_says_so():
    scenario, made = found()
    values = figures(scenario, made, ceiling(scenario), [])
    assert any("fixed_8" in line and "that may" in line for line in sentences(values, "fixed_8"))
    assert not any("that may" in line for line in sentences(values, "plain"))
    assert values["policies"]["best_fixed"]["keeps_stall_limit"]


def test_requests_that_the_cloud_refuses_are_named_and_not_compared():
    scenario, _ = found()
    small = scenario.cloud.model_copy(update={"kv_tokens": 1008})
    scenario = replace(scenario, cloud=small)
    made = compare(scenario, budgets=(8,))
    values = figures(scenario, made, ceiling(scenario), [])
    refused = {name: row["refused"] for name, row in values["policies"].items()}
    assert refused["plain"] > refused["fixed_8"] > 0
    (line,) = [line for line in sentences(values, "planner") if "cannot hold" in line]
    assert f"plain {refused['plain']}" in line
    # the same requests on both sides: a prompt costs both the same
    assert values["policies"]["fixed_8"]["prefill_ratio"] == 1.0
