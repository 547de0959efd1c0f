from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.json_spelling import JsonSpelling

CASES = [
    (rb'{"a\/b":"\\/"}', rb'{"a\nb":"\\/"}'),
    (rb'"\u00e9\ud83dx\"\u4e2"', rb'"\u0000\u0000x\"\u0000'),
    (b'{\n\t"a": "\t\x7f"\r}', b'{\n\t"a": "xx"\r}'),
    (b'"\xed\xa8\x80\xed\x95\x9c"', b'"\xed\x88\x80\xed\x95\x9c"'),
]


@pytest.mark.parametrize(("text", "respelt"), CASES)
def test_it_is_respelt_wherever_it_is_cut(text, respelt):
    for cut in range(len(text)):
        spelling = JsonSpelling()
        assert (spelling.push(text[:cut]) + spelling.push(text[cut:]))[: len(respelt)] == respelt


@given(st.dictionaries(st.text(), st.text() | st.integers()))
def test_json_that_python_writes_stays_as_it_is(value):
    import json

    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "").encode("utf-8", "replace")
    spelt = JsonSpelling().push(text)
    assert len(spelt) == len(text)
    assert spelt == text or b"\\u" in text
