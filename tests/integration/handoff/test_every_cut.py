"""Every place where the device could take over: the tokens behind it are those that the cloud alone gives.

The cloud's answers are recorded once, side by side; each cut then feeds the device the recorded beginning, as a
handoff does, and lets it go on. Same weights (float32 against F16 of one file), greedy, flash attention off.
Kernels for one token and for a batch round differently, so two tokens that are almost equally likely can change
places; that counts only if their logits lie closer than `NEAR_TIE`.
"""

import anyio
import numpy as np
import openai
import pytest
from cloud_support import KEY, PROMPTS

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(1800)]

NEAR_TIE = 0.05
CUTS = range(1, 33)
BEYOND = 3
"""Tokens that the device makes behind each cut."""
MORE_PROMPTS = [
    "My favourite season is",
    "The function of the heart is to",
    "An apple a day",
    "It was the best of times, it was the worst of times,",
    "<html>\n<head>\n<title>",
    "Die Hauptstadt von Deutschland ist",
    "To make a cup of tea, first",
    "The square root of 144 is",
    "for i in range(10):\n    print(",
    "A haiku about the sea:\n",
    "Photosynthesis is the process by which",
    "Call me Ishmael. Some years ago",
    "The opposite of hot is",
    "In 1969, the first man",
    "List of fruits:\n- apple\n- banana\n-",
    "The Pythagorean theorem states that",
    "O Romeo, Romeo, wherefore art thou",
    "Kepler's first law says that",
    "git commit -m",
    "The recipe calls for two cups of",
    "Gravity is a force that",
    "Two plus two equals",
    "She opened the door and saw",
    "El perro corre por",
    "The speed of light is approximately",
    "int main() {\n    ",
    "Once the rain had stopped,",
    "The first rule of the club is",
    "Monday, Tuesday, Wednesday,",
    "An electron has a charge of",
]


SOME = PROMPTS[:8]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SOME, id="some prompts"),
        pytest.param([*PROMPTS, *MORE_PROMPTS], id="every prompt", marks=pytest.mark.exhaustive),
    ],
)
def recorded(cloud, request):
    """(prompt ids, the cloud's ids), for each prompt."""
    answers = []

    async def one(client, text):
        answer = await client.completions.create(
            model="smollm2",
            prompt=text,
            max_tokens=CUTS[-1] + BEYOND,
            temperature=0,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
        answers.append((answer.choices[0].prompt_token_ids, answer.choices[0].token_ids))

    async def every():
        async with (
            openai.AsyncOpenAI(base_url=cloud.base_url, api_key=KEY, timeout=300) as client,
            anyio.create_task_group() as tasks,
        ):
            for text in request.param:
                tasks.start_soon(one, client, text)

    anyio.run(every)
    assert len(answers) == len(request.param)
    return answers


async def test_the_device_goes_on_as_the_cloud_would_wherever_it_takes_over(recorded, engine, capsys):
    near_ties, count = [], 0
    for prompt, expected in recorded:
        for cut in CUTS:
            count += 1
            begun = [*prompt, *expected[:cut]]
            kept = await engine.slots[0].memory.start(prompt)
            logits = await engine.slots[0].extend(begun[kept:], want_logits=True)
            for position in range(cut, cut + BEYOND):
                token = int(np.argmax(logits))
                if token != expected[position]:
                    margin = float(logits[token] - logits[expected[position]])
                    near_ties.append((cut, position, round(margin, 4)))
                    assert margin < NEAR_TIE, f"cut {cut}, token {position}: {margin:.3f} nats"
                    break
                logits = await engine.slots[0].extend([token], want_logits=True)
    with capsys.disabled():
        print(f"\n{count} cuts, {len(near_ties)} near ties: {near_ties}")
    assert count == len(recorded) * len(CUTS) >= 256
