"""Chat templates as models have them, in short, with the demo model's own vocabulary."""

import json

import pytest
from template_families import DEEPSEEK_R1, ELSEWHERE, GEMMA2, WITH_TOOLS

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.engine.grammar import GrammarEngine
from pdd_llamacpp_adapter.server.output.deltas import ToolCallDelta
from pdd_llamacpp_adapter.server.output.reasoning import ReasoningStart, reasoning_start
from pdd_llamacpp_adapter.server.prompts.answer_parser import output_parser
from pdd_llamacpp_adapter.server.tools.formats.hermes import HERMES
from pdd_llamacpp_adapter.server.tools.tool_use import plan_tools

TEMPLATES = {
    **{name: source for name, (source, _) in WITH_TOOLS.items()},
    "gemma": GEMMA2,
    "deepseek": DEEPSEEK_R1,
    "elsewhere": ELSEWHERE,
    "own": None,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def called(*cities):
    calls = [
        {
            "id": f"call_{city}",
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"city": city})},
        }
        for city in cities
    ]
    results = [{"role": "tool", "tool_call_id": f"call_{city}", "content": f"sun in {city}"} for city in cities]
    return [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *results,
    ]


@pytest.fixture
def template(loaded):
    own = loaded.vocab.chat_template

    def make(name):
        source = TEMPLATES[name]
        return own if source is None else ChatTemplate(source, bos=own.bos, eos=own.eos)

    return make


def prompted(vocab, template, plan, messages, **variables):
    text = template.render(plan.messages(messages), tools=plan.template_tools, **variables)
    ids = vocab.tokenize(text, special=True)
    return text, ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_with_tools_becomes_a_prompt(loaded, template, name):
    chat = template(name)
    plan = plan_tools([WEATHER], "auto", template=chat)
    text, ids = prompted(loaded.vocab, chat, plan, called("Rome", "Oslo"))
    for part in (
        "The weather now",
        "How is it?",
        "Rome",
        "Oslo",
        "sun in Rome",
        "sun in Oslo",
    ):
        assert part in text
    assert ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_way_of_calling_is_that_of_the_template(template, name):
    plan = plan_tools([WEATHER], "auto", template=template(name))
    assert (plan.native and plan.native.parser) == (WITH_TOOLS[name][1] if name in WITH_TOOLS else None)
    assert plan.format is (plan.native or HERMES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_in_the_models_own_tokens_is_read(loaded, template, name):
    """What a template writes for a call is what its model will write."""
    chat = template(name)
    plan = plan_tools([WEATHER], "auto", template=chat)
    user, assistant, _ = called("Zürich")
    before, _ = prompted(loaded.vocab, chat, plan, [user])
    after, _ = prompted(loaded.vocab, chat, plan, [user, assistant], add_generation_prompt=False)
    written = after[len(before.removesuffix("<think>\n")) :]
    parser = output_parser(reasoning=ReasoningStart.TAGGED, tools=plan)
    detokenizer = loaded.vocab.detokenizer()
    texts = [detokenizer.push(token) for token in loaded.vocab.tokenize(written, special=True)]
    deltas = [delta for text in texts for delta in parser.push(text)] + parser.finish()
    (call,) = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Zürich"})


@pytest.mark.parametrize(
    ("name", "variables", "start"),
    [
        ("qwen3", {}, ReasoningStart.TAGGED),
        ("qwen3", {"enable_thinking": False}, ReasoningStart.TAGGED),
        ("qwen3", {"enable_thinking": True}, ReasoningStart.INSIDE),
        ("deepseek", {}, ReasoningStart.INSIDE),
        ("own", {}, ReasoningStart.TAGGED),
    ],
)
def test_the_prompts_tokens_say_whether_thoughts_have_begun(loaded, template, name, variables, start):
    chat = template(name)
    text = chat.render([{"role": "user", "content": "Hi"}], **variables)
    ids = loaded.vocab.tokenize(text, special=True)
    assert reasoning_start(ids, loaded.vocab.piece) is start


def test_the_models_own_template_takes_variables_and_tools_by_description(loaded):
    vocab = loaded.vocab
    assert vocab.chat_template.supports_tools is False
    plan = plan_tools([WEATHER], "auto", template=vocab.chat_template)
    messages = plan.messages([{"role": "user", "content": "Hi"}])
    assert messages[0]["role"] == "system"
    ids = vocab.render_chat(messages, tools=plan.template_tools, enable_thinking=False)
    assert ids == vocab.render_chat(messages)
    assert len(ids) > len(vocab.render_chat([{"role": "user", "content": "Hi"}]))


TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/Node"}},
    "required": ["root"],
    "$defs": {
        "Node": {"type": "object", "properties": {"of": {"$ref": "#/$defs/Node"}, "n": {"type": "integer"}}}
    },
}
GROW = {"type": "function", "function": {"name": "grow", "parameters": TREE}}


@pytest.mark.parametrize(
    ("calls", "fits"),
    [
        ([("weather", {"city": "Rome"})], True),
        ([("grow", {"root": {"of": {"n": 1}}}), ("weather", {"city": "Rome"})], True),
        ([("grow", {"root": {"of": {"n": "one"}}})], False),
        ([("weather", {})], False),
        ([("other", {})], False),
        ([], False),
    ],
)
def test_a_forced_choice_lets_no_other_answer_through(loaded, template, calls, fits):
    plan = plan_tools([WEATHER, GROW], "required", template=template("own"))
    matcher = GrammarEngine(loaded.vocab, [loaded.vocab.eos_id]).matcher(plan.grammar)
    text = json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])
    ids = [*loaded.vocab.tokenize(text), loaded.vocab.eos_id]
    assert (matcher.advance(ids) is None) is fits
    if fits:
        parser = output_parser(reasoning=ReasoningStart.TAGGED, tools=plan)
        detokenizer = loaded.vocab.detokenizer()
        deltas = [delta for token in ids for delta in parser.push(detokenizer.push(token))] + parser.finish()
        assert [delta.name for delta in deltas if delta.name] == [name for name, _ in calls]


def test_a_templates_own_refusal_names_the_messages(template):
    with pytest.raises(InvalidRequest, match="System role not supported") as refused:
        template("gemma").render([{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}])
    assert refused.value.param == "messages"
