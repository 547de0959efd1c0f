"""How often the guard fires on a quantised device whose prompt is whole, and whether it still notices a bad one.

The cloud's weights are the demo model's in F16; each device has them quantised by llama.cpp. Of the evaluation's
cases, what counts is those that the F16 model answers rightly. The guard's excess is computed as a device would:
the cloud's logprobs of its own greedy tokens, against the device's of the same tokens, behind the whole prompt and
behind a random 5 % of it.

    python benchmarks/quantised_guard.py [--cases 12] [--types Q8_0,Q4_K_M] [--json FILE]
"""

import argparse
import json
import random
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from refiner_tuning import TASKS, opened

from pdd_cli.demo_model import device_gguf
from pdd_core.refinement.guard import THRESHOLD, Guard
from pdd_lab.evaluate.case_prompts import build_prompt, opening_ids
from pdd_lab.evaluate.evaluation_settings import EvalSettings
from pdd_lab.evaluate.quantised_device import quantised_gguf
from pdd_lab.evaluate.tasks import MAKERS

TOKENS = 32
"""Of the cloud's, as many as the guard looks at."""


def cloud_side(reader, source, cases):
    """Yield the cases that count: prompt, opening, the cloud's tokens and their logprobs."""
    for number in range(cases):
        for task in TASKS:
            if (case := MAKERS[task](source, number)) is None:
                continue
            prompt, opening = build_prompt(case, reader.vocab), opening_ids(case, reader.vocab)
            reader.read(prompt.token_ids, window=1, layers=(0,))
            answer, cloud = reader.answer(TOKENS, opening=opening, after=1)
            text = b"".join(reader.vocab.piece(token) for token in answer).decode("utf-8", "replace")
            if text.strip().startswith(case.expected or ""):
                yield task, number, prompt, opening, answer, cloud


def excesses(reader, case):
    """Return the guard's excess behind the whole prompt, and behind a random 5 % of it."""
    task, number, prompt, opening, answer, cloud = case
    shares = []
    drawn = random.Random(f"{task} {number}")
    protected = prompt.protected_indices()
    few = sorted({*protected, *drawn.sample(range(len(prompt)), len(prompt) // 20)})
    for kept in (range(len(prompt)), few):
        rows = reader.forced([*(prompt.token_ids[index] for index in kept), *opening], answer)
        device = [float(rows[index, token]) for index, token in enumerate(answer)]
        shares.append(Guard().excess(cloud, device))
    return shares


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12, help="of each task, tried")
    parser.add_argument("--types", default="F16,Q8_0,Q4_K_M")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from pdd_lab.evaluate.eval_model import EvalModel

    n_ctx, results = EvalSettings().n_ctx, {}
    with TemporaryDirectory() as folder:
        reader, source, _ = opened(Path(folder))
        cases = list(cloud_side(reader, source, options.cases))
        reader.close()
        print(f"{len(cases)} cases that the F16 model answers rightly", flush=True)
        for kind in options.types.split(","):
            file = device_gguf() if kind == "F16" else quantised_gguf(device_gguf(), kind, Path(folder))
            reader = EvalModel(file, n_ctx=n_ctx, threads=1)
            found = [(case[0], *excesses(reader, case)) for case in cases]
            reader.close()
            results[kind] = figures(found)
            print(kind, json.dumps(results[kind]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def figures(found):
    result = {}
    for task in (*TASKS, "all"):
        whole, few = zip(*[one[1:] for one in found if task in (one[0], "all")], strict=True)
        result[task] = {
            "cases": len(whole),
            "whole": {
                "fires": sum(value > THRESHOLD for value in whole),
                "median": round(statistics.median(whole), 3),
                "greatest": round(max(whole), 3),
                "p95": round(sorted(whole)[int(0.95 * (len(whole) - 1))], 3),
            },
            "random_5_percent": {"fires": sum(value > THRESHOLD for value in few)},
        }
    return result


if __name__ == "__main__":
    main()
