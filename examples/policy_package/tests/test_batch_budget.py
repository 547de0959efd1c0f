"""Run with `pytest`: a policy's tests need neither vLLM nor llama.cpp."""

import pdd_batch_budget

from pdd_core import BudgetRequest, CloudLoad


def budget(handoff_id, running):
    request = BudgetRequest(handoff_id, num_prompt_tokens=900, max_tokens=256, decode_budget=64, priority=0)
    return pdd_batch_budget.pdd_decode_budget(request, CloudLoad(running=running, waiting=0, kv_cache_usage=0.2))


def test_background_jobs_get_little():
    assert budget("batch-2f6f1c0d8e9a4b7c", running=0) == 4
    assert budget("batch-2f6f1c0d8e9a4b7c", running=8) == 1


def test_others_are_left_to_the_next_policy():
    assert budget("2f6f1c0d8e9a4b7c2f6f1c0d8e9a4b7c", running=8) is None
