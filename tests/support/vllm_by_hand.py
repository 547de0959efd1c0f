"""vLLM's own scheduler, with ours on top, without an engine: whoever calls it plays the model."""

import os

BLOCK = 16


def scheduler_by_hand(
    model, *, max_num_seqs=8, max_num_batched_tokens=64, max_model_len=256, num_blocks=100, settings=None
):
    """Return a `PDDAsyncScheduler` as on a GPU: async scheduling, chunked prefill, prefix caching."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from pdd_vllm_plugin.scheduler import PDDAsyncScheduler

    config = VllmConfig(
        model_config=ModelConfig(model=str(model), dtype="float32", seed=0),
        cache_config=CacheConfig(block_size=BLOCK, gpu_memory_utilization=0.5, enable_prefix_caching=True),
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, max_model_len=max_model_len,
            enable_chunked_prefill=True, is_encoder_decoder=False, async_scheduling=True,
        ),
        additional_config={"pdd": settings or {}},
    )  # fmt: skip
    config.scheduler_config.async_scheduling = True  # the CPU platform has just switched it off
    config.cache_config.num_gpu_blocks = num_blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return PDDAsyncScheduler(
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
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    return Request(
        request_id=name,
        prompt_token_ids=list(prompt_token_ids),
        sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, extra_args=extra_args),
        pooling_params=None,
        arrival_time=arrival_time,
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )
