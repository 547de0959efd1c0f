"""Chat completions as the stock openai package asks for them, from a device alone."""

import json

import openai
import pytest
from device_server import settled

ASK = {"model": "smollm2", "messages": [{"role": "user", "content": "Name three colours."}]}
GREEDY = {**ASK, "temperature": 0, "max_tokens": 16}
ONE_WORD = {
    **GREEDY,
    "messages": [{"role": "user", "content": "Reply with the single word: yes"}],
    "max_tokens": 200,
}
LONG = {"ignore_eos": True}
A_TOKEN = 5345


def text_of(chunks):
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def test_sync_and_async_streamed_and_not_say_the_same(device, local, anyio_backend):
    whole = settled(local.chat.completions.create, **GREEDY)
    with local.chat.completions.create(**GREEDY, stream=True) as stream:
        streamed = text_of(stream)
    async with device.async_client() as client:
        async_whole = await client.chat.completions.create(**GREEDY)
        async with await client.chat.completions.create(**GREEDY, stream=True) as stream:
            async_streamed = text_of([chunk async for chunk in stream])
    said = whole.choices[0].message.content
    assert said.strip()
    assert {streamed, async_whole.choices[0].message.content, async_streamed} == {said}
    assert whole.object == "chat.completion"
    assert whole.model == "smollm2"
    assert whole.choices[0].message.role == "assistant"


def test_usage_is_the_answers_own_streamed_and_not(local):
    whole = local.chat.completions.create(**GREEDY)
    with local.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 16
    assert whole.usage.prompt_tokens > 10
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 16
    last = chunks[-1]
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (whole.usage.prompt_tokens, 16)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_the_stream_helper_of_the_package_sees_the_whole_answer(local):
    whole = settled(local.chat.completions.create, **ONE_WORD)
    with local.chat.completions.stream(**ONE_WORD) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"
    assert kinds.count("content.done") == 1


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_either_limit_ends_an_answer(local, limit):
    answer = local.chat.completions.create(**ASK, **{limit: 3}, temperature=0)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")


def test_a_stop_string_ends_the_answer_before_it(local):
    said = settled(local.chat.completions.create, **GREEDY).choices[0].message.content
    stop = said.split()[2]
    for sent in (stop, ["never in there", stop]):
        answer = local.chat.completions.create(**GREEDY, stop=sent)
        assert answer.choices[0].message.content == said[: said.index(stop)]
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].stop_reason == stop
        with local.chat.completions.create(**GREEDY, stop=sent, stream=True) as stream:
            assert text_of(stream) == said[: said.index(stop)]


def test_the_models_own_end_is_a_stop(local):
    answer = local.chat.completions.create(**ONE_WORD)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 200
    assert "<|im_end|>" not in answer.choices[0].message.content


def test_a_seed_gives_the_same_answer_again_and_others_give_others(local):
    def said(seed):
        answer = local.chat.completions.create(**ASK, temperature=0.8, seed=seed, max_tokens=12)
        return answer.choices[0].message.content

    said(11)
    first = said(11)
    assert [said(11), said(11)] == [first] * 2
    assert len({said(seed) for seed in (12, 13, 14)} | {first}) > 1


def test_a_bias_forces_a_token(local):
    plain = local.chat.completions.create(**GREEDY).choices[0].message.content
    forced = local.chat.completions.create(**{**GREEDY, "max_tokens": 3}, logit_bias={str(A_TOKEN): 100})
    said = forced.choices[0].message.content
    third = len(said) // 3
    assert said == said[:third] * 3
    assert said[:third] not in plain


def test_logprobs_are_probabilities_of_the_tokens_of_the_text(local):
    answer = local.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=5)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 16
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == answer.choices[0].message.content
    for entry in entries:
        assert entry.logprob <= 0
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 5
        assert tops == sorted(tops, reverse=True)
        assert max(tops) <= 0
        # greedy: the likeliest was chosen
        assert entry.token == entry.top_logprobs[0].token
        assert entry.logprob == pytest.approx(tops[0])


def test_streamed_logprobs_are_those_of_the_whole_answer(local):
    asked = {**GREEDY, "logprobs": True, "top_logprobs": 2}
    whole = settled(local.chat.completions.create, **asked).choices[0].logprobs.content
    with local.chat.completions.create(**asked, stream=True) as stream:
        parts = [choice.logprobs for chunk in stream for choice in chunk.choices if choice.logprobs]
    streamed = [entry for part in parts for entry in part.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]
    assert [e.logprob for e in streamed] == pytest.approx([e.logprob for e in whole], abs=1e-3)


def test_an_answer_can_be_read_again_and_deleted(local):
    made = local.chat.completions.create(**GREEDY)
    again = local.chat.completions.retrieve(made.id)
    assert again.choices[0].message.content == made.choices[0].message.content
    assert again.choices[0].finish_reason == "length"
    assert again.usage == made.usage
    with local.chat.completions.create(**GREEDY, stream=True) as stream:
        chunks = list(stream)
    assert local.chat.completions.retrieve(chunks[0].id).choices[0].message.content == text_of(chunks)
    assert local.chat.completions.delete(made.id).deleted is True
    for call in (local.chat.completions.retrieve, local.chat.completions.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)


def test_deleting_a_running_answer_ends_its_stream_with_an_error(device, local):
    with local.chat.completions.create(**{**GREEDY, "max_tokens": 900}, stream=True, extra_body=LONG) as stream:
        chunks = [next(stream) for _ in range(4)]
        assert local.chat.completions.delete(chunks[0].id).deleted is True
        with pytest.raises(openai.APIError, match="deleted"):
            chunks.extend(stream)
    assert text_of(chunks)
    device.wait_idle()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"stop": list("abcde")}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_a_field_that_cannot_be_obeyed_is_named(local, change, param):
    with pytest.raises(openai.BadRequestError) as caught:
        local.chat.completions.create(**{**GREEDY, **change})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_an_answer_that_fits_nowhere_is_refused_with_openais_code(local):
    messages = [{"role": "user", "content": "word " * 1500}]
    with pytest.raises(openai.BadRequestError) as caught:
        local.chat.completions.create(model="smollm2", messages=messages)
    assert caught.value.code == "context_length_exceeded"


def test_another_model_is_not_found(local):
    with pytest.raises(openai.NotFoundError) as caught:
        local.chat.completions.create(**{**GREEDY, "model": "gpt-5"})
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        local.models.retrieve("gpt-5")
    assert local.models.retrieve("smollm2").id == "smollm2"


def test_a_wrong_key_is_refused(device):
    with device.client(api_key="wrong") as stranger, pytest.raises(openai.AuthenticationError) as caught:
        stranger.chat.completions.create(**GREEDY)
    assert caught.value.code == "invalid_api_key"


def test_the_pdd_object_tells_who_made_the_answer(local):
    answer = local.chat.completions.create(**GREEDY)
    with local.chat.completions.create(**GREEDY, stream=True) as stream:
        told = [chunk.pdd for chunk in stream if getattr(chunk, "pdd", None)]
    for pdd in (answer.pdd, *told):
        assert pdd["mode"] == "device_only"
        assert (pdd["tokens"]["cloud"], pdd["tokens"]["device"]) == (0, 16)
        assert pdd["ttft_s"] > 0
    assert len(told) == 1
    assert ASK["messages"][0]["content"] not in json.dumps(told)


def test_a_stream_tells_when_each_token_was_received_once_and_in_order(local):
    asked = {**GREEDY, "extra_body": {"pdd": {"tokens": True, "rate": 20}}}
    with local.chat.completions.create(**asked, stream=True) as stream:
        *told, last = [chunk.pdd for chunk in stream]
    received = [at for pdd in told for at in pdd["received_s"]]
    assert received == [token["received_s"] for pdd in told for token in pdd["tokens"]] == sorted(received)
    assert len(received) == last["tokens"]["device"] == 16
