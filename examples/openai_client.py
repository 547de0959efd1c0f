"""The stock openai package against a vLLM with the pdd plugin: cap a request, read its state, drop it."""

from __future__ import annotations

import argparse
import os
from typing import Any, cast
from uuid import uuid4

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY", "EMPTY"))
    parser.add_argument("--model", help="default: the first that the server names")
    parser.add_argument("--prompt", default="Why is the sky blue?")
    parser.add_argument("--budget", type=int, default=24, help="tokens the cloud may decode")
    parser.add_argument("--max-tokens", type=int, default=200)
    options = parser.parse_args()
    with OpenAI(base_url=options.base_url, api_key=options.api_key) as client:
        converse(client, options)


def converse(client: OpenAI, options: argparse.Namespace) -> None:
    handoff_id = uuid4().hex  # whoever knows it, and the key, can read the state
    stream = client.chat.completions.create(
        model=options.model or client.models.list().data[0].id,
        messages=[{"role": "user", "content": options.prompt}],
        max_tokens=options.max_tokens,
        temperature=0,
        stream=True,
        extra_body={
            "vllm_xargs": {"pdd_handoff": handoff_id, "pdd_decode_budget": options.budget},
            "return_token_ids": True,
        },
    )
    completion_id, received, shown = "", 0, False
    for chunk in stream:
        completion_id, choice = chunk.id, chunk.choices[0]
        received += len(getattr(choice, "token_ids", None) or ())
        print(choice.delta.content or "", end="", flush=True)
        if received >= 3 and not shown:
            shown = True
            state = read_state(client, handoff_id)
            print(f"\n[in mid-stream: {len(state['output_token_ids'])} tokens, {state['status']}]")
        if choice.finish_reason is not None:
            print(f"\n[ended: {choice.finish_reason}, {getattr(choice, 'stop_reason', None)}]")

    state = read_state(client, handoff_id)
    print(
        f"[state: {state['status']} after {len(state['output_token_ids'])} tokens, budget set by "
        f"{state['decode_budget']['set_by']}, prompt of {len(state['prompt_token_ids'])} tokens]"
    )
    stored = client.chat.completions.retrieve(completion_id)
    print(f"[retrieved: {stored.choices[0].message.content!r}]")
    print(f"[deleted: {client.chat.completions.delete(completion_id).deleted}]")


def read_state(client: OpenAI, handoff_id: str) -> dict[str, Any]:
    return cast("dict[str, Any]", client.get(f"/pdd/handoffs/{handoff_id}", cast_to=object))


if __name__ == "__main__":
    main()
