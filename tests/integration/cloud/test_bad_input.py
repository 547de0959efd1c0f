"""Wrong opt-ins: a 400 that names the field, before any work, on every route."""

from urllib.parse import urlsplit

import openai
import psutil
import pytest
from cloud_support import PROMPTS, complete, new_id

from pdd_core.handoff import TOKENIZER_DIGEST, CloudInfo
from pdd_vllm_plugin.config import PDDConfig

BUDGET, RATIO, HANDOFF = (f"vllm_xargs.pdd_{name}" for name in ("decode_budget", "refine_ratio", "handoff"))

WRONG = [
    *[({"pdd_decode_budget": value}, BUDGET) for value in (0, -1, "5", "text", 1e9, 10**9, True, 1.5)],
    *[({"pdd_refine_ratio": value}, RATIO) for value in (0, 2, -1, "half")],
    *[({"pdd_handoff": value}, HANDOFF) for value in ("", "short", "x" * 1000, 12345678901234567890)],
    ({"pdd_budget": 4}, "vllm_xargs.pdd_budget"),
]


def post(client, route, fields, *, stream):
    xargs = {"pdd_handoff": new_id(), **fields}
    match route:
        case "completions":
            return client.completions.create(
                model="smollm2", prompt="p", max_tokens=2, stream=stream, extra_body={"vllm_xargs": xargs}
            )
        case "chat":
            return client.chat.completions.create(
                model="smollm2", messages=[{"role": "user", "content": "p"}], max_tokens=2, stream=stream,
                extra_body={"vllm_xargs": xargs},
            )  # fmt: skip
        case "responses":
            return client.responses.create(
                model="smollm2", input="p", max_output_tokens=2, stream=stream, extra_body={"vllm_xargs": xargs}
            )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["completions", "chat", "responses"])
def test_each_wrong_field_is_named(cloud, client, route, stream):
    steps = len(cloud.steps())
    for fields, param in WRONG:
        with pytest.raises(openai.BadRequestError) as caught:
            post(client, route, fields, stream=stream)
        assert caught.value.param == param, fields
        assert caught.value.type == "BadRequestError"
    assert len(cloud.steps()) == steps  # the engine never heard of them


def test_more_than_one_answer_is_refused(client):
    for more, param in (({"n": 2}, "n"), ({"prompt": ["one", "two"]}, "prompt")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(
                **{"model": "smollm2", "prompt": "p", "max_tokens": 2, **more},
                extra_body={"vllm_xargs": {"pdd_handoff": new_id()}},
            )
        assert caught.value.param == param


def test_a_name_hidden_by_json_escapes_is_caught_all_the_same(client):
    body = b'{"model":"smollm2","prompt":"p","max_tokens":2,"vllm_xargs":{"\\u0070dd_handoff":"x"}}'
    with pytest.raises(openai.BadRequestError, match="pdd_handoff must have"):
        client.post(
            "/completions", cast_to=object, content=body, options={"headers": {"Content-Type": "application/json"}}
        )


@pytest.mark.parametrize("where", [b'"pdd_": ', b'"vllm_xargs": {"pdd_handoff": "x"}, "more": ', b'"prompt": '])
def test_a_body_of_too_many_levels_is_told_as_vllm_tells_it(cloud, client, where):
    steps = len(cloud.steps())
    body = b'{"model": "smollm2", %s%s}' % (where, b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(
            "/completions", cast_to=object, content=body, options={"headers": {"Content-Type": "application/json"}}
        )
    assert "error parsing the body" in caught.value.response.text  # FastAPI's own, as without the plugin
    assert len(cloud.steps()) == steps


def memory(cloud):
    """Bytes that the API server has in memory."""
    port = urlsplit(cloud.base_url).port
    listening = (one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN)
    return psutil.Process(next(one.pid for one in listening if one.laddr.port == port)).memory_info().rss


def opted_in(client, fields, **more):
    xargs = {"pdd_handoff": new_id(), **fields}
    body = {"model": "smollm2", "prompt": "p", "max_tokens": 1, "vllm_xargs": xargs, **more}
    return client.post("/completions", cast_to=object, body=body)


@pytest.mark.parametrize(
    ("fields", "more", "param"),
    [
        ({"pdd_protect": list(range(1_000_000))}, {}, "vllm_xargs.pdd_protect"),
        ({"pdd_protect": list(range(1_000_000)), "pdd_refine_ratio": 0.5}, {}, "vllm_xargs.pdd_protect"),
        ({}, {"stop": ["x" * 6_000_000]}, "stop"),
        ({}, {"bad_words": ["x" * 6_000_000]}, "bad_words"),
    ],
    ids=["spans", "spans of a refined prompt", "stop", "bad words"],
)
def test_no_request_fills_the_api_servers_memory(cloud, client, fields, more, param):
    def asked(times):
        for _ in range(times):
            with pytest.raises(openai.BadRequestError) as caught:
                opted_in(client, fields, **more)
            assert caught.value.param == param
        return memory(cloud)

    steps, before = len(cloud.steps()), asked(3)  # the first ones make room for a body of this size
    assert asked(12) < before + 32 * 2**20
    assert len(cloud.steps()) == steps


def test_what_states_keep_is_bounded_in_bytes_whatever_it_is(cloud, client):
    ids = list(range(1_000, 49_000))  # 1.7 MB in each state: vLLM keeps an id once, and none but the model's

    def asked(times):
        for _ in range(times):
            opted_in(client, {"pdd_decode_budget": 1}, stop_token_ids=ids)
        return memory(cloud)

    bound = 4 * PDDConfig().max_state_tokens
    before = asked(3)
    # four times the bound, as what earlier requests have left free takes some of it
    assert asked(4 * bound // (36 * len(ids))) < before + bound + 32 * 2**20


def test_what_only_the_recorder_sees_is_refused_by_name_as_well(cloud, client):
    steps = len(cloud.steps())
    with pytest.raises(openai.BadRequestError, match="must end within the prompt") as caught:
        opted_in(client, {"pdd_protect": [0, 1_000]})
    assert caught.value.param == "vllm_xargs.pdd_protect"
    with (
        cloud.client(default_headers={"X-Request-Id": "x" * 10_000}) as named,
        pytest.raises(openai.BadRequestError, match="X-Request-Id must have at most") as caught,
    ):
        opted_in(named, {})
    assert caught.value.param == "X-Request-Id"
    assert len(cloud.steps()) == steps


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["completions", "chat", "responses"])
def test_ids_of_another_vocabulary_are_refused_before_anything_is_decoded(cloud, client, route, stream):
    steps = len(cloud.steps())
    with pytest.raises(openai.BadRequestError, match="is not the digest of this server's tokenizer") as caught:
        post(client, route, {"pdd_tokenizer": "f" * 64}, stream=stream)
    assert (caught.value.code, caught.value.param) == ("tokenizer_mismatch", "vllm_xargs.pdd_tokenizer")
    assert len(cloud.steps()) == steps


@pytest.mark.parametrize("name", ["pdd_tokenizer", "\\u0070dd_tokenizer"], ids=["plain", "hidden"])
def test_a_plain_request_can_have_the_vocabulary_compared_too(cloud, client, name):
    def ask(digest):
        body = f'{{"model":"smollm2","prompt":"p","max_tokens":2,"vllm_xargs":{{"{name}":"{digest}"}}}}'
        headers = {"Content-Type": "application/json"}
        return client.post("/completions", cast_to=object, content=body.encode(), options={"headers": headers})

    own = client.get("/pdd/info", cast_to=object)["tokenizer"]["digest"]
    assert ask(own)["choices"][0]["finish_reason"] == "length"
    steps = len(cloud.steps())
    with pytest.raises(openai.BadRequestError, match="is not the digest") as caught:
        ask("f" * 64)
    assert caught.value.param == "vllm_xargs.pdd_tokenizer"
    assert len(cloud.steps()) == steps


def test_ids_of_the_same_vocabulary_are_answered(cloud, client):
    info = CloudInfo.model_validate(client.get("/pdd/info", cast_to=object))
    assert TOKENIZER_DIGEST in info.features
    own = {"pdd_tokenizer": info.tokenizer.digest}
    assert len(complete(client, budget=3, xargs=own).token_ids) == 3
    steps = len(cloud.steps())
    hidden = b'{"model":"smollm2","prompt":"p","max_tokens":2,"vllm_xargs":{"\\u0070dd_handoff":"%s",%s}}'
    body = hidden % (new_id().encode(), b'"\\u0070dd_tokenizer":"%s"' % (b"f" * 64))
    with pytest.raises(openai.BadRequestError, match="is not the digest") as caught:
        client.post(
            "/completions", cast_to=object, content=body, options={"headers": {"Content-Type": "application/json"}}
        )
    assert caught.value.param == "vllm_xargs.pdd_tokenizer"
    assert len(cloud.steps()) == steps


def test_without_opting_in_the_same_is_as_on_vllm(client):
    body = {"model": "smollm2", "prompt": "p", "max_tokens": 1, "stop": ["x" * 20_000]}
    assert client.post("/completions", cast_to=object, body=body)["choices"]


def test_a_count_that_no_answer_has_room_for_is_refused(client):
    for question in ({"pdd_read": new_id(), "pdd_wait": 10**400}, {"pdd_vocabulary": 2**31}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.post("/completions", cast_to=object, body={"model": "smollm2", "vllm_xargs": question})
        assert caught.value.param == f"vllm_xargs.{list(question)[-1]}"
    with pytest.raises(openai.BadRequestError):
        client.get("/pdd/vocabulary", cast_to=object, options={"params": {"start": 2**31}})


def test_bad_requests_disturb_nobody(cloud, client):
    # more than are asked for below: a chunk may bring more than one token
    expected = complete(client, budget=30, prompt=PROMPTS[1]).token_ids
    tried = []

    def disturb(_):
        with pytest.raises(openai.BadRequestError):
            post(client, "completions", {"pdd_decode_budget": 0}, stream=True)
        tried.append(1)

    with cloud.client() as other:
        streamed = complete(other, budget=30, prompt=PROMPTS[1], on_chunk=disturb)
    assert streamed.token_ids == expected
    assert len(tried) >= 12


def test_wrong_query_parameters_are_a_400(client):
    streamed = complete(client, budget=1)
    for query in ({"after": -1}, {"wait": "long"}, {"wait": 1e9}):
        with pytest.raises(openai.BadRequestError):
            client.get(f"/pdd/handoffs/{streamed.handoff_id}", cast_to=object, options={"params": query})
