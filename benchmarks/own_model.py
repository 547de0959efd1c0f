"""Do handoffs of your own model file give what vLLM alone gives? Counts equal answers, says where one differs.

Makes both forms of the file, starts vLLM and llama.cpp on this machine, and compares token ids: 20 prompts,
greedy, handed over after each of four budgets. With a chat template it then asks the local server for tools, a
schema, two turns and four chats at once, beside the same from vLLM or from one chat alone.

    python benchmarks/own_model.py model.gguf [--length 32] [--json out.json]
"""

import argparse
import asyncio
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import openai

from pdd_cli.demo_model import prepare
from pdd_cli.launcher import CloudServer
from pdd_core.errors import ModelError
from pdd_core.patience import Patience
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, CloudClient, DeviceEngine, PDDevice

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from cloud_support import PROMPTS
from near_ties import NEAR_TIE

KEY = "bench-key"
BUDGETS = (1, 3, 8, 16)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


async def answer(engine: DeviceEngine, cloud: CloudClient | None, request: AnswerRequest) -> list[int]:
    engine.reset()
    waits = Patience(late_s=math.inf)  # however slow the device is, the cloud is not asked for more
    async with AnswerSession(request, engine=engine, cloud=cloud, rate=math.inf, patience=waits) as session:
        shown = [token.token_id async for token in session]
    assert session.outcome.cloud_error is None, session.outcome.cloud_error
    return shown


async def margin(engine: DeviceEngine, prefix: list[int], tokens: list[int]) -> float:
    """How much likelier the device finds one of two tokens behind `prefix`, in nats."""
    await engine.slots[0].memory.rewind(0)
    logits = await engine.slots[0].extend(prefix, want_logits=True)
    return abs(float(logits[tokens[0]] - logits[tokens[1]]))


async def handoffs(engine: DeviceEngine, url: str, length: int) -> dict:
    equal, differing, prompts_differ = 0, [], []
    async with CloudClient(url, api_key=KEY) as cloud:
        await cloud.connect(engine.vocab)
        client = openai.AsyncOpenAI(base_url=url, api_key=KEY)
        for text in PROMPTS:
            choice = (
                await client.completions.create(
                    model="own",
                    prompt=text,
                    max_tokens=length,
                    temperature=0,
                    extra_body={"return_token_ids": True},
                )
            ).choices[0]
            prompt, alone = choice.prompt_token_ids, choice.token_ids
            if prompt != list(engine.vocab.tokenize(text, special=True, add_bos=True)):
                prompts_differ.append(text)
            for budget in BUDGETS:
                request = AnswerRequest(prompt_token_ids=prompt, max_tokens=length, decode_budget=budget)
                ids = await answer(engine, cloud, request)
                if ids == alone:
                    equal += 1
                    continue
                pairs = enumerate(zip(ids, alone, strict=False))
                at = next((i for i, (ours, theirs) in pairs if ours != theirs), None)
                gap = at if at is None else await margin(engine, [*prompt, *alone[:at]], [ids[at], alone[at]])
                near_tie = gap is not None and gap < NEAR_TIE  # None: one of them only ends earlier
                differing.append({"prompt": text, "budget": budget, "at": at, "margin": gap, "near_tie": near_tie})
    return {
        "equal": equal,
        "of": len(PROMPTS) * len(BUDGETS),
        "differing": differing,
        "prompts_split_differently": prompts_differ,
    }


def chats(local: openai.OpenAI, cloud: openai.OpenAI) -> dict:
    """What a chat gives over both engines, beside vLLM alone or the same chat alone."""

    def ask(client: openai.OpenAI, text: str = "What is the weather in Paris?", **fields: object) -> object:
        messages = fields.pop("messages", [{"role": "user", "content": text}])
        model = "own" if client is cloud else "default"
        return (
            client.chat.completions.create(
                model=model, messages=messages, **{"temperature": 0, "max_tokens": 48, **fields}
            )
            .choices[0]
            .message
        )

    def call(message: object) -> object:
        calls = message.tool_calls or []
        return [(one.function.name, json.loads(one.function.arguments)) for one in calls] or message.content

    forced = {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
    schema = {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}}
    invent = "Invent a person, as JSON with name and age."
    first = ask(local, "Name one colour.").content
    turns = [
        {"role": "user", "content": "Name one colour."},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Another one."},
    ]
    texts = [f"Tell me about the number {n}." for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        alone = [ask(local, text).content for text in texts]
        together = list(pool.map(lambda text: ask(local, text).content, texts))
    pairs = {
        "forced": (call(ask(local, **forced)), call(ask(cloud, **forced))),
        "schema": (
            json.loads(ask(local, invent, **schema).content),
            json.loads(ask(cloud, invent, **schema).content),
        ),
        "two turns": (ask(local, messages=turns).content, ask(cloud, messages=turns).content),
        "four at once": (together, alone),
    }
    results = {name: {"equal": a == b, "over both engines": a, "alone": b} for name, (a, b) in pairs.items()}
    # without a parser of tool calls, the cloud alone gives the call as text: read these two by eye
    auto = {"over both engines": call(ask(local, tools=[WEATHER]))}
    auto["text alone"] = ask(cloud, tools=[WEATHER], tool_choice="none").content
    return {**results, "auto": auto}


def has_template(engine: DeviceEngine) -> bool:
    try:
        return bool(engine.vocab.chat_template)
    except ModelError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepared = prepare(options.gguf)
    with ExitStack() as resources:
        arguments = ["--max-model-len", "2048"]
        server = CloudServer(prepared.vllm_dir, served_name="own", api_key=KEY, extra_args=arguments)
        resources.enter_context(server)
        with DeviceEngine.open(prepared.gguf, n_ctx=2048, threads=2) as engine:
            result = {"handoffs": asyncio.run(handoffs(engine, server.base_url, options.length))}
            chat = has_template(engine)
        if chat:
            settings = {"cloud_url": server.base_url, "cloud_api_key": KEY, "decode_budget": 8, "plan": "handoff"}
            device = resources.enter_context(PDDevice(prepared.gguf, n_ctx=2048, **settings))
            result["chats"] = chats(device.client, openai.OpenAI(base_url=server.base_url, api_key=KEY))
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if options.json:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
