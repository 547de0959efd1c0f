import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ReasoningDelta
from pdd_llamacpp_adapter.server.output.reasoning import ReasoningSplitter, ReasoningStart, reasoning_start


def split(start, pieces):
    splitter = ReasoningSplitter(start)
    deltas = [delta for piece in pieces for delta in splitter.push(piece)] + splitter.finish()
    assert all(delta.text for delta in deltas)
    thoughts = "".join(d.text for d in deltas if isinstance(d, ReasoningDelta))
    return thoughts, "".join(d.text for d in deltas if isinstance(d, ContentDelta))


@pytest.mark.parametrize(
    ("start", "text", "thoughts", "words"),
    [
        (ReasoningStart.TAGGED, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        (ReasoningStart.TAGGED, "\n<think>Hm.</think>Yes.\n", "Hm.", "Yes.\n"),
        (ReasoningStart.TAGGED, "<think>\n\n</think>\n\nYes.", "", "Yes."),
        (ReasoningStart.TAGGED, "<think>Hm, and then", "Hm, and then", ""),
        (ReasoningStart.TAGGED, "  Yes.", "", "  Yes."),
        (ReasoningStart.TAGGED, "Say <think>x</think>", "", "Say <think>x</think>"),
        (ReasoningStart.TAGGED, "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        (ReasoningStart.TAGGED, "<thin", "", "<thin"),
        (ReasoningStart.INSIDE, "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
        (ReasoningStart.INSIDE, "<think>\nHm.</think>Yes.", "Hm.", "Yes."),
        (ReasoningStart.INSIDE, "Hm </thin air", "Hm </thin air", ""),
        (ReasoningStart.INSIDE, "\n\n</think>Yes.", "", "Yes."),
        (ReasoningStart.NEVER, "<think>x</think>", "", "<think>x</think>"),
    ],
)
def test_thoughts_are_parted_from_words(start, text, thoughts, words):
    assert split(start, [text]) == (thoughts, words)
    assert split(start, text) == (thoughts, words)


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "think>", "\n", " ", "word", "<thi", "é"])
    | st.text(max_size=3)
)


@given(st.sampled_from(list(ReasoningStart)), PIECES)
def test_a_split_anywhere_changes_nothing_and_only_tags_and_white_space_are_dropped(start, pieces):
    text = "".join(pieces)
    thoughts, words = split(start, pieces)
    assert (thoughts, words) == split(start, [text]) == split(start, list(text))

    kept, given_ = "".join((thoughts + words).split()), "".join(text.split())
    rest = iter(given_)
    assert all(char in rest for char in kept)
    assert len(given_) - len(kept) in {0, len("<think>"), len("</think>"), len("<think></think>")}
    if start is ReasoningStart.NEVER or (
        start is ReasoningStart.TAGGED and not text.lstrip().startswith("<think>")
    ):
        assert words == text


def test_thoughts_flow_but_for_what_could_be_their_end():
    splitter = ReasoningSplitter(ReasoningStart.TAGGED)
    assert splitter.push("<thi") == []
    assert splitter.push("nk>Hm") == [ReasoningDelta("Hm")]
    assert splitter.push(", a < b") == [ReasoningDelta(", a < b")]
    assert splitter.push(" \n</th") == []
    assert splitter.push("ought>") == [ReasoningDelta(" \n</thought>")]
    assert splitter.push("</think>") == []
    assert splitter.push("\n\nYes") == [ContentDelta("Yes")]
    assert splitter.finish() == []


@pytest.mark.parametrize(
    ("tail", "start"),
    [
        (["<|im_start|>", "assistant\n"], ReasoningStart.TAGGED),
        (["assistant\n", "<think>", "\n"], ReasoningStart.INSIDE),
        (["assistant\n", "<th", "ink>\n"], ReasoningStart.INSIDE),
        (["<think>", "\n\n", "</think>", "\n\n"], ReasoningStart.TAGGED),
        ([], ReasoningStart.TAGGED),
    ],
)
def test_the_prompts_end_says_whether_thoughts_have_begun(tail, start):
    assert reasoning_start(range(len(tail)), lambda token: tail[token].encode()) is start
