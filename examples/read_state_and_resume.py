"""A transport of your own: let the cloud begin, fetch what it did by id, and go on from the ids on this machine.

The state has prompt ids, output ids, and the sampling parameters under the names that `AnswerRequest` uses.
Penalties and min_tokens cannot go on this way, since the cloud's tokens now belong to the prompt; `AnswerSession`,
which receives the stream itself, carries them on.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import openai

from pdd_core import HandoffState, Status
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, CloudClient, DeviceEngine

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "stop_token_ids")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", required=True, help="a GGUF of the model that the cloud serves")
    parser.add_argument("--cloud", default="http://127.0.0.1:8000/v1", help="base URL")
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY", "EMPTY"))
    parser.add_argument("--prompt", default="Why is the sky blue?")
    parser.add_argument("--budget", type=int, default=12, help="tokens the cloud may decode")
    parser.add_argument("--max-tokens", type=int, default=48)
    options = parser.parse_args()
    with DeviceEngine.open(options.gguf, n_ctx=4096) as engine:
        anyio.run(answer, engine, options)


async def answer(engine: DeviceEngine, options: argparse.Namespace) -> None:
    async with CloudClient(options.cloud, api_key=options.api_key) as cloud:
        info = await cloud.connect(engine.vocab)  # raises unless token ids mean the same on both sides
    state = await begun_in_the_cloud(options, info.model)
    print(f"[cloud: {state.status}]{text_of(engine, state.output_token_ids)}")
    if state.status is not Status.HANDED_OFF:
        return
    whole = [*state.output_token_ids, *await the_rest(engine, state)]
    print(f"[device: {len(whole) - len(state.output_token_ids)} tokens more]")
    print(text_of(engine, whole))


async def begun_in_the_cloud(options: argparse.Namespace, model: str) -> HandoffState:
    """Ask for an answer, wait until the cloud's part is over, and return its state; drop it in the cloud."""
    handoff_id = uuid4().hex
    async with openai.AsyncOpenAI(base_url=options.cloud, api_key=options.api_key) as client:
        await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": options.prompt}],
            max_tokens=options.max_tokens,
            temperature=0,
            extra_body={"vllm_xargs": {"pdd_handoff": handoff_id, "pdd_decode_budget": options.budget}},
        )
        state = HandoffState.model_validate(await client.get(f"/pdd/handoffs/{handoff_id}", cast_to=object))
        await client.delete(f"/pdd/handoffs/{handoff_id}", cast_to=object)
    return state


async def the_rest(engine: DeviceEngine, state: HandoffState) -> list[int]:
    """Return the tokens that follow those of `state`, made here."""
    given = state.sampling_params
    request = AnswerRequest(
        prompt_token_ids=[*state.prompt_token_ids, *state.output_token_ids],
        max_tokens=given["max_tokens"] - len(state.output_token_ids),
        **{name: given[name] for name in SAMPLING if name in given},
    )
    async with AnswerSession(request, engine=engine, rate=float("inf")) as session:
        return [token.token_id async for token in session]


def text_of(engine: DeviceEngine, ids: Sequence[int]) -> str:
    """One detokenizer for all: a character may begin in the cloud and end on the device."""
    detokenizer = engine.vocab.detokenizer()
    return "".join(detokenizer.push(token_id) for token_id in ids)


if __name__ == "__main__":
    main()
