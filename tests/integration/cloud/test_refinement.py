"""The refined prompt over HTTP: there from the first streamed token on, or a typed reason why not."""

from uuid import uuid4

import httpx
import pytest
from cloud_support import KEY

from pdd_core.handoff import CloudInfo, HandoffState, NoRefinement, Refinement
from pdd_core.refinement.check import check_kept

HEADERS = {"authorization": f"Bearer {KEY}"}
FACTS = [f"Room {n} of the museum shows things that were found in the year {1700 + 7 * n}." for n in range(40)]
QUESTION = "When were the things in room 23 found?"
CHAT = [
    {"role": "system", "content": "You are a guide."},
    {"role": "user", "content": " ".join(FACTS) + "\n\n" + QUESTION},
]


@pytest.fixture
def http(cloud):
    with httpx.Client(base_url=cloud.base_url, headers=HEADERS, timeout=120) as client:
        yield client


def asked(client, *, ratio=0.25, budget=2, more="", **fields):
    """Return the handoff id, the stream, and its first chunk that holds a token."""
    handoff = uuid4().hex
    xargs = {"pdd_handoff": handoff, "pdd_decode_budget": budget, **fields}
    if ratio is not None:
        xargs["pdd_refine_ratio"] = ratio
    chat = [CHAT[0], {"role": "user", "content": CHAT[1]["content"] + more}]
    stream = client.chat.completions.create(
        model="smollm2", messages=chat, max_tokens=8, temperature=0, stream=True,
        extra_body={"vllm_xargs": xargs, "return_token_ids": True},
    )  # fmt: skip
    for chunk in stream:
        if chunk.choices and getattr(chunk.choices[0], "token_ids", None):
            return handoff, stream
    raise AssertionError("no token")


def state_of(http, handoff):
    answer = http.get(f"/pdd/handoffs/{handoff}")
    assert answer.status_code == 200, answer.text
    return HandoffState.model_validate_json(answer.content)


def test_the_cloud_says_what_it_refines_with(http):
    info = CloudInfo.model_validate_json(http.get("/pdd/info").content)
    assert info.refinement == "attention"
    assert "refinement" in info.features


@pytest.mark.parametrize("budget", [1, 4])
def test_it_is_there_with_the_first_token(client, http, budget):
    handoff, stream = asked(client, budget=budget)
    state = state_of(http, handoff)
    stream.close()
    refinement = state.refinement
    assert isinstance(refinement, Refinement), refinement
    assert (refinement.method, refinement.ratio) == ("attention", 0.25)
    assert refinement.layers
    length = len(state.prompt_token_ids)
    check_kept(refinement.kept_indices, length, refinement.protected)
    assert refinement.kept_token_ids == [state.prompt_token_ids[index] for index in refinement.kept_indices]
    assert 0.2 * length < len(refinement.kept_indices) < 0.3 * length


@pytest.mark.parametrize("more", ["", " Answer in one short sentence, and add nothing that is not in the text."])
def test_the_window_is_the_question_however_long_it_is(client, http, engine, more):
    handoff, stream = asked(client, more=more)
    state = state_of(http, handoff)
    stream.close()
    window = state.prompt_token_ids[-state.refinement.window :]
    text = b"".join(engine.vocab.piece(token) for token in window).decode()
    assert text.lstrip().startswith(QUESTION + more)
    kept = b"".join(engine.vocab.piece(token) for token in state.refinement.kept_token_ids).decode()
    assert f"in the year {1700 + 7 * 23}" in kept


def test_what_the_question_is_about_is_kept_and_the_frame_stays(client, http, engine):
    handoff, stream = asked(client)
    state = state_of(http, handoff)
    stream.close()
    text = b"".join(engine.vocab.piece(token) for token in state.refinement.kept_token_ids).decode()
    assert QUESTION in text
    assert "You are a guide." in text
    assert str(1700 + 7 * 23) in text


def test_marked_spans_are_kept(client, http):
    handoff, stream = asked(client, pdd_protect=[100, 130, 200, 203])
    state = state_of(http, handoff)
    stream.close()
    assert {*range(100, 130), 200, 201, 202} <= set(state.refinement.kept_indices)


def test_without_the_wish_there_is_none(client, http):
    handoff, stream = asked(client, ratio=None)
    state = state_of(http, handoff)
    stream.close()
    assert isinstance(state.refinement, NoRefinement)
    assert state.refinement.reason == "not_requested"


@pytest.mark.parametrize("protect", [[3], [5, 2], [-1, 4], "5", [1.5, 2.0], [0, 0]])
def test_a_wrong_span_is_named(http, protect):
    xargs = {"pdd_handoff": uuid4().hex, "pdd_refine_ratio": 0.5, "pdd_protect": protect}
    body = {"model": "smollm2", "messages": CHAT, "max_tokens": 2, "vllm_xargs": xargs}
    answer = http.post("/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "vllm_xargs.pdd_protect"


def test_the_answer_is_the_same_with_and_without(client):
    texts = []
    for ratio in (None, 0.25):
        extra = {
            "vllm_xargs": {"pdd_handoff": uuid4().hex, **({} if ratio is None else {"pdd_refine_ratio": ratio})}
        }
        answer = client.chat.completions.create(
            model="smollm2", messages=CHAT, max_tokens=12, temperature=0, extra_body=extra
        )
        texts.append(answer.choices[0].message.content)
    assert texts[0] == texts[1]
