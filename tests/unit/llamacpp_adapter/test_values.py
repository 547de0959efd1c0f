from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pdd_llamacpp_adapter
from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.engine.detokenizer import Detokenizer
from pdd_llamacpp_adapter.engine.history import common_prefix
from pdd_llamacpp_adapter.request import AnswerRequest


def test_importing_the_package_loads_neither_engine_nor_numpy():
    check = (
        "import sys, pdd_llamacpp_adapter as p; "
        "p.AnswerSession, p.CloudClient, p.AnswerRequest, p.PROFILES, p.Outcome, p.generate; "
        "print([m for m in ('llama_cpp', 'numpy', 'jinja2') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_exported_name_exists():
    assert all(getattr(pdd_llamacpp_adapter, name) is not None for name in pdd_llamacpp_adapter.__all__)
    assert set(pdd_llamacpp_adapter.__all__) <= set(dir(pdd_llamacpp_adapter))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pdd_llamacpp_adapter.nothing


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_token_ids", []),
        ("max_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.5),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e300),
        ("min_tokens", 9),
        ("decode_budget", 0),
        ("refine_ratio", 0.0),
        ("refine_ratio", 1.5),
        ("refine_ratio", True),
        ("protect", [(0, 2)]),
        ("protect", [(-1, 1)]),
        ("protect", [(1, 1)]),
        ("protect", [(0, 1, 2)]),
        ("protect", [(0.0, 1.0)]),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(InvalidRequest, match=f"^{field} "):
        AnswerRequest(**{"prompt_token_ids": [1], "max_tokens": 8, field: value})


def test_protected_spans_are_put_in_order():
    request = AnswerRequest(prompt_token_ids=range(9), max_tokens=1, protect=[[6, 8], (0, 2), (2, 4), (1, 3)])
    assert request.protect == ((0, 4), (6, 8))


@given(st.text(), st.lists(st.integers(1, 5)))
def test_text_is_whole_wherever_the_bytes_are_cut(text, widths):
    data = text.encode()
    pieces: list[bytes] = []
    for width in widths:
        pieces.append(data[:width])
        data = data[width:]
    pieces.append(data)
    detokenizer = Detokenizer(pieces.__getitem__)
    assert "".join(detokenizer.push(i) for i in range(len(pieces))) + detokenizer.flush() == text


def test_an_unfinished_character_shows_at_the_end_only():
    detokenizer = Detokenizer([b"\xf0\x9f", b"\x8e"].__getitem__)
    assert [detokenizer.push(0), detokenizer.push(1), detokenizer.flush()] == ["", "", "\N{REPLACEMENT CHARACTER}"]


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_a_common_prefix_is_common_and_the_longest(ours, theirs):
    length = common_prefix(ours, theirs)
    assert ours[:length] == theirs[:length]
    assert ours[: length + 1] != theirs[: length + 1] or length == min(len(ours), len(theirs))


def test_a_seed_of_minus_one_is_none_as_in_vllm():
    assert AnswerRequest(prompt_token_ids=[1], max_tokens=1, seed=-1).seed is None
    assert AnswerRequest(prompt_token_ids=[1], max_tokens=1, seed=-2).seed == -2
