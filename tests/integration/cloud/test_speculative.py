"""N-gram speculation makes several tokens a step; a budget still ends where it says, with the same tokens."""

import json
import subprocess
import sys

SCRIPT = """
import json, os, sys
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_PLUGINS="", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1",
                  VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR")
from pdd_vllm_plugin.compat import provide_vllm_metadata
provide_vllm_metadata()
from vllm import LLM, SamplingParams

llm = LLM(
    sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=8,
    scheduler_cls="pdd_vllm_plugin.scheduler.PDDAsyncScheduler",
    speculative_config={
        "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1
    },
)
prompt = "one two three one two three one two three one two three one two"
budgets = [1, 2, 3, 5, 7, 8, 9, 11, 30]
params = [
    SamplingParams(max_tokens=30, temperature=0, ignore_eos=True,
                   extra_args={"pdd_handoff": f"speculative-test-{b}", "pdd_decode_budget": b}) for b in budgets
]
steps = []
scheduler = llm.llm_engine.engine_core.engine_core.scheduler
inner = scheduler.update_from_output
def watch(*args):
    outputs = inner(*args)
    steps.extend(len(o.new_token_ids) for of in outputs.values() for o in of.outputs)
    return outputs
scheduler.update_from_output = watch
answers = [output.outputs[0] for output in llm.generate([prompt] * len(budgets), params, use_tqdm=False)]
print("RESULT" + json.dumps({
    "budgets": budgets, "ids": [list(a.token_ids) for a in answers],
    "ends": [[a.finish_reason, a.stop_reason] for a in answers], "most_tokens_in_a_step": max(steps),
}))
"""


def test_budgets_are_exact_under_speculation(prepared):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(prepared.vllm_dir)], capture_output=True, text=True, timeout=600
    )
    line = next((line for line in run.stdout.splitlines() if line.startswith("RESULT")), None)
    assert line is not None, run.stderr[-3000:]
    result = json.loads(line.removeprefix("RESULT"))
    assert result["most_tokens_in_a_step"] > 1, "nothing was speculated"
    whole = result["ids"][-1]
    for budget, ids, end in zip(result["budgets"], result["ids"], result["ends"], strict=True):
        assert ids == whole[:budget]
        assert end == ["length", "pdd_handoff" if budget < 30 else None]
