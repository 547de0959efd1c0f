"""The sample traces of tests/data, made up by `python tests/support/trace_samples.py`."""

import csv
import json
import random
from datetime import datetime, timedelta
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data"
NAMES = {
    "azure": "azure.csv",
    "bailian": "bailian.jsonl",
    "dynamo": "dynamo.jsonl",
    "mooncake": "mooncake.jsonl",
    "burstgpt": "burstgpt.csv",
    "jsonl": "own.jsonl",
}
COUNT = 200
BURSTGPT = ("Timestamp", "Session ID", "Elapsed time", "Model", "Request tokens", "Response tokens")


def sample(name):
    """Return the path of the sample of one format."""
    return FOLDER / NAMES[name]


def rows(draw):
    """Arrival (s), prompt and output tokens, of requests in conversations that grow."""
    at = 0.0
    for _ in range(COUNT):
        at += draw.expovariate(5)
        yield at, int(draw.lognormvariate(6.5, 0.9)) + 1, int(draw.lognormvariate(4.5, 0.9)) + 1


def hashes(draw, prompt, size=512):
    """Blocks of a prompt: one of four openings, then its own."""
    blocks = 1 + (prompt - 1) // size
    opening = draw.randrange(4) * 100
    common = min(blocks, draw.randrange(1, 4))
    return [opening + i for i in range(common)] + [draw.randrange(10_000, 10**9) for _ in range(blocks - common)]


def main():
    draw = random.Random(1)
    FOLDER.mkdir(exist_ok=True)
    start = datetime(2025, 1, 1)
    with sample("azure").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
        for at, prompt, output in rows(draw):
            writer.writerow([(start + timedelta(seconds=at)).strftime("%Y-%m-%d %H:%M:%S.%f0"), prompt, output])
    with sample("burstgpt").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*BURSTGPT, "Total tokens", "Log Type"])
        for at, prompt, output in rows(draw):
            model, session = draw.choice(["ChatGPT", "GPT-4"]), draw.choice(["", "a", "b"])
            log = "Conversation log" if session else "API log"
            writer.writerow(
                [round(at), session, 1.5 if session else "", model, prompt, output, prompt + output, log]
            )
    lines = {
        "mooncake": lambda at, p, o: {"timestamp": round(1000 * at), "input_length": p, "output_length": o,
                                      "hash_ids": hashes(draw, p)},
        "jsonl": lambda at, p, o: {"arrival_s": round(at, 3), "prompt_tokens": p, "output_tokens": o,
                                   "prefix_hashes": hashes(draw, p), "group": draw.choice(["chat", "mail"])},
    }  # fmt: skip
    others = random.Random(2)  # the samples above stay as they are
    more = {
        "bailian": lambda at, p, o: {"chat_id": others.randrange(1000), "parent_chat_id": -1,
                                     "timestamp": round(at, 3), "input_length": p, "output_length": o,
                                     "type": others.choice(["text", "file"]), "turn": 1,
                                     "hash_ids": hashes(others, p, 16)},
        "dynamo": lambda at, p, o: {"session_id": f"s{others.randrange(50)}",
                                    "timestamp": round(1000 * at, 3), "input_length": p, "output_length": o,
                                    "hash_ids": hashes(others, p, 64)},
    }  # fmt: skip
    for name, line in lines.items():
        sample(name).write_text("".join(json.dumps(line(*row)) + "\n" for row in rows(draw)))
    for name, line in more.items():
        sample(name).write_text("".join(json.dumps(line(at, 1 + p // 8, o)) + "\n" for at, p, o in rows(others)))


if __name__ == "__main__":
    main()
