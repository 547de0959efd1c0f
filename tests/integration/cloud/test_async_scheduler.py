"""Budgets under async scheduling, which vLLM switches off on a CPU: vLLM's own scheduler, driven by hand.

The loop below is the engine core's (vllm.v1.engine.core.EngineCore.step_with_batch_queue): the next step is
scheduled before the last one's tokens are known.
"""

import os

import pytest

BLOCK = 16


@pytest.fixture(scope="module")
def make_scheduler(prepared):
    import torch
    from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from pdd_vllm_plugin.scheduler import PDDAsyncScheduler

    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    def make():
        model = ModelConfig(model=str(prepared.vllm_dir), dtype="float32", seed=0)
        config = VllmConfig(
            model_config=model,
            cache_config=CacheConfig(block_size=BLOCK, gpu_memory_utilization=0.5, enable_prefix_caching=True),
            scheduler_config=SchedulerConfig(
                max_num_seqs=8, max_num_batched_tokens=64, max_model_len=256, enable_chunked_prefill=True,
                is_encoder_decoder=False, async_scheduling=True,
            ),
            additional_config={"pdd": {}},
        )  # fmt: skip
        config.scheduler_config.async_scheduling = True  # the CPU platform has just switched it off
        config.cache_config.num_gpu_blocks = 100
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        return PDDAsyncScheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=100, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            log_stats=False,
        )

    return make


def request(name, *, budget, max_tokens, prompt_length):
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    params = SamplingParams(
        max_tokens=max_tokens,
        ignore_eos=True,
        extra_args={"pdd_handoff": name * 16, "pdd_decode_budget": budget} if budget else None,
    )
    return Request(
        request_id=name,
        prompt_token_ids=list(range(prompt_length)),
        sampling_params=params,
        pooling_params=None,
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )


def run(scheduler, *, in_flight):
    """Step until all requests have ended, with up to `in_flight` steps scheduled before their tokens are known."""
    from vllm.v1.outputs import ModelRunnerOutput

    made, ends, steps, after_end = {}, {}, [], 0
    while scheduler.has_unfinished_requests() or steps:
        output = scheduler.schedule()
        if output.total_num_scheduled_tokens:
            steps.append(output)
        if steps and (len(steps) >= in_flight or not output.total_num_scheduled_tokens):
            step = steps.pop(0)
            names = list(step.num_scheduled_tokens)
            sampled = []
            for name in names:
                held = scheduler.requests.get(name)
                done = held is None or held.num_computed_tokens >= held.num_prompt_tokens
                sampled.append([7] if done else [])
            index = {name: i for i, name in enumerate(names)}
            result = ModelRunnerOutput(
                req_ids=names, req_id_to_index=index,
                sampled_token_ids=sampled, logprobs=None, prompt_logprobs_dict={}, pooler_output=[],
            )  # fmt: skip
            for of_client in scheduler.update_from_output(step, result).values():
                for out in of_client.outputs:
                    after_end += len(out.new_token_ids) if out.request_id in ends else 0
                    made[out.request_id] = made.get(out.request_id, 0) + len(out.new_token_ids)
                    if out.finish_reason is not None:
                        ends[out.request_id] = (str(out.finish_reason), out.stop_reason)
    assert after_end == 0
    return made, ends


@pytest.mark.parametrize("in_flight", [1, 2])
def test_budgets_are_exact_with_steps_in_flight(make_scheduler, in_flight):
    scheduler = make_scheduler()
    expected, ends = {}, {}
    for name, budget, limit, length in (
        ("a", 1, 40, 10), ("b", 2, 40, 30), ("c", 7, 40, 100), ("d", 16, 40, 5),
        ("e", None, 9, 20), ("f", 12, 5, 20),
    ):  # fmt: skip
        scheduler.add_request(request(name, budget=budget, max_tokens=limit, prompt_length=length))
        handed_off = budget is not None and budget < limit
        expected[name] = budget if handed_off else limit
        ends[name] = ("length", "pdd_handoff" if handed_off else None)
    assert run(scheduler, in_flight=in_flight) == (expected, ends)
    assert scheduler._pdd_admitted == {}


def test_the_classes_keep_vllms_schedulers_behind_the_policy():
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from pdd_vllm_plugin.admission import BudgetMixin
    from pdd_vllm_plugin.scheduler import PDDAsyncScheduler, PDDScheduler

    assert PDDAsyncScheduler.__mro__[1:4] == (BudgetMixin, AsyncScheduler, Scheduler)
    assert PDDScheduler.__mro__[1:3] == (BudgetMixin, Scheduler)
    assert not issubclass(PDDScheduler, AsyncScheduler)
