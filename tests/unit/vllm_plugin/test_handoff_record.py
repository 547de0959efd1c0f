from __future__ import annotations

import math
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from pdd_core.handoff import HandoffState
from pdd_core.optin import OptIn
from pdd_vllm_plugin.handoff_record import _IDS_PER_LOGPROB, HandoffRecord

ROWS = st.lists(st.dictionaries(st.integers(0, 9), st.just(SimpleNamespace(logprob=-0.5))), max_size=3)
OUTPUTS = st.lists(
    ROWS.flatmap(
        lambda rows: st.builds(
            SimpleNamespace,
            token_ids=st.lists(st.integers(0, 99), min_size=len(rows), max_size=len(rows)),
            text=st.text(max_size=20),
            logprobs=st.just(rows),
            finish_reason=st.none(),
        )
    ),
    max_size=8,
)


def record() -> HandoffRecord:
    return HandoffRecord(
        opt_in=OptIn("a" * 32), completion_id="c", engine_request_id="e", model="m", tokenizer="d",
        sampling_params={}, created=0.0, touched=0.0,
    )  # fmt: skip


def test_its_state_can_be_read_whatever_the_logprobs_are() -> None:
    """JSON has no infinity, nor NaN: as in vLLM's own answers, -9999 stands for what is less."""
    held = record()
    row = {1: SimpleNamespace(logprob=-0.5), 2: SimpleNamespace(logprob=-math.inf)}
    row[3] = SimpleNamespace(logprob=math.nan)
    held.add_output(SimpleNamespace(token_ids=[1], text="", logprobs=[row], finish_reason=None), delta=True)
    sent = held.state(expires=1.0).model_dump_json()
    assert HandoffState.model_validate_json(sent).output_logprobs == [{1: -0.5, 2: -9999.0, 3: -9999.0}]


@given(outputs=OUTPUTS, delta=st.booleans())
def test_its_size_is_that_of_what_it_holds(outputs: list[SimpleNamespace], delta: bool) -> None:
    held = record()
    held.prompt_token_ids.extend(range(5))
    ids: list[int] = []
    rows: list[dict[int, SimpleNamespace]] = []
    text = ""
    for output in outputs:
        ids, rows, text = ids + output.token_ids, rows + output.logprobs, text + output.text
        whole = SimpleNamespace(token_ids=ids, logprobs=rows, text=text, finish_reason=None)
        held.add_output(output if delta else whole, delta=delta)
    assert held.output_token_ids.tolist() == ids
    assert "".join(held.text) == text
    assert (held.output_logprobs or []) == [dict.fromkeys(row, -0.5) for row in rows]
    characters = sum(len(text) for text in held.text)
    assert held.size == 5 + len(ids) + characters // 4 + _IDS_PER_LOGPROB * sum(map(len, rows))
