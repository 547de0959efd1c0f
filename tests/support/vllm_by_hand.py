"""vLLM's own scheduler, with ours on top, without an engine: whoever calls it plays the model."""

import os
from functools import cache

BLOCK = 16


def scheduler_by_hand(
    model,
    *,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    max_model_len=256,
    num_blocks=100,
    settings=None,
    cls="PDDAsyncScheduler",
    worker_cls="auto",
):
    """Return a scheduler of ours as on a GPU: async scheduling, chunked prefill, prefix caching."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from vllm.config import CacheConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from pdd_vllm_plugin import scheduler as schedulers

    config = VllmConfig(
        model_config=ModelConfig(model=str(model), dtype="float32", seed=0),
        cache_config=CacheConfig(block_size=BLOCK, gpu_memory_utilization=0.5, enable_prefix_caching=True),
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, max_model_len=max_model_len,
            enable_chunked_prefill=True, is_encoder_decoder=False, async_scheduling=True,
            scheduler_cls=f"pdd_vllm_plugin.scheduler.{cls}",
        ),
        parallel_config=ParallelConfig(worker_cls=worker_cls),
        additional_config={"pdd": settings or {}},
    )  # fmt: skip
    # the CPU platform has just switched it off
    config.scheduler_config.async_scheduling = cls == "PDDAsyncScheduler"
    config.cache_config.num_gpu_blocks = num_blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return getattr(schedulers, cls)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=False,
    )


def request_by_hand(name, prompt_token_ids, *, max_tokens, extra_args=None, arrival_time=None):
    """Return what vLLM's front end would send to the scheduler."""
    from vllm import SamplingParams
    from vllm.v1.request import Request

    return Request(
        request_id=name,
        prompt_token_ids=list(prompt_token_ids),
        sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, extra_args=extra_args),
        pooling_params=None,
        arrival_time=arrival_time,
        block_hasher=block_hasher(),
    )


@cache
def block_hasher():
    """Return what names the prefix cache's blocks. Up to 0.26, each start of it draws other names."""
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    init_none_hash(sha256)
    return get_request_block_hasher(BLOCK, sha256)


def model_output(scheduler, step, token=7):
    """Return what the workers would answer to a step: `token` for each request whose prompt is computed."""
    from vllm.v1.outputs import ModelRunnerOutput

    names = list(step.num_scheduled_tokens)
    sampled = []
    for name in names:
        held = scheduler.requests.get(name)
        done = held is None or held.num_computed_tokens >= held.num_prompt_tokens
        sampled.append([token] if done else [])
    return ModelRunnerOutput(
        req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)},
        sampled_token_ids=sampled, logprobs=None, prompt_logprobs_dict={}, pooler_output=[],
    )  # fmt: skip


def run(scheduler, *, in_flight, before_step=lambda made: None):
    """Step until all requests have ended, with up to `in_flight` steps scheduled before their tokens are known.

    The loop is the engine core's (vllm.v1.engine.core.EngineCore.step_with_batch_queue). `before_step` is called
    with the tokens made so far. Returns how many each request got, and its (finish_reason, stop_reason).
    """
    made, ends, steps, after_end = {}, {}, [], 0
    while scheduler.has_unfinished_requests() or steps:
        before_step(made)
        output = scheduler.schedule()
        if output.total_num_scheduled_tokens:
            steps.append(output)
        if steps and (len(steps) >= in_flight or not output.total_num_scheduled_tokens):
            step = steps.pop(0)
            for of_client in scheduler.update_from_output(step, model_output(scheduler, step)).values():
                for out in of_client.outputs:
                    after_end += len(out.new_token_ids) if out.request_id in ends else 0
                    made[out.request_id] = made.get(out.request_id, 0) + len(out.new_token_ids)
                    if out.finish_reason is not None:
                        ends[out.request_id] = (str(out.finish_reason), out.stop_reason)
    assert after_end == 0
    return made, ends
