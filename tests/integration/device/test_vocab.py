from __future__ import annotations

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ContextOverflow, InvalidRequest
from pdd_core.fingerprint import fingerprint
from pdd_llamacpp_adapter.cloud.tokenizer_check import check_tokenizer
from pdd_llamacpp_adapter.engine.control_texts import TOGETHER, ControlTexts

TEXTS = [
    "Plain words, and some more.",
    "Grüße aus Zürich, naïve café",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 🤷🏽‍♀️ shrug",
    "漢字とかな، العربية, ελληνικά",
    "def f(x):\n" + " " * 40 + "return x\n",
    "  leading and trailing  ",
    "<|im_end|> as plain text",
]


def detokenized(vocab, ids):
    detokenizer = vocab.detokenizer()
    return "".join(detokenizer.push(token) for token in ids)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(loaded, text):
    assert detokenized(loaded.vocab, loaded.vocab.tokenize(text)) == text


def test_tokens_longer_than_32_bytes_keep_their_text(loaded):
    """Deep indentation, mostly: pieces that llama-cpp-python's own detokenizer drops."""
    vocab = loaded.vocab
    long = [i for i in range(vocab.size) if not vocab.is_special(i) and len(vocab.piece(i)) > 32]
    assert len(long) == 47
    text = detokenized(vocab, long)
    assert len(text.encode()) == sum(len(vocab.piece(i)) for i in long)
    assert " " * 40 in text


def test_control_tokens_add_no_text(loaded):
    assert detokenized(loaded.vocab, [1, *loaded.vocab.tokenize("hi"), 2]) == "hi"


def test_special_tokens_are_read_only_where_asked(loaded):
    assert loaded.vocab.tokenize("<|im_end|>", special=True) == [2]
    assert 2 not in loaded.vocab.tokenize("<|im_end|>")


def test_a_chat_is_rendered_by_the_models_own_template(loaded):
    vocab = loaded.vocab
    ids = vocab.render_chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 🎉"}])
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi 🎉<|im_end|>\n<|im_start|>assistant\n"
    assert ids == vocab.tokenize(text, special=True)


def test_messages_the_template_cannot_render_are_an_error(loaded):
    with pytest.raises(InvalidRequest, match="refuses"):
        loaded.vocab.render_chat([{"content": "no role"}])


def test_a_text_that_cannot_fit_is_not_read(loaded):
    vocab = loaded.vocab
    assert vocab.longest_piece == max(len(vocab.piece(i)) for i in range(vocab.size))
    longest = max(range(vocab.size), key=lambda i: len(vocab.piece(i)))
    text = vocab.piece(longest).decode()
    assert vocab.tokenize(text, most=1) == [longest]
    with pytest.raises(ContextOverflow, match="at least 2"):
        vocab.tokenize(text + " ", most=1)
    with pytest.raises(ContextOverflow):
        vocab.render_chat([{"role": "user", "content": "<|im_end|>" * 300_000}], most=4096)


CONTROL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<repo_name>", "<filename>", "<empty_output>"]
WORDS = [
    "<",
    ">",
    "<|",
    "|>",
    "im_end",
    "<|im_end",
    "|im_end|>",
    "<<|im_end|>>",
    "[a]",
    " ",
    "\n",
    "a",
    "Ü",
    "🎉",
    " the",
]


def whole(vocab, text, *, add_bos):
    return vocab._ids(text, special=True, add_bos=add_bos)


@examples(300)
@given(
    text=st.lists(st.sampled_from([*CONTROL, *WORDS]) | st.text(max_size=4), max_size=40).map("".join),
    add_bos=st.booleans(),
)
def test_a_text_that_is_cut_has_the_tokens_of_the_whole(loaded, text, add_bos):
    vocab = loaded.vocab
    parts = list(ControlTexts(vocab.control_texts.texts, together=1).cut(text))
    ids = [
        token for number, part in enumerate(parts) for token in whole(vocab, part, add_bos=add_bos and number == 0)
    ]
    assert ids == whole(vocab, text, add_bos=add_bos)


@pytest.mark.parametrize("count", [0, 1, TOGETHER - 1, TOGETHER, TOGETHER + 1, 5 * TOGETHER + 3])
@pytest.mark.parametrize("between", ["", " ", "\nA river <b>and</b> a city"])
def test_a_long_text_has_the_tokens_of_the_whole(loaded, count, between):
    text = between + ("<|im_start|>" + between + "<|im_end|>\n") * count
    assert loaded.vocab.tokenize(text, special=True) == whole(loaded.vocab, text, add_bos=False)


def test_control_tokens_take_no_more_time_the_more_there_are(loaded):
    """At once, it takes llama.cpp five minutes, which no test has."""
    assert loaded.vocab.tokenize("<|im_end|>" * 200_000, special=True) == [2] * 200_000


def test_more_control_tokens_than_fit_are_refused_unread(loaded):
    text = "<|im_end|>" * 5
    assert len(loaded.vocab.tokenize(text, special=True, most=5)) == 5
    with pytest.raises(ContextOverflow, match="5 control tokens"):
        loaded.vocab.tokenize(text, special=True, most=4)


def test_half_of_a_surrogate_pair_is_no_text(loaded):
    with pytest.raises(InvalidRequest, match="Unicode"):
        loaded.vocab.tokenize("a \ud800")


def test_without_a_cloud_llama_cpps_ends_of_generation_count(loaded):
    assert loaded.vocab.eos_id == 2
    assert loaded.vocab.stop_ids == {0, 2, 4}


@pytest.mark.anyio
async def test_the_table_agrees_with_a_fingerprint_of_itself(loaded):
    vocab = loaded.vocab
    assert len(vocab.raw_tokens) == vocab.size == 49152
    special = [i for i in range(17) if vocab.is_special(i)]
    assert special == list(range(17))
    cloud = fingerprint(vocab.token_bytes, special_ids=special, eos_ids=[2])
    await check_tokenizer(cloud, vocab, fetch_piece=None)
