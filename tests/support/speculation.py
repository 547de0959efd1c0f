"""Answers with several decode budgets from a vLLM that speculates, as JSON: see test_speculative.py."""

import json
import os
import sys

from pdd_vllm_plugin.compat import provide_vllm_metadata

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_PLUGINS": "",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
PROMPT = "one two three one two three one two three one two three one two"
BUDGETS = [1, 2, 3, 5, 7, 8, 9, 11, 30]
LENGTH = 30


def main():
    os.environ.update(SETTINGS)
    provide_vllm_metadata()
    from vllm import LLM, SamplingParams

    ngram = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    llm = LLM(
        sys.argv[1],
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=8,
        scheduler_cls="pdd_vllm_plugin.scheduler.PDDAsyncScheduler",
        speculative_config=ngram,
    )
    params = [
        SamplingParams(
            max_tokens=LENGTH,
            temperature=0,
            ignore_eos=True,
            extra_args={"pdd_handoff": f"speculative-test-{budget}", "pdd_decode_budget": budget},
        )
        for budget in BUDGETS
    ]
    steps = []
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    inner = scheduler.update_from_output

    def watch(*args):
        outputs = inner(*args)
        steps.extend(len(o.new_token_ids) for of in outputs.values() for o in of.outputs)
        return outputs

    scheduler.update_from_output = watch
    answers = [out.outputs[0] for out in llm.generate([PROMPT] * len(BUDGETS), params, use_tqdm=False)]
    result = {
        "budgets": BUDGETS,
        "ids": [list(answer.token_ids) for answer in answers],
        "ends": [[answer.finish_reason, answer.stop_reason] for answer in answers],
        "most_tokens_in_a_step": max(steps),
    }
    print("RESULT" + json.dumps(result))


if __name__ == "__main__":
    main()
