from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.server.chat.chat_request import ChatRequest
from pdd_llamacpp_adapter.server.prompts.marked import marked_parts, span_of_tools, spans_of_parts
from pdd_llamacpp_adapter.server.prompts.prepare import prepare
from pdd_llamacpp_adapter.server.responses.response_request import ResponsesRequest

pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


def part(text, **more):
    return {"type": "text", "text": text, **more}


async def protected(runtime, *messages, **fields):
    """The texts of a chat's protected spans."""
    prepared = await prepare(ChatRequest(messages=list(messages), max_tokens=5, **fields).chat_input(), runtime)
    prompt = bytes(prepared.request.prompt_token_ids)
    return [prompt[start:end].decode() for start, end in prepared.request.protect]


async def test_a_marked_part_stays(fake_runtime):
    user = {"role": "user", "content": [part("A long text."), part("Clause 7.", pdd_protect=True), part("Why?")]}
    assert await protected(fake_runtime(), user) == ["Clause 7."]


async def test_each_of_several_messages_has_its_own_place(fake_runtime):
    content = [part("yes"), part("no", pdd_protect=True)]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "no"}] * 2
    prepared = await prepare(ChatRequest(messages=messages, max_tokens=5).chat_input(), fake_runtime())
    prompt = bytes(prepared.request.prompt_token_ids).decode()
    first = prompt.index("yes\nno") + 4
    second = prompt.index("yes\nno", first) + 4
    assert prepared.request.protect == ((first, first + 2), (second, second + 2))


async def test_a_part_is_found_where_it_stands_and_not_where_its_words_do(fake_runtime):
    user = {"role": "user", "content": [part("no no no"), part(" no ", pdd_protect=True)]}
    prepared = await prepare(ChatRequest(messages=[user], max_tokens=5).chat_input(), fake_runtime())
    prompt = bytes(prepared.request.prompt_token_ids).decode()
    [(start, end)] = prepared.request.protect
    assert (prompt[start:end], start) == ("no", prompt.index("no no no\n no") + 10)


async def places(prepared, words):
    """Where the protected spans begin, as the number of the `words`' occurrence in the prompt."""
    prompt = bytes(prepared.request.prompt_token_ids).decode()
    starts = [found.start() for found in re.finditer(re.escape(words), prompt)]
    return [starts.index(start) for start, _ in prepared.request.protect]


TERMS = part("Net 30", pdd_protect=True)


@pytest.mark.parametrize(
    ("before", "place"),
    [
        ([{"role": "system", "content": "'Net 30' is the default."}], 1),
        ([{"role": "system", "content": [part("Net 30"), part("is the default.")]}], 1),
        (
            [
                {"role": "user", "content": "Net 30?"},
                {"role": "assistant", "content": None},
                {"role": "assistant", "content": "Net 30."},
            ],
            2,
        ),
        ([{"role": "user", "content": [TERMS]}, {"role": "assistant", "content": "Net 30 it is."}], 2),
    ],
    ids=["a system prompt", "in parts", "turns", "a marked one"],
)
async def test_a_part_is_not_where_an_earlier_message_says_the_same(fake_runtime, before, place):
    messages = [*before, {"role": "user", "content": [TERMS]}, {"role": "user", "content": "Net 30 or not?"}]
    prepared = await prepare(ChatRequest(messages=messages, max_tokens=5).chat_input(), fake_runtime())
    assert (await places(prepared, "Net 30"))[-1] == place


async def test_nor_where_the_instructions_of_a_response_do(fake_runtime):
    content = [{"type": "input_text", "text": "Net 30", "pdd_protect": True}]
    asked = ResponsesRequest(
        input=[{"role": "user", "content": content}], instructions="Net 30 is the default.", max_output_tokens=5
    )
    assert await places(await prepare(asked.chat_input(), fake_runtime()), "Net 30") == [1]


async def test_a_message_that_the_template_leaves_out_hides_no_part_behind_it(fake_runtime):
    class Forgetful(type(fake_runtime().vocab)):
        def render_chat(self, messages, **options):
            return super().render_chat([one for one in messages if one["role"] != "assistant"], **options)

    runtime = fake_runtime()
    runtime.vocab = Forgetful()
    messages = [
        {"role": "assistant", "content": "30"},
        {"role": "user", "content": [TERMS]},
        {"role": "user", "content": "Why?"},
    ]
    prepared = await prepare(ChatRequest(messages=messages, max_tokens=5).chat_input(), runtime)
    assert await places(prepared, "Net 30") == [0]


async def test_text_outside_of_ascii_is_found(fake_runtime):
    user = {"role": "user", "content": [part("Größe? ä"), part("größer als 5 €", pdd_protect=True)]}
    assert await protected(fake_runtime(), user) == ["größer als 5 €"]


async def test_tools_stay_wherever_the_template_puts_them(fake_runtime):
    user = {"role": "user", "content": "Look it up."}
    [text] = await protected(fake_runtime(), user, tools=[TOOL])
    assert "look_up" in text
    assert "Look it up." not in text
    assert await protected(fake_runtime(), user, tools=[TOOL], tool_choice="none") == []


@pytest.mark.parametrize("mark", ["yes", 1, None])
async def test_a_mark_is_true_or_false(mark):
    user = {"role": "user", "content": [part("a"), part("b", pdd_protect=mark)]}
    with pytest.raises(InvalidRequest, match="must be true or false") as caught:
        ChatRequest(messages=[user]).chat_input()
    assert caught.value.param == "messages[0].content[1].pdd_protect"


async def test_a_part_that_is_not_in_the_prompt_is_named(fake_runtime):
    class Shouting(type(fake_runtime().vocab)):
        def render_chat(self, messages, *, tools=None, most=None, **variables):
            return self.tokenize(self.chat_template.render(messages, tools=tools, **variables).upper())

    runtime = fake_runtime()
    runtime.vocab = Shouting()
    user = {"role": "user", "content": [part("A"), part("keep", pdd_protect=True)]}
    with pytest.raises(InvalidRequest, match="does not put it into the prompt") as caught:
        await protected(runtime, user)
    assert caught.value.param == "messages[0].content[1]"


async def test_where_nothing_is_refined_marks_mean_nothing(fake_runtime):
    runtime = fake_runtime()
    runtime.refines = False
    user = {"role": "user", "content": [part("keep", pdd_protect=True)]}
    assert await protected(runtime, user, tools=[TOOL]) == []


async def test_the_parts_of_a_response_s_input_can_be_marked_too(fake_runtime):
    content = [{"type": "input_text", "text": "One."}, {"type": "input_text", "text": "Two.", "pdd_protect": True}]
    given_ = [{"role": "user", "content": content}, {"type": "reasoning", "content": [5], "summary": []}]
    prepared = await prepare(ResponsesRequest(input=given_, max_output_tokens=5).chat_input(), fake_runtime())
    [(start, end)] = prepared.request.protect
    assert bytes(prepared.request.prompt_token_ids[start:end]) == b"Two."


class Halves:
    """Each token is two bytes."""

    def __init__(self, text):
        data = text.encode()
        self.pieces = [data[index : index + 2] for index in range(0, len(data), 2)]

    def piece(self, token):
        return self.pieces[token]


@given(st.text(max_size=20), st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_a_span_covers_every_byte_of_its_part(before, text, after):
    messages = [{"role": "user", "content": [part(before), part(text, pdd_protect=True), part(after)]}]
    vocab = Halves(f"<user>{before}\n{text}\n{after}<end>")
    parts = marked_parts(messages, "messages")
    if not text.strip():
        assert parts == ()
        return
    [(start, end)] = spans_of_parts(parts, range(len(vocab.pieces)), vocab)
    covered = b"".join(vocab.pieces[start:end])
    assert text.strip().encode() in covered
    assert len(covered) <= len(text.strip().encode()) + 2


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_tools_are_what_differs(before, tools, after):
    span = span_of_tools([*before, *tools, *after], [*before, *after])
    if not tools:
        assert span is None
        return
    start, end = span
    assert end - start == len(tools)
    whole = [*before, *tools, *after]
    assert [*whole[:start], *whole[end:]] == [*before, *after]
