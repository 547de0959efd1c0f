import pytest
from template_families import WITH_TOOLS, WITHOUT_TOOLS

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.engine.content_format import ContentFormat

SOURCES = {**WITHOUT_TOOLS, **{name: source for name, (source, _) in WITH_TOOLS.items()}}
TAKE_PARTS = {"parts", "macro", "assigned", "content", "gemma3", "llama4", "mistral_small", "glm"}
STRING, PARTS = ContentFormat.STRING, ContentFormat.OPENAI
TWO = [{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}]


def template(source):
    return ChatTemplate(source, bos="<s>", eos="</s>")


@pytest.mark.parametrize("name", SOURCES)
def test_a_template_with_a_loop_over_content_takes_parts(name):
    assert template(SOURCES[name]).content_format is (PARTS if name in TAKE_PARTS else STRING)


MACRO = "{% macro f(x) %}{% for c in x %}{% endfor %}{% endmacro %}"


def looped(items, body):
    return "{% for m in " + items + " %}" + body + "{% endfor %}"


def over(items):
    return looped("messages", "{% for c in " + items + " %}{% endfor %}")


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (over("m.content | list"), PARTS),
        (over("m['content'][1:]"), PARTS),
        (over("m.text"), STRING),
        (looped("messages[1:]", "{% for c in m['content'] %}{% endfor %}"), PARTS),
        ("{% set a = messages %}{% set b = a[1:] %}" + looped("b", "{% for c in m.content %}{% endfor %}"), PARTS),
        ("{% set a = a %}{% set a = messages %}" + looped("a", "{% for c in m.content %}{% endfor %}"), PARTS),
        (MACRO + looped("messages", "{{ f(m.content) }}"), PARTS),
        (MACRO + looped("messages", "{{ f(x=m.content) }}"), PARTS),
        (MACRO + looped("messages", "{{ f(m.role) }}"), STRING),
        (MACRO.replace("x", "content") + "{{ f(messages[0].content) }}", STRING),
        ("{% for c in content %}{% endfor %}", PARTS),
        (looped("messages", "{% for a, b in m.content %}{% endfor %}"), STRING),
        ("{% for a, b in messages %}{% endfor %}{% for c in content %}{% endfor %}", STRING),
        ("{% set ns = namespace() %}{% set ns.x = messages %}{% for c in content %}{% endfor %}", STRING),
        (looped("messages", "{{ m.content }}"), STRING),
    ],
)
def test_the_rule_is_vllms(source, form):
    assert template(source).content_format is form


@pytest.mark.parametrize(
    ("name", "text"), [("strings", "A\nB"), ("parts", "AB"), ("macro", "AB"), ("gemma3", "AB")]
)
def test_two_parts_are_joined_as_the_template_does_it(name, text):
    assert text in template(SOURCES[name]).render(TWO)
    assert "user\nHi" in template(SOURCES[name]).render([{"role": "user", "content": "Hi"}])


def test_a_developer_is_the_systems_where_the_template_does_not_know_one():
    messages = [
        {"role": "system", "content": "One."},
        {"role": "user", "content": "Hi"},
        {"role": "developer", "content": TWO[0]["content"]},
    ]
    assert "system\nOne.\n\nA\nB<" in template(SOURCES["strings"]).render(messages)
    assert "developer\n# Instructions\nA\nB<" in template(SOURCES["developer"]).render(messages)


def test_thoughts_have_both_names():
    source = "{{ messages[0].reasoning }} {{ messages[0].reasoning_content }}"
    assert template(source).render([{"role": "assistant", "content": "", "reasoning_content": "a"}]) == "a a"


def turns(content):
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]


@pytest.mark.parametrize(
    ("name", "content", "end"),
    [
        ("qwen3", "It is ", "assistant\nIt is "),
        ("strings", "It is ", "assistant\nIt is"),  # it trims
        ("parts", [{"type": "text", "text": "It"}, {"type": "text", "text": " is "}], "assistant\nIt is "),
        ("parts", "It", "assistant\nIt"),
    ],
)
def test_a_final_message_that_goes_on_has_no_end(name, content, end):
    assert template(SOURCES[name]).render(turns(content), continue_final_message=True).endswith(end)


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("parts", turns([])),
        ("strings", []),
        ("deepseek_r1", turns("<think>a</think>It")),  # it leaves out the thoughts
        ("mistral", [{**turns("x")[1], "tool_calls": [{"id": "abcdefghi", "function": {"name": "f"}}]}]),
    ],
)
def test_one_that_is_not_there_as_it_is_cannot_go_on(name, messages):
    with pytest.raises(InvalidRequest) as refused:
        template(SOURCES[name]).render(messages, continue_final_message=True)
    assert refused.value.param == "continue_final_message"


@pytest.mark.parametrize(
    ("name", "alternates"), [("gemma2", True), ("gemma3", True), ("strings", False), ("glm", False)]
)
def test_a_template_that_wants_roles_to_alternate_is_known(name, alternates):
    assert template(SOURCES[name]).alternates is alternates
