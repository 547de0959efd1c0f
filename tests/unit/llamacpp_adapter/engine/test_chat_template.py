import json

import pytest
from chat_templates import CHATML, TOOLS, WEATHER

from pdd_core.errors import InvalidRequest, ModelError
from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.engine.template_messages import arguments_object


def template(source, **ends):
    return ChatTemplate(source, bos=ends.get("bos", "<s>"), eos=ends.get("eos", "</s>"))


def called(arguments):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [{"role": "assistant", "content": None, "tool_calls": [call]}]


def test_a_chat_ends_where_the_assistant_begins():
    text = template(CHATML).render([{"role": "user", "content": "Hi"}])
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_tools_and_variables_reach_the_template():
    source = "{{ tools | length }} {{ tools[0].function.name }} {{ enable_thinking }}"
    assert template(source).render([], tools=[WEATHER], enable_thinking=False) == "1 weather False"


def test_no_tools_are_none_as_in_transformers():
    assert template("{{ tools is none }} {{ documents is none }}").render([], tools=[]) == "True True"


def test_a_variable_nobody_set_is_undefined():
    assert template("{{ enable_thinking is defined }}").render([]) == "False"


def test_documents_reach_a_template_that_reads_them_and_are_refused_by_others():
    document = {"title": "A", "text": "B"}
    assert template("{{ documents[0].text }}").render([], documents=[document]) == "B"
    with pytest.raises(InvalidRequest) as refused:
        template(CHATML).render([], documents=[document])
    assert refused.value.param == "documents"


def test_null_content_beside_tool_calls_is_the_empty_string():
    assert template(TOOLS).render(called("{}")) == "assistant:[weather {}]"


def test_arguments_become_an_object():
    assert template(TOOLS).render(called('{"city": "Genève"}')) == 'assistant:[weather {"city": "Genève"}]'


@pytest.mark.parametrize("source", [TOOLS, "{{ messages[0].tool_calls[0].function.arguments.a }}"])
@pytest.mark.parametrize("arguments", ['{"a": "\\ud800"}', '{"\\udc00": 1, "a": "\\ud800 x"}', '{"a": "\ud800"}'])
def test_half_of_a_surrogate_pair_is_rendered_as_the_escape_that_the_model_wrote(source, arguments):
    """A model may write one, and refusing its call would refuse every later turn."""
    text = template(source).render(called(arguments))
    assert "\\ud800" in text
    text.encode()


def test_a_refusal_can_be_sent_whatever_it_quotes():
    source = "{{ raise_exception(messages[0].tool_calls[0].function.arguments.a) }}"
    with pytest.raises(InvalidRequest, match=r": \\ud800$"):
        template(source).render(called('{"a": "\\ud800"}'))


@pytest.mark.parametrize(
    "arguments", ["{broken", "[1]", None, 3, "", "[" * 100_000, '{"a": ' + "[" * 300 + "]" * 300 + "}"]
)
def test_arguments_that_are_no_object_become_an_empty_one(arguments):
    assert arguments_object(arguments) == {}


def test_an_empty_list_of_calls_is_no_list():
    source = "{{ 'tool_calls' in messages[0] }}"
    assert template(source).render([{"role": "assistant", "content": "x", "tool_calls": []}]) == "False"


def test_the_callers_messages_are_not_changed():
    messages = called('{"a": 1}')
    before = json.dumps(messages)
    template(TOOLS).render(messages)
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    ("source", "supports"),
    [
        (CHATML, False),
        (TOOLS, True),
        ("{%- if not tools is defined %}{% set tools = none %}{% endif %}{{ tools }}", True),
        ("{# tools #}{{ 'tools' }}", False),
        ("{% set tools = [] %}{{ tools }}", False),
        ("{% generation %}{{ tools }}{% endgeneration %}", True),
    ],
)
def test_a_template_supports_tools_if_it_reads_them(source, supports):
    assert template(source).supports_tools is supports


@pytest.mark.parametrize(
    ("source", "supports"),
    [
        (CHATML, True),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}", False),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", False),
    ],
)
def test_a_template_supports_a_system_message_if_it_shows_one(source, supports):
    assert template(source).supports_system is supports


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0]['no']['way'] }}",
        "{{ 1 + 'x' }}",
        "{{ 1 // 0 }}",
        "{{ [].pop() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_whatever_a_template_raises_is_the_messages_fault(source):
    with pytest.raises(InvalidRequest, match="refuses these messages") as refused:
        template(source).render([{"role": "user", "content": "Hi"}])
    assert refused.value.param == "messages"


def test_a_broken_template_is_an_error_of_the_model():
    with pytest.raises(ModelError, match="not valid"):
        template("{% if %}")
    with pytest.raises(ModelError, match="no chat template"):
        template(None)


def test_html_is_not_escaped():
    assert template("{{ messages | tojson }}").render([{"role": "user", "content": "<b> & ü"}]) == (
        '[{"role": "user", "content": "<b> & ü"}]'
    )
