"""Requests that have not opted in, and what a server answers to them."""

import itertools
import json
import re

import openai
from cloud_support import KEY, PROMPTS

CHAT = {"messages": [{"role": "user", "content": "Name three rivers."}]}
COMMON = {"model": "smollm2", "temperature": 0, "max_tokens": 24}
REQUESTS = {
    "completions, streamed": ("/completions", {"prompt": PROMPTS[1], "stream": True, "return_token_ids": True}),
    "completions with usage": (
        "/completions",
        {"prompt": PROMPTS[2], "stream": True, "stream_options": {"include_usage": True}},
    ),
    "completions, whole": ("/completions", {"prompt": PROMPTS[3], "logprobs": 2, "return_token_ids": True}),
    "a stop string": ("/completions", {"prompt": "1, 2, 3, 4,", "stop": [" 9"], "stream": True}),
    "several prompts": ("/completions", {"prompt": PROMPTS[:3]}),
    "several answers": ("/completions", {"prompt": PROMPTS[4], "n": 2, "temperature": 0.9, "seed": 7}),
    "beam search": ("/completions", {"prompt": PROMPTS[5], "use_beam_search": True, "n": 2}),
    "chat, streamed": ("/chat/completions", {**CHAT, "stream": True, "return_token_ids": True}),
    "chat, whole": ("/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
    "somebody else's xargs": ("/completions", {"prompt": PROMPTS[6], "vllm_xargs": {"theirs": 1}, "stream": True}),
    "a prompt about us": ("/completions", {"prompt": "The field pdd_handoff means", "stream": True}),
    "a wrong request": ("/completions", {"prompt": PROMPTS[0], "temperature": "hot"}),
}

CHANGING = re.compile(
    r'"(id|created|request_id|system_fingerprint)": ?("[^"]*"|\d+|null)'
    r"|(cmpl|chatcmpl)-[0-9a-f]+(-\d+)?"
)
MADE = re.compile(r'"(?:text|content)":"((?:[^"\\]|\\.)*)"|"token_ids":\[([\d,]*)\]')
"""What one event of a stream adds to the answer."""


def ask(base_url):
    """Every request's body or stream of chunks, without what differs from one run to the next."""
    answers = {}
    with openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
        for name, (path, body) in REQUESTS.items():
            try:
                raw = client.post(path, cast_to=str, body={**COMMON, **body}, options={"headers": {"X-Raw": "1"}})
            except openai.APIStatusError as error:
                raw = f"{error.status_code} {json.dumps(error.body)}"
            answers[name] = united(CHANGING.sub("-", str(raw)))
    return answers


def united(raw):
    """A stream as it would be if all its tokens came in one event, and its events without what they add.

    A busy vLLM puts tokens into one event that came while nobody read.
    """
    if not raw.startswith("data: "):
        return raw
    made = MADE.findall(raw)
    events = [event for event, _ in itertools.groupby(MADE.sub("+", raw).split("\n\n"))]
    texts, ids = ("".join(text for text, _ in made), ",".join(ids for _, ids in made if ids))
    return "\n".join([*events, texts, ids])
