"""Each format of tool calls: what is a call in it, what is none, and that its texts may come in any pieces."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from template_families import ELSEWHERE, WITH_TOOLS, WITHOUT_TOOLS

from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.server.output.deltas import ContentDelta
from pdd_llamacpp_adapter.server.tools.tool_calls import ToolCallParser
from pdd_llamacpp_adapter.server.tools.tool_formats import FORMATS, format_of
from pdd_llamacpp_adapter.server.tools.tool_use import plan_tools

BY_NAME = {form.name: form for form in FORMATS}
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "of": {"$ref": "#/$defs/of"},
        "exact": {"type": "boolean"},
    },
    "$defs": {"of": {"anyOf": [{"type": "array"}, {"type": "null"}]}},
}
TOOLS = {"weather": CITY, "weather_now": {"type": "object"}, "clock": {"type": "object"}}
CLOCK = ("clock", {})


def rome(**more):
    return "weather", {"city": "Rome", **more}


def read(form, pieces, **options):
    """The words, and the calls as (name, arguments)."""
    parser = ToolCallParser(form, TOOLS, **options)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish()
    words = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
    calls = [(one.name, json.loads(one.arguments)) for one in deltas if not isinstance(one, ContentDelta)]
    return words, calls


XML = "<tool_call>\n<function=weather>\n<parameter=city>\n{}\n</parameter>\n</function>\n</tool_call>"
GLM = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>{}</arg_value>\n</tool_call>"
KIMI = '<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Rome"}<|tool_call_end|>'
SECTION = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
V3 = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Rome"}\n```<｜tool▁call▁end｜>'
V31 = '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜>'
DEEPSEEK = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
FENCED = '```json\n{"name": "weather", "arguments": {"city": "Rome"}}\n```'
LIST = '[{"name": "weather", "arguments": {"city": "Rome"}}, {"name": "clock", "arguments": {}}]'

CALLS = [
    ("hermes", FENCED, "", [rome()]),
    ("hermes", f"I call it:\n\n{FENCED}\n", "I call it:\n\n", [rome()]),
    ("hermes", f"{FENCED}\n{FENCED}", "", [rome(), rome()]),
    ("qwen3_coder", XML.format("Rome"), "", [rome()]),
    ("qwen3_coder", f"Well: {XML.format('Rome')}", "Well: ", [rome()]),
    ("qwen3_coder", XML.format("a <b> & {c}\n\n d "), "", [("weather", {"city": "a <b> & {c}\n\n d "})]),
    ("qwen3_coder", XML.format("5"), "", [("weather", {"city": "5"})]),
    ("qwen3_coder", "So <function=clock>\n</function> done", "So  done", [CLOCK]),
    (
        "qwen3_coder",
        f"{XML.format('Rome')}\n<tool_call><function=clock></function></tool_call>",
        "",
        [rome(), CLOCK],
    ),
    (
        "qwen3_coder",
        "<function=weather><parameter=days>3</parameter><parameter=of>[1, null]</parameter>"
        "<parameter=exact>True</parameter><parameter=more>x</parameter></function>",
        "",
        [("weather", {"days": 3, "of": [1, None], "exact": True, "more": "x"})],
    ),
    (
        "qwen3_coder",
        "<function=weather><parameter=days>soon</parameter></function>",
        "",
        [("weather", {"days": "soon"})],
    ),
    ("glm45", GLM.format("Rome"), "", [rome()]),
    ("glm45", f"Well:\n{GLM.format('Rome')}", "Well:\n", [rome()]),
    ("glm45", GLM.format("null"), "", [("weather", {"city": "null"})]),
    ("glm45", "<tool_call>clock</tool_call><tool_call>weather_now</tool_call>", "", [CLOCK, ("weather_now", {})]),
    (
        "glm45",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Rome</arg_value>"
        "<arg_key>of</arg_key><arg_value>null</arg_value></tool_call>",
        "",
        [rome(of=None)],
    ),
    ("kimi_k2", SECTION.format(KIMI), "", [rome()]),
    ("kimi_k2", f"Well: {SECTION.format(KIMI + KIMI)}", "Well: ", [rome(), rome()]),
    ("kimi_k2", 'functions.weather:12{"city": "Rome"}functions.clock:13{}', "", [rome(), CLOCK]),
    ("deepseek_v3", DEEPSEEK.format(V3), "", [rome()]),
    ("deepseek_v3", "Well: " + DEEPSEEK.format(f"{V3}\n{V3}"), "Well: ", [rome(), rome()]),
    ("deepseek_v3", 'functionweather\n```json\n{"city": "Rome"}\n```', "", [rome()]),
    ("deepseek_v31", DEEPSEEK.format(V31), "", [rome()]),
    ("deepseek_v31", f"Well: {DEEPSEEK.format(V31 + V31)}", "Well: ", [rome(), rome()]),
    ("deepseek_v31", 'weather{"city": "Rome"}', "", [rome()]),
    ("mistral_args", '[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Rome"}', "", [rome()]),
    ("mistral_args", '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}[TOOL_CALLS]clock[ARGS]{}', "", [rome(), CLOCK]),
    ("mistral_args", 'weatherabcdefghi{"city": "Rome"}', "", [rome()]),
    ("mistral_args", 'weather{"city": "Rome"}clock{}', "", [rome(), CLOCK]),
    ("granite", f"<|tool_call|>{LIST}", "", [rome(), CLOCK]),
    ("granite", f"Well: <tool_call> {LIST}", "Well: ", [rome(), CLOCK]),
    ("granite", LIST, "", [rome(), CLOCK]),
    ("phi4_mini", f"functools{LIST}", "", [rome(), CLOCK]),
    ("phi4_mini", f"Well: functools{LIST}", "Well: ", [rome(), CLOCK]),
    ("pythonic", "[weather(city='Rome', of=[1, None]), clock()]", "", [rome(of=[1, None]), CLOCK]),
    ("pythonic", '[weather(city="] \\" )", days=-3)]', "", [("weather", {"city": '] " )', "days": -3})]),
    ("pythonic", '[weather(city="\\d", exact=true)]', "", [("weather", {"city": "\\d", "exact": True})]),
    ("llama4_pythonic", "<|python_start|>[clock()]<|python_end|>", "", [CLOCK]),
    ("llama4_pythonic", "Well: <|python_start|>[clock()]<|python_end|>", "Well: ", [CLOCK]),
    (
        "olmo3",
        '<function_calls>\nweather(city="Rome", of=null)\nclock()\n</function_calls>',
        "",
        [rome(of=None), CLOCK],
    ),
]
NO_CALLS = [
    ("hermes", '```json\n{"name": "weather", "arguments": {}, "more": 1}\n```'),
    ("hermes", '```json\n{"name": "weather", "parameters": {}}\n```'),
    ("hermes", '```json\n{"name": "weather"}\n```'),
    ("hermes", '```json\n{"name": "other", "arguments": {}}\n```'),
    ("hermes", '```json\n[{"name": "weather", "arguments": {}}]\n```'),
    ("hermes", '```json\n{"name": "weather", "arguments": {}}\n{"name": "clock", "arguments": {}}\n```'),
    ("hermes", '```json\n{"name": "weather", "arguments": {}}'),
    ("hermes", '```\n{"name": "weather", "arguments": {}}\n```'),
    ("hermes", '```python\nprint("x")\n```'),
    ("llama3_json", FENCED),
    ("qwen3_coder", "<tool_call>\n<function=other>\n</function>\n</tool_call>"),
    ("qwen3_coder", "<function=weather>words</function>"),
    ("qwen3_coder", "<function=weather><parameter=city>Rome"),
    ("qwen3_coder", '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'),
    ("glm45", "<tool_call>other\n</tool_call>"),
    ("glm45", "<tool_call>weather<arg_key>city</arg_key>Rome</tool_call>"),
    ("glm45", "<tool_call>weather<arg_key>city</arg_key>x<arg_value>Rome</arg_value></tool_call>"),
    ("glm45", "weather\n<arg_key>city</arg_key>"),
    ("kimi_k2", 'functions.other:0{"city": "Rome"}'),
    ("kimi_k2", "functions.weather:0 is the id"),
    ("kimi_k2", 'Well: functions.weather:0{"city": "Rome"}'),
    ("deepseek_v3", 'functionweather\n```json\n{"city": "Rome"}\n'),
    ("deepseek_v3", "functions are weather"),
    ("deepseek_v31", "weather in Rome"),
    ("deepseek_v31", "weather{city}"),
    ("deepseek_v31", 'other{"city": "Rome"}'),
    ("mistral_args", "weather is {fine}"),
    ("mistral_args", "weather_{}"),
    ("phi4_mini", "functools is a module; functools[0]"),
    ("phi4_mini", LIST),
    ("pythonic", "[weather(city)]"),
    ("pythonic", "[weather(city=__import__('os'))]"),
    ("pythonic", "[weather(**{})]"),
    ("pythonic", "[weather(city={1: 2})]"),
    ("pythonic", "[weather(days=1e999)]"),
    ("pythonic", "[weather(city=b'x')]"),
    ("pythonic", "[1, 2]"),
    ("pythonic", "[other()]"),
    ("pythonic", "[weather(), 1]"),
    ("pythonic", "See [weather()]"),
    ("pythonic", "[weather(" + "[" * 3000 + "]" * 3000 + ")]"),
    ("olmo3", "<function_calls>other()</function_calls>"),
    ("olmo3", "<function_calls>clock(); import os</function_calls>"),
    ("olmo3", "<function_calls>clock() and more</function_calls>"),
]


@pytest.mark.parametrize(("name", "text", "words", "calls"), CALLS)
def test_calls_are_read_whole_and_letter_by_letter(name, text, words, calls):
    assert read(BY_NAME[name], [text]) == (words, calls)
    assert read(BY_NAME[name], list(text)) == (words, calls)
    only_one = calls[:1]
    assert read(BY_NAME[name], list(text), parallel=False)[1] == only_one


@pytest.mark.parametrize(("name", "text"), NO_CALLS)
def test_what_is_no_call_stays_text(name, text):
    for pieces in ([text], list(text), re.findall("(?s).{1,3}", text)):
        assert read(BY_NAME[name], pieces) == (text, [])


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, text, *_ in CALLS])
def test_an_unfinished_call_is_text_or_as_much_as_it_says(name, text):
    form = BY_NAME[name]
    for size in range(len(text)):
        words, calls = read(form, [text[:size]])
        assert read(form, list(text[:size])) == (words, calls)
        if not calls:
            assert words == text[:size]


@given(st.data())
def test_a_split_anywhere_changes_nothing_even_after_a_letter_is_gone(data):
    """Texts near to calls: a piece is left out or another one put in between."""
    name, text, *_ = data.draw(st.sampled_from(CALLS))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 12)))
    put = data.draw(st.sampled_from(["", " ", "\n", "{", '"', "</", "weather", "<tool_call>", "```", "]", "\\"]))
    changed = text[:start] + put + text[end:]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(changed)), max_size=12)))
    pieces = [changed[a:b] for a, b in pairwise([0, *cuts, len(changed)])]
    form = BY_NAME[name]
    words, calls = read(form, [changed])
    assert read(form, pieces) == (words, calls)
    if not calls:
        assert words == changed


@pytest.mark.parametrize("name", [*WITH_TOOLS, *WITHOUT_TOOLS, "elsewhere"])
def test_a_template_tells_its_format(name):
    source, parser = WITH_TOOLS.get(name) or (WITHOUT_TOOLS.get(name, ELSEWHERE), None)
    form = format_of(ChatTemplate(source, bos="<s>", eos="</s>"))
    assert (form and form.parser) == parser


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_what_a_template_writes_is_read_as_what_was_called(name):
    template = ChatTemplate(WITH_TOOLS[name][0], bos="<s>", eos="</s>")
    form = format_of(template)
    arguments = {"city": "Zürich", "days": 3, "of": [1, None], "exact": False}
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps(arguments)},
    }
    tools = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": CITY}}]
    plan = plan_tools(tools, template=template)
    asked = [{"role": "user", "content": "Hi"}]
    messages = plan.messages([*asked, {"role": "assistant", "content": "", "tool_calls": [call]}])
    before = template.render(plan.messages(asked), tools=plan.template_tools)
    text = template.render(messages, tools=plan.template_tools, add_generation_prompt=False)[len(before) :]
    assert read(form, list(text.removesuffix("</s>")))[1] == [("weather", arguments)]


def test_a_long_argument_is_read_whole():
    long = "and so on " * 3000
    for name, text in [
        ("qwen3_coder", XML.format(long)),
        ("glm45", GLM.format(long)),
        ("pythonic", f'[weather(city="{long}")]'),
        ("olmo3", f'<function_calls>weather(city="{long}")</function_calls>'),
        ("kimi_k2", KIMI.replace("Rome", long)),
    ]:
        _, [(_, arguments)] = read(BY_NAME[name], re.findall("(?s).{1,4}", text))
        assert arguments == {"city": long}
