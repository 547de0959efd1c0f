"""The plugin's figures on the real server's /metrics, as Prometheus would read them."""

import urllib.request

import pytest
from cloud_support import PROMPTS, complete, new_id, wait_until

IGNORE = {"extra_body": {"ignore_eos": True}}


@pytest.fixture
def scrape(cloud):
    def read():
        url = cloud.base_url.removesuffix("/v1") + "/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own server
            text = answer.read().decode()
        assert "vllm:num_requests_running" in text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("pdd_")]
        return {name: float(value) for name, value in lines}

    return read


@pytest.fixture
def grown(scrape):
    """What has grown since the test began."""
    before = scrape()

    def read():
        return {name: value - before.get(name, 0.0) for name, value in scrape().items() if "_created" not in name}

    return read


def test_a_handoff_is_counted(client, grown):
    earlier = complete(client, budget=4, max_tokens=30, prompt=PROMPTS[1], **IGNORE)
    complete(
        client, budget=3, max_tokens=20, prompt=PROMPTS[1], xargs={"pdd_extends": earlier.handoff_id}, **IGNORE
    )
    wait_until(lambda: grown()['pdd_requests_total{status="handed_off"}'] == 2)
    now = grown()
    assert now['pdd_budgets_total{set_by="client"}'] == 2
    assert now["pdd_decode_budget_tokens_sum"] == 7
    assert now["pdd_generated_tokens_total"] == 7
    assert now["pdd_max_tokens_not_generated_total"] == 26 + 17
    assert now["pdd_extensions_total"] == 1
    assert now["pdd_running_requests"] == 0


def test_a_cancel_is_counted_and_what_was_made_in_vain(client, grown):
    handoff_id = new_id()
    told = []

    def delete(streamed):
        if len(streamed.token_ids) >= 5 and not told:
            path = f"/pdd/handoffs/{handoff_id}?used=2"
            told.append((client.delete(path, cast_to=object), len(streamed.token_ids)))

    complete(client, budget=60, max_tokens=80, handoff_id=handoff_id, prompt=PROMPTS[1], on_chunk=delete, **IGNORE)
    [(answer, seen)] = told
    assert answer["confirmed"] is True
    wait_until(lambda: grown().get('pdd_requests_total{status="aborted"}') == 1)
    now = grown()
    assert now['pdd_cancels_total{confirmed="true"}'] == 1
    assert now["pdd_tokens_in_vain_total"] == now["pdd_generated_tokens_total"] - 2 >= seen - 2


def test_a_refined_prompt_is_counted(client, grown):
    prompt = [100 + i % 4000 for i in range(300)]
    complete(client, budget=2, max_tokens=20, prompt=prompt, xargs={"pdd_refine_ratio": 0.5}, **IGNORE)
    wait_until(lambda: grown().get('pdd_refinements_total{method="attention"}') == 1)


def test_a_plain_request_is_not_counted(client, grown):
    client.completions.create(model="smollm2", prompt=PROMPTS[0], max_tokens=3)
    assert not any(grown().values())
