"""Legacy completions as the stock openai package asks for them, from a device alone."""

import openai
import pytest
from device_server import settled

PROMPT = "The capital of France is"
GREEDY = {"model": "smollm2", "temperature": 0, "max_tokens": 8}


async def test_sync_and_async_streamed_and_not_say_the_same(device, local, anyio_backend):
    whole = settled(local.completions.create, **GREEDY, prompt=PROMPT)
    with local.completions.create(**GREEDY, prompt=PROMPT, stream=True) as stream:
        streamed = "".join(choice.text for chunk in stream for choice in chunk.choices)
    async with device.async_client() as client:
        async_whole = await client.completions.create(**GREEDY, prompt=PROMPT)
        async with await client.completions.create(**GREEDY, prompt=PROMPT, stream=True) as stream:
            async_streamed = "".join([choice.text async for chunk in stream for choice in chunk.choices])
    assert "Paris" in whole.choices[0].text
    assert {streamed, async_whole.choices[0].text, async_streamed} == {whole.choices[0].text}
    assert (whole.object, whole.choices[0].finish_reason) == ("text_completion", "length")


def test_token_ids_are_the_text_they_stand_for(local, engine):
    ids = engine.vocab.tokenize(PROMPT, special=True, add_bos=True)
    said = settled(local.completions.create, **GREEDY, prompt=PROMPT)
    for prompt in (ids, [ids]):
        answer = local.completions.create(**GREEDY, prompt=prompt)
        assert answer.choices[0].text == said.choices[0].text
        assert answer.usage.prompt_tokens == said.usage.prompt_tokens == len(ids)


def test_echo_puts_the_prompt_first(local):
    said = settled(local.completions.create, **GREEDY, prompt=PROMPT).choices[0].text
    assert local.completions.create(**GREEDY, prompt=PROMPT, echo=True).choices[0].text == PROMPT + said
    with local.completions.create(**GREEDY, prompt=PROMPT, echo=True, stream=True) as stream:
        assert "".join(choice.text for chunk in stream for choice in chunk.choices) == PROMPT + said


def test_an_answer_that_is_cut_inside_a_character_ends_before_it(local, engine):
    pieces = [engine.vocab.piece(token) for token in range(engine.vocab.size)]
    asked = {**GREEDY, "prompt": PROMPT, "max_tokens": 1, "logit_bias": {str(pieces.index(b"\xf0")): 100}}
    whole = local.completions.create(**asked)
    assert (whole.choices[0].text, whole.usage.completion_tokens) == ("", 1)
    with local.completions.create(**asked, stream=True) as stream:
        assert "".join(choice.text for chunk in stream for choice in chunk.choices) == ""


def test_without_a_limit_there_are_sixteen_tokens(local):
    answer = local.completions.create(
        model="smollm2", prompt=PROMPT, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 16


def test_logprobs_have_the_legacy_shape(local):
    choice = local.completions.create(**GREEDY, prompt=PROMPT, logprobs=3).choices[0]
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 8
    assert max(told.token_logprobs) <= 0
    for token, logprob, tops, offset in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset, strict=True
    ):
        assert list(tops.values()) == sorted(tops.values(), reverse=True)
        assert tops[token] == pytest.approx(logprob)
        assert choice.text[offset:].startswith(token)


def test_a_penalty_ends_a_loop(local):
    asked = {**GREEDY, "prompt": "no no no no no no no", "max_tokens": 24}
    plain = local.completions.create(**asked).choices[0].text
    penalised = local.completions.create(**asked, frequency_penalty=2.0, presence_penalty=1.0).choices[0].text
    assert len(set(penalised.split())) > len(set(plain.split()))


def test_usage_comes_last_where_it_is_wanted(local):
    asked = {**GREEDY, "prompt": PROMPT, "stream": True}
    with local.completions.create(**asked, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["two", "prompts"]}, "prompt"),
        ({"prompt": [1, 10**7]}, "prompt"),
        ({"echo": True, "logprobs": 1}, "echo"),
    ],
)
def test_a_field_that_cannot_be_obeyed_is_named(local, change, param):
    with pytest.raises(openai.BadRequestError) as caught:
        local.completions.create(**{**GREEDY, "prompt": PROMPT, **change})
    assert caught.value.param == param
