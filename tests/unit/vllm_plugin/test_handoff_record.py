from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.handoff import HandoffState, Refinement
from pdd_core.optin import OptIn
from pdd_vllm_plugin.handoff_record import HandoffRecord

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


EMPTY = 4096
"""Bytes of a record without anything in it, at most: there are `max_handoffs`."""


def record(*, sampling_params: Mapping[str, object] | None = None, **opt_in: object) -> HandoffRecord:
    return HandoffRecord(
        opt_in=OptIn("a" * 32, **opt_in), completion_id="c", engine_request_id="e", model="m", tokenizer="d",
        sampling_params=sampling_params or {}, created=0.0, touched=0.0,
    )  # fmt: skip


def memory_of(value: object) -> int:
    """All that hangs on a value, by Python's own word; what is in it twice counts once."""
    seen: dict[int, object] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen[id(one)] = one
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
        elif isinstance(one, Refinement):
            waiting += one.__dict__.values()
        elif is_dataclass(one):
            waiting += [getattr(one, name) for name in type(one).__slots__]
    return sum(map(sys.getsizeof, seen.values()))


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
    assert memory_of(held) <= 4 * held.size + EMPTY
    held.end("stop")
    assert "".join(held.text) == text
    assert memory_of(held) <= 4 * held.size + EMPTY


BIG = range(1_000_000, 1_020_000)


@pytest.mark.parametrize(
    "given",
    [
        {"stop": ["é" * 5_000, "x"]},
        {"bad_words": [f"word {number}" for number in range(1000)]},
        {"stop_token_ids": list(BIG)},
        {"allowed_token_ids": list(BIG)},
        {"logit_bias": {token: token / 3 for token in BIG}},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_the_client_gave_counts_once_it_is_kept(given: dict[str, object]) -> None:
    held = record(sampling_params=given)
    assert memory_of(held) <= 4 * held.size + EMPTY
    assert 4 * held.size <= 1.2 * memory_of(held)


def test_protected_spans_count_in_the_wish_and_in_the_refined_prompt() -> None:
    spans = tuple((position, position + 1) for position in range(1_000_000, 1_010_000, 2))
    held = record(protect=spans, refine_ratio=0.5)
    wish = held.size
    assert memory_of(held) <= 4 * wish + EMPTY
    kept = list(range(2_000_000, 2_010_000))
    held.refinement = Refinement(
        method="m", ratio=0.5, kept_indices=kept, kept_token_ids=[token + 20_000 for token in kept],
        protected=[(start + 20_000, end + 20_000) for start, end in spans], window=1, layers=[1],
    )  # fmt: skip
    assert 4 * wish < memory_of(held) <= 4 * held.size + EMPTY


def test_the_text_of_an_ended_answer_is_one_string() -> None:
    held = record()
    for number in range(1000):
        text = f"{number:04}"
        output = SimpleNamespace(token_ids=[number], text=text, logprobs=None, finish_reason=None)
        held.add_output(output, delta=True)
    running = held.size
    held.end("stop")
    assert (len(held.text), len(held.text[0])) == (1, 4000)
    assert held.size < running / 5
