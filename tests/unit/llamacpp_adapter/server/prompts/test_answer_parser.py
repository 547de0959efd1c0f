import json

from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ReasoningDelta, ToolCallDelta
from pdd_llamacpp_adapter.server.output.reasoning import ReasoningStart
from pdd_llamacpp_adapter.server.prompts.answer_parser import output_parser
from pdd_llamacpp_adapter.server.tools.tool_use import plan_tools

TEMPLATE = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", bos="", eos="")
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


def plan(choice="auto"):
    return plan_tools([CLOCK], choice, template=TEMPLATE)


def read(pieces, reasoning=ReasoningStart.TAGGED, tools=None):
    parser = output_parser(reasoning=reasoning, tools=tools)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish()
    thoughts = "".join(d.text for d in deltas if isinstance(d, ReasoningDelta))
    words = "".join(d.text for d in deltas if isinstance(d, ContentDelta))
    calls = [d.name for d in deltas if isinstance(d, ToolCallDelta) and d.name]
    assert parser.made_tool_calls is bool(calls)
    return thoughts, words, calls


def test_thoughts_words_and_calls_come_apart():
    text = f"<think>\nI need the clock: {CALL}\n</think>\n\nOne moment.\n{CALL}"
    assert read([text], tools=plan()) == (f"I need the clock: {CALL}", "One moment.\n", ["clock"])


def test_without_tools_a_call_is_text():
    assert read([CALL]) == ("", CALL, [])
    assert read([CALL], tools=plan("none")) == ("", CALL, [])


def test_a_forced_call_has_no_thoughts():
    text = json.dumps([{"name": "clock", "arguments": {"zone": "<think>"}}])
    assert read([text], ReasoningStart.INSIDE, plan("required")) == ("", "", ["clock"])


def test_an_answer_that_a_grammar_constrains_has_no_thoughts():
    text = '<think>{"answer": 42}</think>'
    assert read([text], ReasoningStart.NEVER, plan()) == ("", text, [])


def test_an_answer_that_a_grammar_constrains_may_be_a_call():
    assert read(['{"name": "clock", "arguments": {}}'], ReasoningStart.NEVER, plan()) == ("", "", ["clock"])
    text = '{"name": "Rome", "arguments": {}}'
    assert read([text], ReasoningStart.NEVER, plan()) == ("", text, [])


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", CALL, "<tool_call>", "words", " ", "\n", "<"])
        | st.text(max_size=3)
    ),
    st.sampled_from(list(ReasoningStart)),
    st.sampled_from([None, "auto", "none", "required"]),
)
def test_a_split_anywhere_changes_nothing(pieces, reasoning, choice):
    tools = None if choice is None else plan(choice)
    text = "".join(pieces)
    assert read(pieces, reasoning, tools) == read([text], reasoning, tools) == read(list(text), reasoning, tools)
