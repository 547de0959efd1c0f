"""The handoff state: exact at every chunk, guarded, and in OpenAI's shape."""

import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from cloud_support import PROMPTS, complete, new_id, state_of, wait_until

from pdd_core.handoff import CloudInfo, HandoffState, StructuredOutputs
from pdd_core.optin import parse_opt_in
from pdd_core.sampling_defaults import DefaultSamplingParams

ROUTES = [
    ("GET", "/pdd/info"),
    ("GET", "/pdd/vocabulary"),
    ("GET", "/pdd/handoffs/" + "a" * 32),
    ("GET", "/pdd/handoffs/" + "a" * 32 + "/kv"),
    ("DELETE", "/pdd/handoffs/" + "a" * 32),
    ("GET", "/chat/completions/chatcmpl-" + "a" * 32),
    ("DELETE", "/chat/completions/chatcmpl-" + "a" * 32),
]


def request(client, method, path):
    call = client.get if method == "GET" else client.delete
    return call(path, cast_to=object)


def test_the_state_is_exact_at_every_chunk_of_concurrent_streams(cloud):
    def one(prompt):
        snapshots = []
        with cloud.client() as client:

            def read(streamed):
                if len(streamed.token_ids) % 5 == 1:
                    snapshots.append((list(streamed.token_ids), state_of(client, streamed.handoff_id)))

            final = complete(client, budget=16, prompt=prompt, max_tokens=40, on_chunk=read)
        return final, snapshots

    with ThreadPoolExecutor(6) as pool:
        for final, snapshots in pool.map(one, PROMPTS[:6]):
            assert snapshots
            for received, raw in snapshots:
                state = HandoffState.model_validate(raw)
                ids = state.output_token_ids
                assert ids[: len(received)] == received  # never behind the chunk that is in hand
                assert final.token_ids[: len(ids)] == ids  # never ahead of what is streamed, never a placeholder
                assert state.prompt_token_ids


def test_later_ids_only_with_after(client):
    streamed = complete(client, budget=6, prompt=PROMPTS[1])
    state = state_of(client, streamed.handoff_id, after=4)
    assert (state["after"], state["output_token_ids"]) == (4, streamed.token_ids[4:])


def test_a_reader_waits_for_the_handoff(cloud, client):
    handoff_id = new_id()
    first = []

    def wait(streamed):
        if not first:
            first.append(pool.submit(state_of, cloud.client(), handoff_id, wait=30))

    with ThreadPoolExecutor(1) as pool:
        complete(client, budget=12, prompt=PROMPTS[1], handoff_id=handoff_id, on_chunk=wait)
        assert first[0].result(timeout=30)["status"] == "handed_off"


def test_retrieve_and_delete_of_the_stock_openai_package(client):
    handoff_id = new_id()
    stream = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "Tell me a very long story."}],
        max_tokens=300, temperature=0, stream=True,
        extra_body={"vllm_xargs": {"pdd_handoff": handoff_id, "pdd_decode_budget": 200}},
    )  # fmt: skip
    text, partial, reason = "", None, None
    for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason
        if text and partial is None:
            partial = client.chat.completions.retrieve(chunk.id)
            deleted = client.chat.completions.delete(chunk.id)
    assert partial.choices[0].message.role == "assistant"
    assert partial.choices[0].finish_reason is None
    assert partial.choices[0].message.content == text[: len(partial.choices[0].message.content)] != ""
    assert partial.pdd["handoff_id"] == handoff_id
    assert (deleted.deleted, deleted.object, deleted.confirmed) == (True, "chat.completion.deleted", True)
    assert reason == "abort"
    assert client.chat.completions.delete(chunk.id).deleted  # a second one
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(chunk.id)


def test_a_finished_chat_can_be_retrieved_and_deleted(client):
    handoff_id = new_id()
    answer = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "Name a colour."}], max_tokens=20, temperature=0,
        extra_body={"vllm_xargs": {"pdd_handoff": handoff_id, "pdd_decode_budget": 4}},
    )  # fmt: skip
    stored = client.chat.completions.retrieve(answer.id)
    assert stored.choices[0].message.content == answer.choices[0].message.content
    assert stored.choices[0].stop_reason == "pdd_handoff"
    assert client.chat.completions.retrieve(handoff_id).id == answer.id
    assert client.chat.completions.delete(answer.id).deleted


def test_an_answer_that_is_not_streamed_can_be_read_while_it_is_made(cloud, client):
    handoff_id = new_id()
    body = {"vllm_xargs": {"pdd_handoff": handoff_id, "pdd_decode_budget": 1000}, "return_token_ids": True}

    def ask():
        with cloud.client() as own:
            return own.chat.completions.create(
                model="smollm2", messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=60,
                temperature=0, logprobs=True, extra_body={**body, "ignore_eos": True},
            )  # fmt: skip

    def read():
        try:
            partial = client.chat.completions.retrieve(handoff_id)
        except openai.NotFoundError:  # it has not come there yet
            return None
        assert partial.pdd["status"] == "running", "the answer was complete before anything of it could be read"
        return partial if partial.choices[0].message.content else None

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        partial = wait_until(read).choices[0]
        state = state_of(client, handoff_id)
        [choice] = asked.result(timeout=60).choices
    assert (partial.finish_reason, choice.finish_reason) == (None, "length")
    assert choice.message.content.startswith(partial.message.content)
    assert choice.token_ids[: len(partial.token_ids)] == partial.token_ids
    ids = state["output_token_ids"]
    assert choice.token_ids[: len(ids)] == ids
    assert len(state["output_logprobs"]) == len(ids)
    assert len(choice.token_ids) == len(choice.logprobs.content) == 60


CHAT = {"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 12}
WHOLE = {
    "completions": (
        "/completions",
        {"prompt": PROMPTS[3], "max_tokens": 12, "logprobs": 2, "prompt_logprobs": 1, "return_token_ids": True},
    ),
    "a stop string": ("/completions", {"prompt": "1, 2, 3, 4,", "max_tokens": 24, "stop": [" 9"], "echo": True}),
    "chat": ("/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}),
    "responses": ("/responses", {"input": "Name three rivers.", "max_output_tokens": 12}),
}
CHANGING = re.compile(r'"(id|created|created_at|completed_at|request_id)": ?("[^"]*"|[\d.]+|null)')


@pytest.mark.parametrize("name", WHOLE)
def test_an_answer_that_is_not_streamed_is_the_same_whether_it_can_be_read_or_not(client, name):
    path, body = WHOLE[name]
    shared = {"model": "smollm2", "temperature": 0, **body}
    own = {"vllm_xargs": {"pdd_handoff": new_id(), "pdd_decode_budget": 1000}}
    plain, read = (
        CHANGING.sub("-", client.post(path, cast_to=str, body={**shared, **more})) for more in ({}, own)
    )
    assert read == plain
    assert len(plain) > 200


def test_paths_and_methods_that_do_not_exist_are_refused_with_error_objects(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.get("/pdd/nothing", cast_to=object)
    with pytest.raises(openai.APIStatusError) as refused:
        client.post("/pdd/info", cast_to=object)
    assert (unknown.value.status_code, unknown.value.type) == (404, "NotFoundError")
    assert (refused.value.status_code, refused.value.type) == (405, "MethodNotAllowedError")
    assert refused.value.response.headers["allow"] == "GET"


def test_the_fields_of_a_state_start_the_same_request_again(client):
    streamed = complete(client, budget=4, prompt=PROMPTS[1], max_tokens=20)
    state = HandoffState.model_validate(state_of(client, streamed.handoff_id))
    prompt = state.prompt_token_ids + state.output_token_ids
    rest = complete(client, budget=1000, prompt=prompt, max_tokens=state.sampling_params["max_tokens"] - 4)
    whole = complete(client, budget=1000, prompt=PROMPTS[1], max_tokens=20)
    assert streamed.token_ids + rest.token_ids == whole.token_ids


def test_info_tells_what_is_on(client, prepared):
    info = CloudInfo.model_validate(client.get("/pdd/info", cast_to=object))
    assert info.structured_outputs == StructuredOutputs(backend="auto")
    assert info.model == prepared.name
    assert info.engine.startswith("vllm 0.")
    assert info.max_model_len == 8192
    assert (info.tokenizer.size, info.tokenizer.eos_ids[0]) == (49152, 2)
    assert "decode_budget" in info.features
    assert info.default_sampling_params == DefaultSamplingParams(), "the demo model has no way of its own"


def test_unknown_ids_are_404_with_an_error_object(client):
    for method, path in ROUTES[2:]:
        with pytest.raises(openai.NotFoundError) as caught:
            request(client, method, path.replace("a" * 32, new_id()))
        assert caught.value.type == "NotFoundError"
        assert caught.value.body["code"] == 404


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}], ids=["no key", "a wrong key"])
def test_no_route_answers_without_the_key(cloud, headers):
    for method, path in ROUTES:
        stranger = urllib.request.Request(f"{cloud.base_url}{path}", method=method, headers=headers)  # noqa: S310
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(stranger)  # noqa: S310 - our own server
        with caught.value:
            assert caught.value.code == 401


def test_nothing_of_a_prompt_is_in_the_log(cloud, client):
    secret = "xylophonic quasars at dawn"
    complete(client, budget=2, prompt=f"The {secret} are", max_tokens=4)
    assert secret not in cloud.log_path.read_text()
    assert "pdd " in cloud.log_path.read_text()


def test_the_log_says_in_one_line_what_is_active(cloud):
    line = next(line for line in cloud.log_path.read_text().splitlines() if "active on vllm" in line)
    assert "decode budgets" in line
    assert "/v1/pdd/handoffs" in line


def test_the_documented_fields_are_an_opt_in():
    assert parse_opt_in({"pdd_handoff": new_id(), "pdd_decode_budget": 24, "pdd_refine_ratio": 0.5}) is not None
