"""What a conversation is called before routers."""

from __future__ import annotations

import pytest

FIRST = {"role": "user", "content": "My secret is 4711."}
LATER = [{"role": "assistant", "content": "Noted."}, {"role": "user", "content": "Which one?"}]
CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"


@pytest.fixture
def named(client, service):
    """Returns the name under which a request goes to the cloud."""
    made = service()
    with client(made) as http:

        def ask(path, body, **headers):
            assert http.post(path, json=body, headers=headers).status_code == 200
            return made.runtime.sessions[-1].request.session

        ask.runtime = made.runtime
        yield ask


def chat(*messages, **more):
    return CHAT, {"messages": list(messages), **more}


def test_all_turns_of_a_chat_have_one_name_that_tells_nothing(named):
    first = named(*chat(FIRST))
    assert first == named(*chat(FIRST, *LATER))
    assert len(first) == 32
    assert "4711" not in first


def test_others_have_other_names(named):
    asked = [chat(FIRST), chat(FIRST, user="tenant 7"), chat({**FIRST, "content": "Hi"}), chat(LATER[1])]
    assert len({named(*one) for one in asked}) == 4


def test_turns_of_responses_and_prompts_that_grow_have_one_name_too(named):
    assert named(RESPONSES, {"input": [FIRST]}) == named(RESPONSES, {"input": [FIRST, *LATER]})
    prompt = "x" * 80
    assert named(COMPLETIONS, {"prompt": prompt}) == named(COMPLETIONS, {"prompt": prompt + "y"})
    assert named(COMPLETIONS, {"prompt": prompt}) != named(COMPLETIONS, {"prompt": "y" + prompt})


@pytest.mark.parametrize(
    ("path", "body"), [chat(FIRST), (RESPONSES, {"input": "Hi"}), (COMPLETIONS, {"prompt": "Hi"})]
)
def test_a_client_can_name_its_conversation(named, path, body):
    assert named(path, body, **{"x-session-id": "chat-7"}) == "chat-7"
    assert named(path, body, **{"x-session-id": ""}) == named(path, body)
    strange = named(path, body, **{"x-session-id": "a b"})
    assert strange not in ("a b", named(path, body))


def test_the_name_comes_in_the_header_of_the_settings(named):
    named.runtime.session_header = "X-Flow"
    assert named(*chat(FIRST), **{"x-flow": "chat-7", "x-session-id": "chat-8"}) == "chat-7"
    named.runtime.session_header = ""
    assert named(*chat(FIRST), **{"x-session-id": "chat-8"}) == named(*chat(FIRST))
