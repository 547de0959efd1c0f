"""``/v1/pdd/status``, and ``pdd`` in a request, over HTTP."""

from __future__ import annotations

import json

import pytest

CHAT, STATUS = "/v1/chat/completions", "/v1/pdd/status"
BODY = {"messages": [{"role": "user", "content": "SECRET"}]}


def test_it_tells_the_queue_the_answers_and_what_was_learnt_without_their_text(client, service):
    http = client(service(max_queue=3, session={"cloud_error": "CloudRefused: you sent SECRET"}))
    http.post(CHAT, json=BODY)
    response = http.get(STATUS)
    assert response.headers["cache-control"] == "no-store"
    told = response.json()
    assert told["queue"] == {"running": 0, "waiting": 0, "max_running": 1, "max_queue": 3}
    assert told["model"]["id"] == "tiny"
    assert told["cloud"]["state"] == "none"
    assert told["learnt"]["answer_tokens"] == 220
    (answer,) = told["answers"]
    assert answer["tokens"]["device"] == 1
    assert answer["plan"]["verdict"] == "handoff"
    assert answer["cloud_error"] == "CloudRefused"
    assert "SECRET" not in response.text
    assert "Hel" not in response.text


def test_it_needs_the_key_and_stays_without_the_pages(client, service):
    assert client(service(api_key="k")).get(STATUS).status_code == 401
    assert client(service(ui=False)).get(STATUS).status_code == 200


def test_refusals_are_told_by_their_code(client, service):
    http = client(service(["a", RuntimeError("SECRET")]))
    http.post(CHAT, json=BODY)
    (answer,) = http.get(STATUS).json()["answers"]
    assert answer["error"] == "internal_error"
    assert answer["finish_reason"] == "cancelled"


def chunks(response):
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("ahead", "received"),
    [(0, [[0.0], [0.1, 0.2]]), (2, [[0.0, 0.1], [0.2]]), (3, [[0.0, 0.1, 0.2], []])],
    ids=["none waits", "one waits", "all wait"],
)
def test_a_stream_says_of_each_token_who_made_it_if_it_is_asked_to(client, service, ahead, received):
    """And when it was received, once: as soon as there is a chunk, though it may be shown later."""
    http = client(service(["Hel", ("x", ""), "lo"], session={"from_cloud": 2, "ahead": ahead}))
    first, *told, last = chunks(http.post(CHAT, json={**BODY, "stream": True, "pdd": {"tokens": True}}))
    assert first["pdd"] == {"tokens": [], "received_s": []}
    assert [chunk["pdd"]["tokens"] for chunk in told] == [
        [{"source": "cloud", "received_s": 0.0, "shown_s": 0.0}],
        [
            {"source": "cloud", "received_s": 0.1, "shown_s": 0.1},
            {"source": "device", "received_s": 0.2, "shown_s": 0.2},
        ],
    ]
    assert [chunk["pdd"]["received_s"] for chunk in told] == received
    assert last["pdd"]["tokens"]["device"] == 1
    assert all("pdd" not in chunk for chunk in chunks(http.post(CHAT, json={**BODY, "stream": True}))[:-1])


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("rate", 0, "pdd.rate"),
        ("rate", True, "pdd.rate"),
        ("rate", "fast", "pdd.rate"),
        ("rate", ["auto"], "pdd.rate"),
        ("rate", 10**400, "pdd.rate"),
        ("plan", "mine", "pdd.plan"),
        ("refine", "a bit", "pdd.refine"),
        ("refine", 2, "pdd.refine"),
        ("refine", 10**400, "pdd.refine"),
        ("refine", {}, "pdd.refine"),
        ("tokens", "perhaps", "pdd.tokens"),
        ("other", 1, "pdd.other"),
    ],
)
def test_what_pdd_cannot_be_is_refused_by_name(client, service, field, value, param):
    response = client(service()).post(CHAT, json={**BODY, "pdd": {field: value}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert len(response.text) < 400


@pytest.mark.parametrize("pdd", [None, {}, {"rate": "auto", "plan": "off", "refine": 0.25}, {"rate": 12.5}])
def test_pdd_goes_with_the_request(client, service, pdd):
    served = service()
    assert client(served).post(CHAT, json={**BODY, "pdd": pdd}).status_code == 200
    own = served.runtime.sessions[0].request.own
    asked = pdd or {}
    assert (own.rate, own.plan, own.refine) == (asked.get("rate"), asked.get("plan"), asked.get("refine"))
    assert own.refines == ("refine" in asked)


@pytest.mark.parametrize(("path", "prompt"), [("/v1/completions", "prompt"), ("/v1/responses", "input")])
def test_other_routes_refuse_it(client, service, path, prompt):
    response = client(service()).post(path, json={prompt: "a", "pdd": {"plan": "device"}})
    assert response.json()["error"]["param"] == "pdd"
