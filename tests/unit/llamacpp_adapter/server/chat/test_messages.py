import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.server.chat.messages import plain_messages

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELD = {
    "role": st.sampled_from(["developer", "system", "user", "assistant", "tool", "function", 3]),
    "content": ANYTHING | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=5)})),
    "tool_call_id": st.text(max_size=5) | ANYTHING,
    "name": st.text(max_size=5) | ANYTHING,
    "tool_calls": ANYTHING
    | st.lists(
        st.fixed_dictionaries(
            {
                "id": st.text(max_size=5),
                "function": st.fixed_dictionaries({"name": st.text(), "arguments": st.text()}),
            }
        )
    ),
    "function_call": st.fixed_dictionaries({"name": st.text(), "arguments": st.text()}) | ANYTHING,
    "unknown": ANYTHING,
}


@given(messages=st.lists(st.fixed_dictionaries({}, optional=FIELD) | ANYTHING, max_size=3))
def test_messages_become_plain_or_are_refused_with_their_place(messages):
    try:
        plain = plain_messages(messages)
    except InvalidRequest as error:
        assert error.param.startswith("messages")  # noqa: PT017 - either is right
        return
    assert plain_messages(plain) == plain
    assert len(plain) == len(messages)
    for message in plain:
        assert set(message) <= {"role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content"}
        assert isinstance(message["content"], str | list) or "tool_calls" in message


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ({"role": "developer", "content": "x"}, {"role": "developer", "content": "x"}),
        (
            {"role": "user", "content": ["a", {"type": "text", "text": "b", "pdd_protect": True}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ),
        (
            {"role": "user", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "user", "content": [{"type": "text", "text": "No."}]},
        ),
        (
            {"role": "assistant", "content": "x", "reasoning": "why"},
            {"role": "assistant", "content": "x", "reasoning_content": "why"},
        ),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "assistant", "refusal": "No."}, {"role": "assistant", "content": "No."}),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                "content": None,
            },
        ),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
            {
                "role": "assistant",
                "tool_calls": [{"id": "", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
                "content": None,
            },
        ),
        (
            {"role": "assistant", "content": "x", "function_call": None, "tool_calls": None},
            {"role": "assistant", "content": "x"},
        ),
        (
            {"role": "function", "name": "f", "content": "3"},
            {"role": "tool", "name": "f", "content": "3", "tool_call_id": ""},
        ),
        (
            {"role": "tool", "tool_call_id": "c", "content": "3", "unknown": 1},
            {"role": "tool", "content": "3", "tool_call_id": "c"},
        ),
    ],
)
def test_each_shape_has_its_plain_form(message, plain):
    assert plain_messages([message]) == [plain]
