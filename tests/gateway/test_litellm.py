"""What of a handoff LiteLLM lets pass, by each of the ways through it: docs/gateways.md."""

import os
from uuid import uuid4

import httpx2
import openai
import pytest
from cloud_support import KEY, wait_until
from echo_server import GATEWAY_KEY, SSE

pytestmark = pytest.mark.skipif(
    "LITELLM" not in os.environ, reason="LITELLM does not name the command of LiteLLM: tox run -e gateway"
)
MESSAGES = [{"role": "user", "content": "The capital of France is"}]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ASK = {"model": "default", "messages": MESSAGES, "max_tokens": 16, "temperature": 0}


def opted_in(handoff_id, budget, **more):
    fields = {"pdd_handoff": handoff_id, "pdd_decode_budget": budget}
    return {"vllm_xargs": fields, "return_token_ids": True, **more}


def state(cloud, handoff_id):
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx2.get(f"{cloud.base_url}/pdd/handoffs/{handoff_id}", headers=headers)


def answer(device, **more):
    """The last chunk's `pdd`."""
    with device.client() as client:
        chunks = list(client.chat.completions.create(**ASK, stream=True, **more))
    return chunks[-1].pdd


def test_a_device_hands_over_through_a_pass_through_endpoint(device):
    server = device("/pdd-cloud/v1").connected()
    made = answer(server)
    assert (made["tokens"]["cloud"], made["cloud_error"]) == (1, None)
    assert made["tokens"]["device"] == 15


def test_what_it_sends_beside_the_body_passes_and_the_clouds_cookies_come_back(litellm):
    sent = {"authorization": f"Bearer {GATEWAY_KEY}", "x-session-id": "conversation", "traceparent": TRACE}
    for method in ("GET", "POST", "DELETE"):
        json = {"prompt": [1, 2]} if method == "POST" else None
        url = f"{litellm}/echo/v1/pdd/handoffs/x?wait=1&after=2"
        response = httpx2.request(method, url, headers=sent, json=json, timeout=60)
        seen = response.json()
        assert seen["path"] == "/v1/pdd/handoffs/x?wait=1&after=2"
        assert {name: seen["headers"].get(name) for name in ("x-session-id", "traceparent")} == {
            "x-session-id": "conversation", "traceparent": TRACE,
        }  # fmt: skip
        assert seen["headers"]["authorization"] == f"Bearer {KEY}", "the gateway's key is not the cloud's"
        assert response.headers["set-cookie"] == "llm-d-session=one"


def test_a_stream_that_its_client_leaves_is_stopped_in_the_cloud(litellm, cloud):
    handoff_id = uuid4().hex
    with openai.OpenAI(base_url=f"{litellm}/pdd-cloud/v1", api_key=GATEWAY_KEY, max_retries=0) as client:
        stream = client.completions.create(
            model="my-model", prompt=[504, 3575, 282], max_tokens=4000, stream=True,
            extra_body=opted_in(handoff_id, 1024, ignore_eos=True),
        )  # fmt: skip
        next(iter(stream))
        stream.close()
    wait_until(lambda: state(cloud, handoff_id).json()["status"] != "running", seconds=60)
    left = state(cloud, handoff_id).json()
    assert left["status"] == "aborted"
    assert len(left["output_token_ids"]) < 1024


def test_a_pass_through_endpoint_changes_nothing_in_a_stream(litellm, cloud):
    def raw(url, key):
        body = {
            "model": "my-model", "prompt": [504, 3575, 282, 4649, 314], "max_tokens": 8, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            **opted_in(uuid4().hex, 4),
        }  # fmt: skip
        headers = {"authorization": f"Bearer {key}", "x-request-id": "the-same-id"}
        response = httpx2.post(f"{url}/completions", json=body, headers=headers, timeout=60)
        assert response.status_code == 200
        lines = response.text.splitlines()
        return [line.partition('"created":')[0] + line.partition('"model":')[2] for line in lines if line]

    assert raw(f"{litellm}/pdd-cloud/v1", GATEWAY_KEY) == raw(cloud.base_url, KEY)


@pytest.mark.parametrize("model", ["my-model", "as-openai"])
def test_a_chat_through_litellms_own_route_keeps_the_budget_and_the_ids(through, cloud, model):
    handoff_id = uuid4().hex
    chunks = list(through.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=16, temperature=0, stream=True,
        extra_body=opted_in(handoff_id, 4),
    ))  # fmt: skip
    choices = [choice for chunk in chunks for choice in chunk.choices]
    ids = [token for choice in choices for token in getattr(choice, "token_ids", None) or ()]
    assert ids == state(cloud, handoff_id).json()["output_token_ids"]
    assert len(ids) == 4
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
    assert "pdd_handoff" in [getattr(choice, "stop_reason", None) for choice in choices]
    assert chunks[0].id == state(cloud, handoff_id).json()["request_id"]


def test_litellms_own_chat_route_drops_the_clouds_own_objects(through):
    chunks = list(through.chat.completions.create(model="echo", messages=MESSAGES, stream=True))
    assert [hasattr(chunk, "pdd") for chunk in chunks].count(True) == 0, SSE


def test_a_device_says_what_a_gateways_own_route_leaves_out(device):
    """LiteLLM's `/v1/completions` sends the fields on, and leaves the ids out of what comes back."""
    server = device("/v1", PDD_CLOUD_MODEL="as-openai").connected()
    made = answer(server)
    assert made["tokens"] == {"prompt": 35, "reused": 0, "cloud": 0, "device": 16, "cloud_in_vain": 0}
    assert "a gateway in between leaves them out" in made["cloud_error"]


def test_a_route_for_vllm_of_litellm_takes_no_prompt_of_ids(device):
    server = device("/v1", PDD_CLOUD_MODEL="my-model").connected()
    made = answer(server)
    assert made["tokens"]["device"] == 16
    assert "litellm" in made["cloud_error"]


def test_litellm_in_front_of_the_device_passes_the_answer_and_how_it_was_made(device, through):
    device("/pdd-cloud/v1").connected()
    ask = {**ASK, "model": "on-device"}
    whole = through.chat.completions.create(**ask)
    chunks = list(through.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    [streamed] = [chunk.pdd for chunk in chunks if getattr(chunk, "pdd", None)]
    assert {made["tokens"]["cloud"] + made["tokens"]["device"] for made in (streamed, whole.pdd)} == {16}
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 16
    completed = through.completions.create(model="on-device", prompt="The capital of France is", max_tokens=4)
    assert completed.usage.completion_tokens == 4
    response = through.responses.create(model="on-device", input="The capital of France is", max_output_tokens=16)
    assert response.output_text
