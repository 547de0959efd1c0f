"""Fields of a chat request that say how its prompt is rendered are obeyed, or refused by their names."""

import pytest
from pydantic import ValidationError
from template_families import GEMMA2, PARTS, QWEN3

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.server.chat.chat_request import ChatRequest
from pdd_llamacpp_adapter.server.output.deltas import ReasoningDelta
from pdd_llamacpp_adapter.server.prompts.prepare import prepare

pytestmark = pytest.mark.anyio

ASKED = [{"role": "user", "content": "Hi"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "It is"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "", "parameters": CITY}}


@pytest.fixture
def prompt_of(fake_runtime):
    async def prompt(source, messages, **fields):
        runtime = fake_runtime()

        class Vocabulary(type(runtime.vocab)):
            chat_template = ChatTemplate(source, bos="", eos="<|end|>")

            def render_chat(self, messages, *, add_special_tokens=None, **rendering):
                return [*b"<s>"] * bool(add_special_tokens) + super().render_chat(messages, **rendering)

        runtime.vocab = Vocabulary()
        prepared = await prepare(ChatRequest(messages=messages, max_tokens=5, **fields).chat_input(), runtime)
        prompt = bytes(prepared.request.prompt_token_ids)
        spans = [prompt[start:end].decode() for start, end in prepared.request.protect]
        return prompt.decode(), spans

    return prompt


async def test_the_answer_goes_on_with_the_final_message(prompt_of):
    prompt, _ = await prompt_of(QWEN3, BEGUN, continue_final_message=True)
    assert prompt.endswith("<|im_start|>assistant\nIt is")


@pytest.mark.parametrize(
    ("begun", "thoughts"),
    [("<think>It", "x"), ("<think>a</think>It", ""), ("It", "")],
    ids=["in", "behind", "none"],
)
async def test_an_answer_may_go_on_within_thoughts(fake_runtime, begun, thoughts):
    messages = [*ASKED, {"role": "assistant", "content": begun}]
    asked = ChatRequest(messages=messages, max_tokens=5, continue_final_message=True)
    parser = (await prepare(asked.chat_input(), fake_runtime())).parser
    deltas = [*parser.push("x</think>y"), *parser.finish()]
    assert "".join(one.text for one in deltas if isinstance(one, ReasoningDelta)) == thoughts


@pytest.mark.parametrize(
    "fields", [{"add_generation_prompt": False}, {"chat_template_kwargs": {"add_generation_prompt": False}}]
)
async def test_without_a_generation_prompt_no_turn_begins(prompt_of, fields):
    prompt, _ = await prompt_of(QWEN3, BEGUN, **fields)
    assert prompt.endswith("It is<|im_end|>\n")


async def test_an_effort_tells_whether_to_think(prompt_of):
    for effort, end in [("none", "<think>\n\n</think>\n\n"), ("high", "<think>\n")]:
        assert (await prompt_of(QWEN3, ASKED, reasoning_effort=effort))[0].endswith(end)
    own = {"chat_template_kwargs": {"enable_thinking": False}}
    assert (await prompt_of(QWEN3, ASKED, reasoning_effort="high", **own))[0].endswith("</think>\n\n")
    assert (await prompt_of("{{ reasoning_effort }}", ASKED, reasoning_effort="low"))[0] == "low"


async def test_no_effort_is_what_a_model_without_thoughts_makes(prompt_of):
    assert await prompt_of(PARTS, ASKED, reasoning_effort="none") == await prompt_of(PARTS, ASKED)


async def test_documents_and_special_tokens_are_added(prompt_of):
    document = {"title": "A", "text": "B"}
    assert (await prompt_of("{{ documents[0].text }}", ASKED, documents=[document]))[0] == "B"
    assert (await prompt_of(PARTS, ASKED, add_special_tokens=True))[0].startswith("<s><|im_start|>")


@pytest.mark.parametrize(
    ("source", "fields", "param"),
    [
        (PARTS, {"documents": [{"text": "B"}]}, "documents"),
        (PARTS, {"reasoning_effort": "low"}, "reasoning_effort"),
        ("{# <think> #}x", {"reasoning_effort": "none"}, "reasoning_effort"),
        (PARTS, {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        (PARTS, {"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs"),
        (PARTS, {"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        (PARTS, {"chat_template_kwargs": {"continue_final_message": True}}, "chat_template_kwargs"),
        (GEMMA2, {"messages": [{"role": "system", "content": "Be brief."}, *ASKED]}, "messages"),
    ],
)
async def test_what_cannot_be_obeyed_is_refused_by_name(prompt_of, source, fields, param):
    with pytest.raises(InvalidRequest) as refused:
        await prompt_of(source, **{"messages": ASKED, **fields})
    assert refused.value.param == param


@pytest.mark.parametrize(
    "fields", [{"reasoning_effort": "much"}, {"documents": ["x"]}, {"add_generation_prompt": "maybe"}]
)
def test_values_that_vllm_has_not_are_refused(fields):
    with pytest.raises(ValidationError):
        ChatRequest(messages=ASKED, **fields)


async def test_a_tools_result_is_followed_by_a_question_where_roles_alternate(prompt_of):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "22"},
        {"role": "user", "content": "And tomorrow?"},
    ]
    prompt, _ = await prompt_of(GEMMA2, messages, tools=[TOOL])
    turn = "<start_of_turn>user\n<tool_response>\n22\n</tool_response>\n\nAnd tomorrow?<end_of_turn>"
    assert turn in prompt
    assert prompt.count("<start_of_turn>user") == 2


APART = "{% for m in messages %}{% for p in m.content %}<{{ p.text | trim }}> {% endfor %}{% endfor %}"


@pytest.mark.parametrize("source", [PARTS, QWEN3, APART])
async def test_a_marked_part_stays_in_either_form(prompt_of, source):
    def part(text, **more):
        return {"type": "text", "text": text, **more}

    asked = [
        {"role": "system", "content": [part("Net 30"), part("is usual.")]},
        {
            "role": "user",
            "content": [
                part("Net 30? Net 30."),
                part(" Net 30", pdd_protect=True),
                part(
                    "",
                ),
            ],
        },
    ]
    prompt, spans = await prompt_of(source, asked)
    assert spans == ["Net 30"]
    from_start, _ = await prompt_of(source, [*asked[:1], {"role": "user", "content": asked[1]["content"][:1]}])
    assert prompt.count("Net 30") == from_start.count("Net 30") + 1
