"""What attention capture costs, and how well it agrees with transformers, on this machine's vLLM.

    python benchmarks/capture.py cost MODEL --bursts 2x2048,1x4096 --pairs 5
    python benchmarks/capture.py agreement MODEL

`cost` sends the same number of prompts with and without `pdd_refine_ratio`, turn by turn, to one engine in this
process, and prints the ratio of the times. The scores are fetched too: that belongs to the cost. On a CPU that
others use too, `--core N` keeps the engine on one core with one thread, and the CPU time of this process is the
figure; noise is how far plain bursts stray, each from the one before. MODEL `demo` is the demo model. `agreement`
compares scores with transformers' eager attention on the same weights, rounded as the engine's are. MODEL is a
folder; `--load-format dummy` needs no weights in it. One JSON object per line; the last one is the result.
"""

import argparse
import json
import os
import random
import statistics
import time
import uuid
from itertools import pairwise

WORKER = "pdd_vllm_plugin.worker.PDDWorker"
SCHEDULER = "pdd_vllm_plugin.scheduler.PDDAsyncScheduler"


def say(**values):
    print(json.dumps(values), flush=True)


def engine(options):
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": "pdd", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
        os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": str(options.core), "OMP_NUM_THREADS": "1"}
    from pdd_vllm_plugin.compat import provide_vllm_metadata

    provide_vllm_metadata()
    from vllm import LLM

    begun = time.perf_counter()
    llm = LLM(
        options.model,
        dtype=options.dtype,
        load_format=options.load_format,
        skip_tokenizer_init=True,
        enforce_eager=options.eager,
        max_model_len=options.max_model_len,
        max_num_batched_tokens=options.chunk,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.5,  # the reference needs some as well
        scheduler_cls=SCHEDULER,
        worker_cls=WORKER,
        additional_config={"pdd": {"strict": True}},
    )
    config = llm.llm_engine.vllm_config
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    say(
        loaded_in_s=round(time.perf_counter() - begun, 1),
        runner=f"{type(runner).__module__}.{type(runner).__name__}",
        cuda_graphs=str(config.compilation_config.cudagraph_mode),
        async_scheduling=str(config.scheduler_config.async_scheduling),
    )
    return llm


def burst(llm, prompts, *, refine):
    """Return wall and CPU seconds for these prompts, the scores fetched, and the scores' messages."""
    from vllm import SamplingParams

    handoffs = [uuid.uuid4().hex for _ in prompts]
    extras = [{"pdd_handoff": handoff, "pdd_refine_ratio": 0.25} if refine else None for handoff in handoffs]
    params = [
        SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, detokenize=False, extra_args=extra)
        for extra in extras
    ]
    begun, worked = time.perf_counter(), time.process_time()
    llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    messages = llm.collective_rpc("pdd_take_scores", args=(handoffs,))[0] if refine else []
    return (time.perf_counter() - begun, time.process_time() - worked), messages


def cost(options):
    llm = engine(options)
    vocabulary = llm.llm_engine.vllm_config.model_config.hf_text_config.vocab_size
    numbers = random.Random(0)

    for word in options.bursts.split(","):
        requests, length = map(int, word.split("x"))

        def prompts(requests=requests, length=length):
            low, high = vocabulary // 8, vocabulary // 2
            return [[numbers.randrange(low, high) for _ in range(length)] for _ in range(requests)]

        pairs_of_bursts(llm, prompts, options.pairs)


def pairs_of_bursts(llm, prompts, pairs):
    for refine in (False, True):
        burst(llm, prompts(), refine=refine)  # warm
    times = {False: [], True: []}
    for pair in range(pairs):
        for refine in (False, True) if pair % 2 else (True, False):
            both, messages = burst(llm, prompts(), refine=refine)
            if refine and not all(message and "values" in message for message in messages):
                raise SystemExit("a prompt was not captured")
            times[refine].append(both)
    for index, clock in enumerate(("wall", "cpu")):
        plain, captured = ([both[index] for both in times[refine]] for refine in (False, True))
        say(clock=clock, length=len(prompts()[0]), requests=len(prompts()), **ratio(plain, captured))


def ratio(plain, captured):
    """Return the median of captured / plain over the pairs, its 95 % interval by resampling, and the noise."""
    pairs = [b / a for a, b in zip(plain, captured, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(pairs, k=len(pairs))) for _ in range(2000))
    return {
        "plain_s": [round(value, 4) for value in plain],
        "captured_s": [round(value, 4) for value in captured],
        "ratio_of_medians": round(statistics.median(captured) / statistics.median(plain), 4),
        "median_ratio": round(statistics.median(pairs), 4),
        "interval": [round(medians[50], 4), round(medians[-51], 4)],
        "noise": round(statistics.median(abs(b / a - 1) for a, b in pairwise(plain)), 4),
    }


def texts():
    """Real text of any length: the reference of the Python language, which comes with Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def agreement(options):
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = engine(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = tokenizer(texts())["input_ids"]
    # the engine's weights, computed with in float32
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, attn_implementation="eager")
    model = model.float().to(device).eval()

    def eager(prompt, layers, window):
        with torch.no_grad():
            attentions = model(torch.tensor([prompt], device=device), output_attentions=True).attentions
        return np.stack([attentions[n][0, :, -window:].float().mean(1).amax(0).cpu().numpy() for n in layers])

    def compared(name, prompts):
        for prompt, message in zip(prompts, burst(llm, prompts, refine=True)[1], strict=True):
            layers = message["layers"]
            scores = np.frombuffer(message["values"], dtype=np.float32).reshape(len(layers), -1)
            reference = eager(prompt, layers, message["window"])
            count = len(prompt) // 5
            tops = [set(np.argsort(-values.mean(0))[:count].tolist()) for values in (scores, reference)]
            overlap = len(tops[0] & tops[1]) / count
            overlaps.append(overlap)
            say(
                case=name,
                prompt=len(prompt),
                layers=layers,
                window=message["window"],
                difference=float(np.abs(scores - reference).max()),
                top_20_percent=round(overlap, 4),
            )

    overlaps: list[float] = []
    lengths = [n for n in (300, 700, 1000, 1500, 2000, 3000) if n < options.max_model_len - 8]
    cut = [ids[5000 * n : 5000 * n + length] for n, length in enumerate(lengths, 1)]
    for prompt in cut:
        compared("cold", [prompt])
    compared("exact repeat", [cut[1]])
    compared("shared prefix", [[*cut[2][:600], *cut[0]]])
    compared("batched", [prompt[17:] for prompt in cut])
    long = options.max_model_len - 16
    if long > options.chunk:
        compared("chunked", [ids[:long]])
    say(dtype=options.dtype, cases=len(overlaps), least_overlap=min(overlaps), mean=float(np.mean(overlaps)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "agreement"))
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--chunk", type=int, default=2048, help="most tokens of a step")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--bursts", default="2x2048", help="requests x prompt tokens, ...")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--core", type=int, help="run on this CPU alone, with one thread")
    options = parser.parse_args()
    if options.model == "demo":
        from pdd_cli.demo_model import prepare

        options.model = str(prepare().vllm_dir)
    {"cost": cost, "agreement": agreement}[options.what](options)


if __name__ == "__main__":
    main()
