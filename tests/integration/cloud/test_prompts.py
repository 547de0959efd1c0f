"""A chat is the same prompt on the device as from vLLM, by templates in the shapes of well-known families."""

from types import SimpleNamespace

import openai
import pytest
from template_families import WITH_TOOLS, WITHOUT_TOOLS

from pdd_core.errors import InvalidRequest
from pdd_core.sampling_defaults import DefaultSamplingParams
from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.server.chat.chat_request import ChatRequest
from pdd_llamacpp_adapter.server.prompts.prepare import prepare

pytestmark = pytest.mark.anyio

TEMPLATES = {**WITHOUT_TOOLS, **{name: source for name, (source, _) in WITH_TOOLS.items()}}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": CITY}}
ZONE = {"type": "object", "properties": {"zone": {"enum": ["UTC", None]}}, "additionalProperties": False}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "It's <now>", "parameters": ZONE, "strict": True},
}


def text(*parts):
    return [{"type": "text", "text": part} for part in parts]


def said(role, content, **more):
    return {"role": role, "content": content, **more}


USER, ASSISTANT = said("user", " Why is the sky blue?\n"), said("assistant", "It scatters light. ")
CHATS = {
    "a string": [USER],
    "a system prompt": [said("system", " Be brief. "), USER],
    "turns": [said("system", "Be brief."), USER, ASSISTANT, said("user", "Shorter!")],
    "two parts": [said("user", text("A", "B"))],
    "parts of all roles": [
        said("system", text("Be", "brief.")),
        said("user", text(" A ", "B\n")),
        said("assistant", text("C", "D")),
        said("user", "E"),
    ],
    "empty parts": [said("user", text("", "A", "", "B", ""))],
    "an empty list": [said("user", [])],
    "an empty string": [said("user", "")],
    "a developer": [said("developer", "Be brief."), USER],
    "a developer's parts": [said("developer", text("Be", "brief.")), USER],
    "a developer later": [said("system", "One."), USER, ASSISTANT, said("developer", text("Two", "Three")), USER],
    "two system prompts": [said("system", "One."), said("system", "Two."), USER],
    "two questions": [USER, said("user", "And the sea?")],
    "thoughts": [USER, said("assistant", "Light.", reasoning="Physics."), said("user", "So?")],
    "a name": [said("user", "Hi", name="Ada")],
    "a tag": [USER, said("assistant", "<think>a</think>b"), said("user", "<|im_end|> [INST] <|im_start|>")],
}


def call(arguments, call_id="abcdefghi"):
    return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def called(arguments, result="22", content=None, ids=("abcdefghi",)):
    calls = [call(arguments, call_id) for call_id in ids]
    results = [said("tool", result, tool_call_id=call_id) for call_id in ids]
    return [said("user", "Rome?"), said("assistant", content, tool_calls=calls), *results]


WITH_CALLS = {
    "a call": called('{"city": "Zürich", "days": 3, "of": [true, null]}'),
    "an object": called({"city": "Rome"}),
    "nothing": called("", None),
    "no JSON": called("{broken", ""),
    "words before": called('{"city": "Rome"}', content="Let me see."),
    "words in parts": called('{"city": "Rome"}', text("22", "degrees"), content=text("Let me", "see.")),
    "what follows": [*called('{"city": "Rome"}'), said("assistant", "22 degrees."), said("user", "Thanks")],
    "two calls": called('{"city": "Rome"}', ids=("abcdefghi", "123456789")),
}
NEW_TURN, OPEN_END = {"add_generation_prompt": False}, {"continue_final_message": True}
OPEN = {
    "no new turn": (CHATS["turns"][:3], NEW_TURN),
    "after a question": ([USER], NEW_TURN),
    "an open end": ([USER, said("assistant", "It is")], OPEN_END),
    "a space at the end": ([USER, ASSISTANT], OPEN_END),
    "an open part": ([USER, said("assistant", text("It", "is "))], OPEN_END),
    "an open question": ([said("user", "Why is")], OPEN_END),
    "an open thought": ([USER, said("assistant", "<think>a</think>It is")], OPEN_END),
    "nothing to go on with": ([USER, said("assistant", [])], OPEN_END),
    "a variable": ([USER], {"chat_template_kwargs": {"enable_thinking": False, "unread": 1}}),
    "a beginning": ([USER], {"add_special_tokens": True}),
}
STRING_AMONG_PARTS = {"parts", "assigned"}
"""vLLM makes a string of several system messages also for these, which take parts: lost, or looking different."""
ONE_CALL_ONLY = {"llama31"}
"""The template refuses two calls in one message; the device gives it two messages."""


@pytest.fixture(params=TEMPLATES)
def family(request):
    return request.param


@pytest.fixture
def device(engine, family, monkeypatch):
    """The prompt that the device makes of a request, or "refused"."""
    vocab = engine.vocab
    own = vocab.chat_template
    # eos and bos as in transformers' tokenizer, which vLLM renders with
    monkeypatch.setitem(vars(vocab), "chat_template", ChatTemplate(TEMPLATES[family], bos=own.bos, eos=own.eos))
    runtime = SimpleNamespace(
        vocab=vocab,
        context_limit=lambda: 100_000,
        default_max_tokens=lambda prompt: 1,
        refines=False,
        check_grammar=lambda request: request,
        sampling_defaults=DefaultSamplingParams,
    )

    async def prompt(fields):
        try:
            prepared = await prepare(ChatRequest(**fields).chat_input(), runtime)
        except InvalidRequest:
            return "refused"
        return list(prepared.request.prompt_token_ids)

    return prompt


def from_vllm(client, family, fields):
    if fields.get("continue_final_message"):
        fields = {**fields, "add_generation_prompt": False}  # vLLM wants it said
    url = str(client.base_url).removesuffix("/v1/") + "/tokenize"
    body = {"model": "smollm2", "chat_template": TEMPLATES[family], **fields}
    try:
        return client.post(url, body=body, cast_to=object)["tokens"] or "refused"  # when it is to be answered
    except openai.BadRequestError as error:
        assert "trust-request-chat-template" not in str(error)  # noqa: PT017 - a refusal of another kind
        return "refused"


async def differing(device, client, family, cases):
    """The cases whose prompts differ, as (name, the device's text, vLLM's text)."""
    found = []
    for name, fields in cases.items():
        ours, theirs = await device(fields), from_vllm(client, family, fields)
        if ours != theirs:
            found.append((name, ours, theirs))
    return found


def spelt(vocab, found):
    return [
        (name, *(ids if ids == "refused" else "".join(map(vocab.spelt, ids)) for ids in both))
        for name, *both in found
    ]


async def test_a_chat_is_the_prompt_that_vllm_makes_of_it(engine, device, client, family):
    cases = {name: {"messages": messages} for name, messages in CHATS.items()}
    cases |= {name: {"messages": messages, **fields} for name, (messages, fields) in OPEN.items()}
    found = spelt(engine.vocab, await differing(device, client, family, cases))
    if family in STRING_AMONG_PARTS:
        [(name, ours, theirs)] = found
        assert name == "a developer later"
        assert "One.\n\nTwo\nThree" in ours
        assert ("Two" in theirs) is (family == "assigned")
        return
    assert found == []


@pytest.mark.parametrize("family", WITH_TOOLS, indirect=True)
async def test_calls_and_results_are_the_prompt_that_vllm_makes_of_them(engine, device, client, family):
    cases = {name: {"messages": messages} for name, messages in WITH_CALLS.items()}
    cases |= {f"{name}, tools": {**fields, "tools": [WEATHER]} for name, fields in cases.items()}
    cases["tools only"] = {"messages": [USER], "tools": [WEATHER, CLOCK]}
    found = spelt(engine.vocab, await differing(device, client, family, cases))
    if family in ONE_CALL_ONLY:
        assert [(name, theirs) for name, _, theirs in found] == [
            ("two calls", "refused"),
            ("two calls, tools", "refused"),
        ]
        return
    assert found == []
