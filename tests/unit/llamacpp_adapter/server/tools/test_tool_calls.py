import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ToolCallDelta
from pdd_llamacpp_adapter.server.output.text_machine import overlap
from pdd_llamacpp_adapter.server.tools import call_body
from pdd_llamacpp_adapter.server.tools.call_json import may_be_call, read_calls
from pdd_llamacpp_adapter.server.tools.forced_calls import ForcedCallParser
from pdd_llamacpp_adapter.server.tools.formats.hermes import HERMES
from pdd_llamacpp_adapter.server.tools.formats.llama3_json import LLAMA3_JSON
from pdd_llamacpp_adapter.server.tools.formats.mistral import MISTRAL
from pdd_llamacpp_adapter.server.tools.json_extent import JsonExtent, NotJson
from pdd_llamacpp_adapter.server.tools.tool_calls import ToolCallParser, new_call_id
from pdd_llamacpp_adapter.server.tools.tool_formats import FORMATS

NAMES = {"weather": {"type": "object", "properties": {"city": {"type": "string"}}}, "clock": {"type": "object"}}
ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'
HERMES_ROME = f"<tool_call>\n{ROME}\n</tool_call>"


def parser(form=HERMES, **options):
    return ToolCallParser(form, NAMES, **options)


def fed(parser, pieces):
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    return deltas + parser.finish()


def read(parser, pieces):
    """The content, and the calls as (name, arguments)."""
    content, calls = "", []
    for delta in fed(parser, pieces):
        if isinstance(delta, ContentDelta):
            assert delta.text
            content += delta.text
            continue
        assert isinstance(delta, ToolCallDelta)
        if delta.index == len(calls):
            assert delta.call_id
            calls.append([delta.name, ""])
        else:
            assert delta.index == len(calls) - 1
            assert (delta.call_id, delta.name) == (None, None)
        calls[-1][1] += delta.arguments
    assert parser.made_tool_calls is (bool(calls) and closed(calls[-1][1]))
    return content, [tuple(call) for call in calls]


def closed(arguments):
    try:
        return JsonExtent().feed(arguments) == len(arguments)
    except NotJson:
        return False


@st.composite
def split(draw, texts):
    """A text and the same in pieces."""
    text = draw(texts)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    edges = [0, *cuts, len(text)]
    return text, [text[a:b] for a, b in pairwise(edges)]


FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    ROME,
    '{"name": "clock", "parameters": {}}',
    '{"name": "other", "arguments": {}}',
    '{"name": "weather", "arguments": {"city": "a <tool_call> \\" } ]"}}',
    '{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}',
    '{"name": weather}',
    '{"answer": 42}',
    "{",
    "[",
    "]",
    '"',
    "\\",
    ", ",
    ";",
    "<",
    "<tool",
    "[TOOL",
    "\n",
    " ",
    "words, and more words",
    "ü🎉",
    "```json\n",
    "```",
    "functools[",
    "<function=weather>",
    "<parameter=city>\nRome\n</parameter>",
    "</function>",
    "weather",
    "clock\n",
    "<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>",
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "functions.weather:0",
    "<|tool_call_argument_begin|>",
    '{"city": "Rome"}',
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "function",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "[CALL_ID]abcdefghi",
    "[ARGS]",
    "<|tool_call|>",
    'weather(city="Rome", days=[1, {"a": None}])',
    "clock()",
    "<|python_start|>",
    "<function_calls>",
    "</function_calls>",
]
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=8).map("".join)
FORMS = st.sampled_from(FORMATS)


@given(FORMS, st.booleans(), split(TEXTS))
def test_a_split_anywhere_changes_nothing(form, parallel, case):
    text, pieces = case
    whole = read(parser(form, parallel=parallel), [text])
    assert read(parser(form, parallel=parallel), pieces) == whole
    assert read(parser(form, parallel=parallel), list(text)) == whole


@given(FORMS, split(TEXTS))
def test_text_without_a_call_comes_out_as_it_went_in(form, case):
    text, pieces = case
    content, calls = read(parser(form), pieces)
    if not calls:
        assert content == text
    else:
        # what is missing from the content is the calls, their markers and white space
        kept = re.sub(r"\s", "", content)
        left = iter(re.sub(r"\s", "", text))
        assert all(char in left for char in kept)


@given(
    st.text().filter(
        lambda text: not text.lstrip().startswith("{") and "<tool_call>" not in text and "```json" not in text
    )
)
def test_words_alone_pass_without_delay(text):
    reading = parser()
    for char in text:
        reading.push(char)
    held = reading.finish()
    assert sum(len(delta.text) for delta in held) <= (len("<tool_call") if text.strip() else len(text))


def test_words_pass_at_once():
    reading = parser()
    assert reading.push("Hello ") == [ContentDelta("Hello ")]
    assert reading.push("a < b") == [ContentDelta("a < b")]
    assert reading.push(" <tool") == [ContentDelta(" ")]
    assert reading.push("box>") == [ContentDelta("<toolbox>")]
    assert reading.finish() == []


def test_a_call_is_given_out_whole():
    reading = parser()
    assert reading.push("Let me see. <tool_call>\n" + ROME[:-1]) == [ContentDelta("Let me see. ")]
    (call,) = reading.push("}")
    assert (call.index, call.name, json.loads(call.arguments)) == (0, "weather", {"city": "Rome"})
    assert reading.push("\n</tool_call>") == []
    assert reading.finish() == []


@pytest.mark.parametrize(
    ("form", "text", "content", "names"),
    [
        (HERMES, HERMES_ROME, "", ["weather"]),
        (HERMES, f"\n\n{HERMES_ROME}\n{HERMES_ROME}\n", "", ["weather", "weather"]),
        (HERMES, f"See: {HERMES_ROME} done", "See:  done", ["weather"]),
        (HERMES, f"<tool_call>{ROME}", "", ["weather"]),
        (HERMES, '<tool_call>{"name": "clock"}</tool_call>', "", ["clock"]),
        (HERMES, '<tool_call>{"name": "clock", "arguments": null}</tool_call>', "", ["clock"]),
        (HERMES, f"{ROME}\n{ROME}", "", ["weather", "weather"]),
        (HERMES, f"It is {ROME}", f"It is {ROME}", []),
        (HERMES, '{"name": "Rome"}', '{"name": "Rome"}', []),
        (LLAMA3_JSON, ROME, "", ["weather"]),
        (LLAMA3_JSON, f"<|python_tag|>{ROME}", "", ["weather"]),
        (LLAMA3_JSON, f"{ROME}; {ROME}", "", ["weather", "weather"]),
        (LLAMA3_JSON, f"{ROME}; so", "; so", ["weather"]),
        (LLAMA3_JSON, '{"type": "function", "name": "clock", "parameters": {}}', "", ["clock"]),
        (LLAMA3_JSON, f"It is {ROME}", f"It is {ROME}", []),
        (MISTRAL, f"[TOOL_CALLS][{ROME}, {ROME}]", "", ["weather", "weather"]),
        (MISTRAL, f"[TOOL_CALLS] [{ROME}]", "", ["weather"]),
        (MISTRAL, f" [{ROME}]", "", ["weather"]),
        (MISTRAL, "[1] is a footnote", "[1] is a footnote", []),
    ],
)
def test_calls_of_each_format_are_read(form, text, content, names):
    said, calls = read(parser(form), [text])
    assert (said, [name for name, _ in calls]) == (content, names)


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "other", "arguments": {}}',
        '{"name": "weather", "arguments": [1]}',
        '{"name": "weather", "arguments": "Rome"}',
        '{"name": "weather", "arguments": {"n": 1e999}}',
        '{"name": "weather" "arguments": {}}',
        "{'name': 'weather', 'arguments': {}}",
        '{"name": "weather", "arguments": {"city": "Rome"}',
        '{"name": ["weather"]}',
        '{"arguments": {}}',
        "{}",
        "[]",
        "weather(Rome)",
        "",
        '{"name": "weather", "arguments": ' + '{"a": ' * 5000 + "1" + "}" * 5001,
    ],
    ids=range(14),
)
def test_what_looks_like_a_call_and_is_none_stays_content(body):
    text = f"Well: <tool_call>\n{body}\n</tool_call> and on"
    assert read(parser(), [text]) == (text, [])


def test_a_real_call_after_a_false_one_is_found():
    content, calls = read(parser(), [f"<tool_call>no, {HERMES_ROME}"])
    assert (content, len(calls)) == ("<tool_call>no, ", 1)


def test_a_marker_within_an_argument_is_part_of_it():
    arguments = {"city": "</tool_call><tool_call>{"}
    text = f'<tool_call>{{"name": "weather", "arguments": {json.dumps(arguments)}}}</tool_call>'
    content, ((_, read_arguments),) = read(parser(), list(text))
    assert (content, json.loads(read_arguments)) == ("", arguments)


def test_line_breaks_within_a_string_are_escaped():
    content, ((_, arguments),) = read(parser(), ['<tool_call>{"name": "weather", "arguments": {"city": "a\nb"}}'])
    assert (content, json.loads(arguments)) == ("", {"city": "a\nb"})


def test_half_a_surrogate_pair_can_be_sent():
    _, ((_, arguments),) = read(parser(), ['<tool_call>{"name": "weather", "arguments": {"city": "\\ud800"}}'])
    assert arguments.encode()


def test_an_answer_in_json_is_told_from_a_call_by_its_first_key():
    reading = parser(LLAMA3_JSON)
    assert reading.push('{"na') == []
    assert reading.push("tion") == [ContentDelta('{"nation')]
    assert reading.push('": "Italy"}') == [ContentDelta('": "Italy"}')]


CLOCK = '{"name": "clock", "arguments": {}}'


@pytest.mark.parametrize(
    ("form", "text", "content"),
    [
        (HERMES, f"{HERMES_ROME}\n<tool_call>{CLOCK}</tool_call>\n", ""),
        (HERMES, f"See: {HERMES_ROME} and <tool_call>{CLOCK}</tool_call> done", "See:  and  done"),
        (HERMES, f"{HERMES_ROME}\n<tool_call>{CLOCK[:-9]}", ""),
        (LLAMA3_JSON, f"{ROME}; {CLOCK}", ""),
        (MISTRAL, f"[TOOL_CALLS][{ROME}, {CLOCK}]", ""),
        (MISTRAL, f"[TOOL_CALLS][{ROME}][TOOL_CALLS][{CLOCK}]", ""),
    ],
)
def test_without_parallel_calls_only_the_first_one_is_given_out(form, text, content):
    assert read(parser(form, parallel=False), [text]) == (content, [("weather", '{"city": "Rome"}')])


def test_without_parallel_calls_what_is_no_call_stays_content_behind_one():
    said, calls = read(parser(parallel=False), [HERMES_ROME + "\n<tool_call>{}</tool_call>"])
    assert (said, len(calls)) == ("\n<tool_call>{}</tool_call>", 1)


def test_an_unfinished_call_is_content_where_there_may_be_several():
    said, calls = read(parser(), [f"{HERMES_ROME}\n<tool_call>{CLOCK[:-9]}"])
    assert (said, len(calls)) == (f"\n<tool_call>{CLOCK[:-9]}", 1)


def test_ids_differ_and_suit_the_template():
    assert re.fullmatch(r"call_[0-9a-f]{24}", new_call_id())
    assert re.fullmatch(r"[a-zA-Z0-9]{9}", new_call_id(MISTRAL))
    assert new_call_id() != new_call_id()
    _, ids = zip(*[(d.index, d.call_id) for d in fed(parser(), [HERMES_ROME * 2])], strict=True)
    assert len(set(ids)) == 2


@pytest.mark.parametrize(("text", "size"), [("a", 0), ("a<", 1), ("<tool_cal", 9), ("<tool_call>", 0), ("", 0)])
def test_overlap_is_the_longest_possible_beginning(text, size):
    assert overlap(text, "<tool_call>") == size


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON) | st.dictionaries(st.text(), JSON), st.text(), st.booleans())
def test_the_end_of_a_value_is_found(value, rest, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    extent = JsonExtent()
    assert [extent.feed(char) for char in text] == [None] * (len(text) - 1) + [1]
    assert JsonExtent().feed(text + rest) == len(text)


@pytest.mark.parametrize("text", ["{]", "[}", "{'", "{<", "[NaN", "]"])
def test_what_is_no_json_is_noticed_early(text):
    with pytest.raises(NotJson):
        JsonExtent().feed(text)


@given(st.text())
def test_reading_calls_never_fails(text):
    assert read_calls(text, NAMES) is None


ARGUMENTS = st.dictionaries(st.text(max_size=5), JSON, max_size=3)
FORCED = st.lists(st.tuples(st.sampled_from(sorted(NAMES)), ARGUMENTS), min_size=1, max_size=4)


def forced_text(calls, indent=None):
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls], indent=indent)


@given(FORCED, st.sampled_from([None, 2]), st.data())
def test_forced_calls_are_read_however_they_arrive(calls, indent, data):
    _, pieces = data.draw(split(st.just(forced_text(calls, indent))))
    content, made = read(ForcedCallParser(NAMES), pieces)
    assert content == ""
    assert [(name, json.loads(arguments)) for name, arguments in made] == calls


@given(split(TEXTS | FORCED.map(forced_text).map(lambda text: text[: len(text) // 2])))
def test_what_was_forced_and_still_is_no_list_of_calls_is_not_lost(case):
    text, pieces = case
    assert read(ForcedCallParser(NAMES), pieces) == read(ForcedCallParser(NAMES), [text])
    content, calls = read(ForcedCallParser(NAMES), pieces)
    if not calls:
        assert content == text or (content == "" and may_be_call(text.strip(), "[") and not closed(text.strip()))


CLOCKS = '[\n\n{\n\n"name" : "clock", "arguments": {}}, {"name": "clock", "arguments": {"zone": "UTC"}}]'


@given(st.integers(0, len(CLOCKS)), st.data())
def test_of_forced_calls_that_are_cut_nothing_is_told_as_words(size, data):
    _, pieces = data.draw(split(st.just(CLOCKS[:size])))
    content, calls = read(ForcedCallParser(NAMES), pieces)
    assert content.strip() == ""
    assert len(calls) == CLOCKS[:size].count('"arguments": {')


@pytest.mark.parametrize(
    "text", ['[{"arguments": {"zone": "UT', '[{"name": "clock", "argum', "[", '[{"name": "clock"']
)
def test_an_unfinished_head_is_dropped(text):
    assert fed(ForcedCallParser(NAMES), [text]) == []


@pytest.mark.parametrize("text", ["[1, 2", "Sorry", '[{"name": "other", "arguments": {}}]', '[{"nation": "', "{"])
def test_what_cannot_become_calls_is_content(text):
    assert fed(ForcedCallParser(NAMES), [text]) == [ContentDelta(text)]


def test_forced_arguments_come_as_they_are_made():
    reading = ForcedCallParser(NAMES)
    assert reading.push('[{"name": "weather", "argum') == []
    first = reading.push('ents": {"ci')
    assert [(d.index, d.name, d.arguments) for d in first] == [(0, "weather", ""), (0, None, '{"ci')]
    assert reading.push('ty": "Rome"}')[0].arguments == 'ty": "Rome"}'
    assert reading.push("}]") == []
    assert reading.finish() == []


def test_a_forced_call_cut_short_keeps_what_it_has():
    content, calls = read(ForcedCallParser(NAMES), [forced_text([("weather", {"city": "Rome"})])[:45]])
    assert (content, calls) == ("", [("weather", '{"city": "R')])


def test_forced_calls_with_their_keys_in_another_order_are_read_at_the_end():
    text = '[{"arguments": {"city": "Rome"}, "name": "weather"}]'
    assert read(ForcedCallParser(NAMES), list(text)) == ("", [("weather", '{"city": "Rome"}')])


def test_a_long_call_is_not_looked_at_again_with_each_token(monkeypatch):
    looked = []

    def may_be(begins, opens):
        looked.append(len(begins))
        return may_be_call(begins, opens)

    monkeypatch.setattr(call_body, "may_be_call", may_be)
    letter = "and so on " * 1000
    whole = json.dumps({"name": "weather", "arguments": {"city": letter}})
    (call,) = fed(parser(), ["<tool_call>", *re.findall(".{1,5}", whole), "</tool_call>"])
    assert json.loads(call.arguments) == {"city": letter}
    assert max(looked) <= 256
