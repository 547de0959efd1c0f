"""Talking to the running cloud as a client would."""

import json
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import openai

KEY = "integration-test-key"
API_PROCESSES, PARALLEL_HANDOFFS = 4, 16
"""Of the server that has several API processes, and the states that it keeps."""

# Text from public-domain sources and everyday requests; what matters is that they differ.
PROMPTS = [
    "The capital of France is",
    "When in the Course of human events, it becomes necessary for one people to dissolve the political bands",
    "def fibonacci(n):\n    ",
    "Once upon a time there was a little girl who",
    "The three primary colours are",
    "Water boils at a temperature of",
    "Q: What is the largest planet of the solar system?\nA:",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8, 13,",
    "The quick brown fox",
    "In the beginning God created the heaven and the earth. And the earth was",
    "Four score and seven years ago our fathers brought forth on this continent,",
    "A recipe for pancakes:\n1.",
    "import numpy as np\n\n# compute the mean of an array\n",
    "The main difference between a virus and a bacterium is",
    "To be, or not to be, that is the question:",
    "Le petit chat est",
    "SELECT name, age FROM users WHERE",
    "The president of the United States lives in",
    "Roses are red, violets are blue,",
]


@dataclass
class Cloud:
    """A running server and how to talk to it."""

    base_url: str
    steps_path: Path
    log_path: Path

    def client(self, **options):
        return openai.OpenAI(base_url=self.base_url, api_key=KEY, **{"max_retries": 0, **options})

    def steps(self):
        """What the scheduler did, step by step."""
        return [json.loads(line) for line in self.steps_path.read_text().splitlines()]

    def made_for(self, request_id_part):
        """Tokens that the scheduler handed out for the request whose id contains this, step by step."""
        return [
            count
            for step in self.steps()
            for name, count in step["made"].items()
            if request_id_part in name and count
        ]


def new_id():
    return uuid.uuid4().hex


@dataclass
class Streamed:
    """One streamed completion, chunk by chunk."""

    handoff_id: str
    token_ids: list
    finish_reason: str | None
    stop_reason: object
    completion_id: str


def complete(
    client, *, budget=None, handoff_id=None, prompt=PROMPTS[0], max_tokens=32, on_chunk=None, xargs=None, **more
):
    """Stream one opted-in greedy completion."""
    handoff_id = handoff_id or new_id()
    fields = {"pdd_handoff": handoff_id, **({"pdd_decode_budget": budget} if budget else {}), **(xargs or {})}
    extra_body = {"vllm_xargs": fields, "return_token_ids": True, **more.pop("extra_body", {})}
    stream = client.completions.create(
        model="smollm2",
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        extra_body=extra_body,
        **more,
    )
    streamed = Streamed(handoff_id, [], None, None, "")
    for chunk in stream:
        for choice in chunk.choices:
            streamed.completion_id = chunk.id
            streamed.token_ids += choice.token_ids or []
            streamed.finish_reason = choice.finish_reason
            streamed.stop_reason = getattr(choice, "stop_reason", None)
            if on_chunk is not None:
                on_chunk(streamed)
    return streamed


def state_of(client, handoff_id, **query):
    return client.get(f"/pdd/handoffs/{handoff_id}", cast_to=object, options={"params": query})


def wait_until(condition, *, seconds=30.0):
    """Poll until `condition` holds; fail if it never does."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def still(cloud):
    """The cloud's scheduler makes nothing any more."""

    def rests():
        steps = len(cloud.steps())
        time.sleep(1.0)
        return len(cloud.steps()) == steps

    wait_until(rests, seconds=60)
