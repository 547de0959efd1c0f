import json

import pytest
from openai.types import Completion

from pdd_core.timeline import ShownToken, Source, TokenLogprob, TokenLogprobs
from pdd_llamacpp_adapter.server.answers.token_logprobs import TextOffsets, TokenNames, completion_logprobs

ASK = {"model": "tiny", "prompt": "Once"}


def post(client, **fields):
    return client.post("/v1/completions", json={**ASK, **fields})


def data_of(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_whole_answer_is_a_text_completion(client, service):
    made = service()
    response = post(client(made))
    answer = Completion.model_validate(response.json(), strict=True)
    assert answer.choices[0].text == "Hello you"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 4
    assert answer.pdd["tokens"]["device"] == 1
    assert response.headers["x-pdd"].startswith("cloud=2;device=1")
    assert made.runtime.sessions[0].request.max_tokens == 16


@pytest.mark.parametrize("prompt", ["Once", ["Once"], [79, 110, 99, 101], [[79, 110, 99, 101]]])
def test_a_prompt_has_four_shapes(client, service, prompt):
    made = service()
    assert post(client(made), prompt=prompt, echo=True).json()["choices"][0]["text"] == "OnceHello you"
    assert bytes(made.runtime.sessions[0].request.prompt_token_ids) == b"Once"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [257]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": "x" * 20_000}, "stop"),
    ],
)
def test_what_cannot_be_done_is_refused(client, service, fields, param):
    response = post(client(service()), **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_logprobs_have_the_old_form(client, service):
    script = ("A", "", "B")
    logprobs = post(client(service(script)), logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["A", "<|end|>", "B"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"A": -0.5, "B": -1.5}, {"<|end|>": -0.5, "": -1.5}, {"B": -0.5, "C": -1.5}],
        "text_offset": [0, 1, 1],
    }


def test_the_answers_own_token_is_among_the_top_ones_in_any_case(fake_runtime):
    vocab = fake_runtime().vocab
    chosen, top = TokenLogprob(ord("x"), -7.0), (TokenLogprob(ord("a"), -0.1), TokenLogprob(ord("b"), -2.0))
    same_text = TokenLogprob(0xFF, -9.0), (TokenLogprob(0xFE, -0.1),)
    shown = [
        ShownToken(at, made.token_id, "", Source.DEVICE, 0.0, 0.0, TokenLogprobs(made, others))
        for at, (made, others) in enumerate([(chosen, top), (chosen, ()), same_text])
    ]
    told = completion_logprobs(shown, TokenNames(vocab), TextOffsets(vocab))
    assert told["top_logprobs"] == [
        {"a": -0.1, "b": -2.0, "x": -7.0},
        {"x": -7.0},
        {"\N{REPLACEMENT CHARACTER}": -9.0},
    ]
    assert [tops[text] for tops, text in zip(told["top_logprobs"], told["tokens"], strict=True)] == (
        told["token_logprobs"]
    )


def offsets(client, **fields):
    """The offsets, whole and streamed alike."""
    whole = post(client, logprobs=0, **fields).json()["choices"][0]["logprobs"]["text_offset"]
    *chunks, _ = data_of(post(client, logprobs=0, stream=True, **fields))
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [offset for part in parts for offset in part["text_offset"]] == whole
    return whole


def test_offsets_are_where_tokens_begin_also_while_their_text_waits_for_a_stop_string(client, service):
    script = (("A", ""), ("B", ""), ("C", "ABC"), ("D", "D"), ("E", ""))
    assert offsets(client(service(script, session={"withheld": "E"}))) == [0, 1, 2, 3, 4]


def test_offsets_count_characters_that_several_tokens_share(client, service):
    snowman = "\N{SNOWMAN}".encode()
    script = ((snowman[0], ""), (snowman[1], ""), (snowman[2], "\N{SNOWMAN}"), "B", "", "C")
    assert offsets(client(service(script))) == [0, 0, 0, 1, 2, 2]


def test_streamed_logprobs_are_those_of_the_whole_answer(client, service):
    made = service(("A", "", "B", ""))
    whole = post(client(made), logprobs=1).json()["choices"][0]["logprobs"]
    *chunks, _ = data_of(post(client(made), logprobs=1, stream=True))
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    for name, values in whole.items():
        assert [value for part in parts for value in part[name]] == values


def test_a_stream_ends_with_finish_reason_usage_and_done(client, service):
    response = post(client(service()), stream=True, stream_options={"include_usage": True}, echo=True)
    *chunks, finish, usage, done = data_of(response)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Once", "Hel", "lo", " you"]
    assert (finish["choices"][0]["text"], finish["choices"][0]["finish_reason"]) == ("", "stop")
    assert finish["pdd"]["mode"] == "handoff"
    assert (usage["choices"], usage["usage"]["completion_tokens"], done) == ([], 3, "[DONE]")


def test_the_answer_can_be_held_to_a_format(client, service):
    made = service()
    for fields in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        post(client(made), **fields)
        assert made.runtime.sessions[-1].request.grammar.kind == "json_object"
    made.runtime.refuses_grammars = True
    refused = post(client(made), structured_outputs={"regex": "("})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "structured_outputs.regex")


def test_a_suffix_goes_behind_the_gap_of_a_model_that_can_fill_it(client, service):
    made = service()
    made.runtime.vocab.infill_ids = (1, 2, 3)
    assert post(client(made), prompt="ab", suffix="c", echo=True).json()["choices"][0]["text"] == "abHello you"
    assert made.runtime.sessions[0].request.prompt_token_ids == (1, 97, 98, 2, 99, 3)


def test_token_ids_are_returned_as_by_vllm(client, service):
    made = service(("A", "", "B"))
    choice = post(client(made), return_token_ids=True).json()["choices"][0]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([65, 256, 66], list(b"Once"))
    *chunks, _ = data_of(post(client(made), return_token_ids=True, stream=True))
    assert chunks[0]["choices"][0]["prompt_token_ids"] == list(b"Once")
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[], [65], [256, 66], []]
