import json

import pytest

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.request import Grammar, GrammarKind
from pdd_llamacpp_adapter.server.tools.formats.hermes import HERMES as HERMES_FORM
from pdd_llamacpp_adapter.server.tools.formats.llama3_json import LLAMA3_JSON
from pdd_llamacpp_adapter.server.tools.formats.mistral import MISTRAL as MISTRAL_FORM
from pdd_llamacpp_adapter.server.tools.tool_formats import format_of
from pdd_llamacpp_adapter.server.tools.tool_use import plan_tools

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
ALTERNATING = """{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}"""
HERMES = """{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for m in messages %}{{ m.role }}: {{ m.content }}
{%- for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}{% endfor %}"""
XML = HERMES.replace('{"name": "', "<invoke ").replace('", "arguments": ', ">").replace("}}}\n", "}}</invoke>\n")
LLAMA = """{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- for m in messages %}
{%- if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call only') }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}
{%- else %}{{ m.role }}: {{ m.content }}{% endif %}
{%- endfor %}"""
MISTRAL = """{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for m in messages %}
{%- if m.tool_calls %}[TOOL_CALLS][
{%- for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids must have length 9') }}{% endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}{% if not loop.last %}, {% endif %}
{%- endfor %}]</s>
{%- elif m.role == 'tool' %}
{%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids must have length 9') }}{% endif %}
{{- m.content }}
{%- else %}{{ m.content }}{% endif %}
{%- endfor %}"""

SOURCES = {
    "plain": PLAIN,
    "alternating": ALTERNATING,
    "hermes": HERMES,
    "xml": XML,
    "llama": LLAMA,
    "mistral": MISTRAL,
}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def template(name):
    return ChatTemplate(SOURCES[name], bos="", eos="</s>")


def plan(tools=(WEATHER, CLOCK), choice=None, parallel=True, on="hermes"):
    return plan_tools(tools, choice, parallel, template=template(on))


def call(name, arguments, call_id):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


TWO_CALLS = [
    {"role": "user", "content": "Rome and Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            call("weather", '{"city": "Rome"}', "call_0123456789abcdef"),
            call("weather", '{"city": "Oslo"}', "call_fedcba9876543210"),
        ],
    },
    {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "22 degrees"},
    {"role": "tool", "tool_call_id": "call_fedcba9876543210", "content": "1 degree"},
]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("plain", None),
        ("hermes", HERMES_FORM),
        ("xml", None),
        ("llama", LLAMA3_JSON),
        ("mistral", MISTRAL_FORM),
    ],
)
def test_the_format_is_the_one_in_which_the_template_writes_calls(name, form):
    assert format_of(template(name)) is form


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("tools", [(), (WEATHER,)])
def test_a_past_with_calls_and_results_can_be_rendered_by_every_template(name, tools):
    made = plan(tools, on=name)
    text = template(name).render(made.messages(TWO_CALLS), tools=made.template_tools)
    for part in ("Rome and Oslo?", '"Rome"', '"Oslo"', "22 degrees", "1 degree"):
        assert part in text
    assert ("The weather" in text) is (bool(tools) and name != "llama")  # the test's Llama template shows no tools


def test_a_template_that_reads_tools_gets_them_completed():
    made = plan()
    assert made.format is HERMES_FORM
    assert made.template_tools == [
        WEATHER,
        {
            "type": "function",
            "function": {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}},
        },
    ]


def test_calls_we_cannot_read_are_asked_for_in_a_form_that_we_can():
    made = plan(on="xml")
    assert (made.template_tools, made.format) == (None, HERMES_FORM)
    system, _ = made.messages([{"role": "user", "content": "Hi"}])
    assert system["role"] == "system"
    assert json.dumps(made.tools[0]) in system["content"]
    assert "<tool_call>" in system["content"]


def test_tools_are_described_at_the_head_of_the_system_message():
    system, user = plan(on="plain").messages(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    )
    assert system["content"].startswith("# Tools")
    assert system["content"].endswith("</tool_call>\n\nBe brief.")
    assert user == {"role": "user", "content": "Hi"}


def test_tools_are_described_to_the_user_where_there_is_no_system():
    made = plan(on="alternating")
    messages = made.messages([{"role": "user", "content": "Hi"}])
    assert [message["role"] for message in messages] == ["user"]
    assert messages[0]["content"].endswith("\n\nHi")
    assert "weather" in template("alternating").render(messages)


def test_results_of_one_turn_are_one_message():
    made = plan((), on="plain").messages(TWO_CALLS)
    assert [message["role"] for message in made] == ["user", "assistant", "user"]
    assert made[1]["content"] == (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    )
    assert made[2]["content"].count("<tool_response>") == 2


def test_words_before_a_call_stay_before_it():
    messages = [{"role": "assistant", "content": "Let me see.", "tool_calls": [call("clock", "{}", "1")]}]
    (made,) = plan((), on="plain").messages(messages)
    assert made["content"].startswith("Let me see.\n<tool_call>")


def test_messages_are_not_changed_in_place():
    before = json.dumps(TWO_CALLS)
    for name in SOURCES:
        plan(on=name).messages(TWO_CALLS)
    assert json.dumps(TWO_CALLS) == before


def test_ids_for_mistral_keep_results_with_their_calls():
    _, calls, *results = plan(on="mistral").messages(TWO_CALLS)
    assert [one["id"] for one in calls["tool_calls"]] == [one["tool_call_id"] for one in results]


@pytest.mark.parametrize("choice", [None, "auto"])
def test_auto_constrains_nothing(choice):
    assert plan(choice=choice).grammar is None
    assert plan(choice=choice).schemas.keys() == {"weather", "clock"}


def test_none_hides_the_tools():
    made = plan(choice="none")
    assert (made.template_tools, made.format, made.grammar, made.schemas) == (None, None, None, {})


def schema(made):
    assert made.grammar.kind is GrammarKind.JSON
    return json.loads(made.grammar.text)


def test_required_allows_every_tool_and_nothing_else():
    jsonschema = pytest.importorskip("jsonschema")
    made = schema(plan(choice="required"))
    jsonschema.Draft202012Validator.check_schema(made)

    def valid(value):
        return jsonschema.Draft202012Validator(made).is_valid(value)

    rome = {"name": "weather", "arguments": {"city": "Rome"}}
    assert valid([rome])
    assert valid([{"name": "clock", "arguments": {}}, rome])
    assert not valid([])
    assert not valid([{"name": "weather", "arguments": {}}])
    assert not valid([{"name": "other", "arguments": {}}])
    assert not valid([{**rome, "more": 1}])
    assert not valid([rome] * 17)


@pytest.mark.parametrize(
    ("choice", "parallel", "most"),
    [
        ("required", True, 16),
        ("required", False, 1),
        ({"type": "function", "function": {"name": "clock"}}, True, 1),
    ],
)
def test_a_named_function_or_no_parallel_calls_means_one_call(choice, parallel, most):
    assert schema(plan(choice=choice, parallel=parallel))["maxItems"] == most


def test_a_named_function_is_the_only_one():
    made = plan(choice={"type": "function", "function": {"name": "clock"}})
    assert schema(made)["items"]["properties"]["name"]["enum"] == ["clock"]
    assert made.schemas.keys() == {"weather", "clock"}
    assert made.format is None


ANSWER = {
    "type": "object",
    "properties": {"name": {"$ref": "#/$defs/Name"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"Name": {"type": "string", "maxLength": 4}},
}
WANTED = Grammar(GrammarKind.JSON, json.dumps(ANSWER))


@pytest.mark.parametrize(
    ("on", "call"),
    [
        ("plain", {"name": "weather", "arguments": {"city": "Rome"}}),
        ("hermes", {"name": "weather", "arguments": {"city": "Rome"}}),
        ("llama", {"name": "weather", "parameters": {"city": "Rome"}}),
        ("mistral", [{"name": "weather", "arguments": {"city": "Rome"}}]),
    ],
)
def test_with_auto_the_answer_is_a_call_in_the_models_own_form_or_what_the_format_asks_for(on, call):
    jsonschema = pytest.importorskip("jsonschema")
    grammar = plan(on=on).constraint(WANTED)
    assert (grammar.kind, grammar.param) == (GrammarKind.JSON, "response_format")
    made = json.loads(grammar.text)
    jsonschema.Draft202012Validator.check_schema(made)

    def valid(value):
        return jsonschema.Draft202012Validator(made).is_valid(value)

    assert valid(call)
    assert valid({"name": "Rome"})
    assert not valid({"name": "Milan"})
    assert not valid({"name": "Rome", "arguments": {"city": "Rome"}})
    assert not valid({"name": "weather", "arguments": {}})
    assert not valid([])


def test_any_object_or_a_call_is_what_a_json_object_allows():
    made = json.loads(plan(on="mistral").constraint(Grammar(GrammarKind.JSON_OBJECT)).text)
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(made)
    assert validator.is_valid({"any": 1})
    assert validator.is_valid([{"name": "clock", "arguments": {}}] * 2)
    assert not validator.is_valid([1])
    single = json.loads(plan(on="mistral", parallel=False).constraint(WANTED).text)
    assert not jsonschema.Draft202012Validator(single).is_valid([{"name": "clock", "arguments": {}}] * 2)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
def test_a_forced_choice_leaves_no_words_that_a_format_could_constrain(choice):
    made = plan(choice=choice)
    assert made.constraint(WANTED) == made.constraint(None) == made.grammar


def test_without_tools_to_call_the_format_is_all():
    assert plan(choice="none").constraint(WANTED) == plan(()).constraint(WANTED) == WANTED
    assert plan(choice="none").constraint(None) is plan().constraint(None) is None


def test_references_within_parameters_still_lead_to_the_same_place():
    jsonschema = pytest.importorskip("jsonschema")
    tree = {
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/Node"}, "self": {"$ref": "#"}},
        "required": ["root"],
        "$defs": {
            "Node": {"type": "object", "properties": {"of": {"$ref": "#/$defs/Node"}, "n": {"type": "integer"}}}
        },
    }
    tool = {"type": "function", "function": {"name": "grow", "parameters": tree}}
    made = schema(plan((WEATHER, tool), choice="required"))

    def valid(arguments):
        return jsonschema.Draft202012Validator(made).is_valid([{"name": "grow", "arguments": arguments}])

    assert valid({"root": {"of": {"n": 1}}, "self": {"root": {}}})
    assert not valid({"root": {"of": {"n": "one"}}})
    assert not valid({"root": {}, "self": {}})


def test_a_property_named_ref_is_no_reference():
    parameters = {"type": "object", "properties": {"$ref": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    assert schema(plan((tool,), choice="required"))["items"]["properties"]["arguments"] == parameters


def changed(**fields):
    return {"type": "function", "function": {**WEATHER["function"], **fields}}


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ("weather", "tools[1].type"),
        ({"type": "web_search"}, "tools[1].type"),
        ({"type": "function"}, "tools[1].function"),
        (changed(name=None), "tools[1].function.name"),
        (changed(name="with space"), "tools[1].function.name"),
        (changed(name="x" * 65), "tools[1].function.name"),
        (changed(description=1), "tools[1].function.description"),
        (changed(parameters=[]), "tools[1].function.parameters"),
        (changed(parameters={"type": "string"}), "tools[1].function.parameters"),
    ],
)
def test_a_tool_that_is_none_is_refused_by_its_place(tool, param):
    with pytest.raises(InvalidRequest) as refused:
        plan((WEATHER, tool))
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ((WEATHER,), "always", "tool_choice"),
        ((WEATHER,), 7, "tool_choice"),
        ((), "required", "tool_choice"),
        ((), {"type": "function", "function": {"name": "weather"}}, "tool_choice"),
        ((WEATHER,), {"type": "function", "function": {"name": "clock"}}, "tool_choice"),
        ((WEATHER,), {"type": "function", "name": "weather"}, "tool_choice.type"),
        ((WEATHER,), {"type": "function", "function": {"name": 1}}, "tool_choice.function.name"),
    ],
)
def test_a_choice_that_is_none_is_refused(tools, choice, param):
    with pytest.raises(InvalidRequest) as refused:
        plan(tools, choice)
    assert refused.value.param == param


def test_more_tools_than_openai_takes_are_refused():
    with pytest.raises(InvalidRequest, match="128"):
        plan([WEATHER] * 129)


def test_no_tools_are_no_tools():
    for none in (None, ()):
        made = plan_tools(none, "auto", None, template=template("hermes"))
        assert (made.template_tools, made.format, made.grammar) == (None, None, None)
