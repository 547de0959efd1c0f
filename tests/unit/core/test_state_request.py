import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import InvalidOptIn
from pdd_core.state_request import BY_POST, StateRequest, Verb, parse_state_request

ID = "a" * 32

requests = st.one_of(
    st.just(StateRequest(Verb.INFO)),
    st.builds(StateRequest, st.just(Verb.VOCABULARY), start=st.integers(0, 300_000)),
    st.builds(
        StateRequest,
        st.just(Verb.READ),
        id=st.just(ID),
        after=st.integers(0, 9),
        wait=st.none() | st.floats(0, 60),
    ),
    st.builds(StateRequest, st.just(Verb.CANCEL), id=st.just(ID), used=st.none() | st.integers(0, 9)),
    st.builds(
        StateRequest,
        st.just(Verb.CELLS),
        id=st.just(ID),
        begin=st.integers(0, 9),
        end=st.none() | st.integers(0, 9),
    ),
)


@given(requests)
def test_what_is_sent_is_read(request):
    assert parse_state_request({"other": 1, **request.xargs()}) == request


@pytest.mark.parametrize("xargs", [{}, {"mine": 1}, {"pdd_handoff": ID}])
def test_other_fields_ask_nothing(xargs):
    assert parse_state_request(xargs) is None


@pytest.mark.parametrize(
    ("xargs", "param"),
    [
        ({"pdd_info": 0}, "pdd_info"),
        ({"pdd_vocabulary": -1}, "pdd_vocabulary"),
        ({"pdd_vocabulary": True}, "pdd_vocabulary"),
        ({"pdd_read": "short"}, "pdd_read"),
        ({"pdd_read": ID, "pdd_used": 1}, "pdd_used"),
        ({"pdd_read": ID, "pdd_after": 1.5}, "pdd_after"),
        ({"pdd_read": ID, "pdd_wait": float("nan")}, "pdd_wait"),
        ({"pdd_read": ID, "pdd_wait": 61}, "pdd_wait"),
        ({"pdd_read": ID, "pdd_wait": True}, "pdd_wait"),
        ({"pdd_cancel": ID, "pdd_used": -1}, "pdd_used"),
        ({"pdd_cancel": ID, "pdd_read": ID}, "pdd_cancel"),
        ({"pdd_cancel": ID, "pdd_handoff": ID}, "pdd_handoff"),
        ({"pdd_cells": "short"}, "pdd_cells"),
        ({"pdd_cells": ID, "pdd_from": -1}, "pdd_from"),
        ({"pdd_cells": ID, "pdd_to": 1.0}, "pdd_to"),
        ({"pdd_cells": ID, "pdd_to": True}, "pdd_to"),
        ({"pdd_cells": ID, "pdd_wait": 1}, "pdd_wait"),
        ({"pdd_read": ID, "pdd_to": 1}, "pdd_to"),
        ({"pdd_read": ID, "pdd_wait": 10**400}, "pdd_wait"),
        ({"pdd_read": ID, "pdd_after": 2**31}, "pdd_after"),
        ({"pdd_cancel": ID, "pdd_used": 10**400}, "pdd_used"),
        ({"pdd_vocabulary": 2**31}, "pdd_vocabulary"),
        ({"pdd_cells": ID, "pdd_from": 2**31}, "pdd_from"),
        ({"pdd_cells": ID, "pdd_to": 10**400}, "pdd_to"),
    ],
)
def test_a_wrong_question_is_refused_by_the_name_of_its_field(xargs, param):
    with pytest.raises(InvalidOptIn) as refused:
        parse_state_request(xargs)
    assert refused.value.param == f"vllm_xargs.{param}"


def test_the_name_of_a_field_is_not_echoed_whole():
    with pytest.raises(InvalidOptIn) as refused:
        parse_state_request({"pdd_read": ID, "pdd_" + "x" * 100_000: 1})
    assert len(str(refused.value)) + len(refused.value.param) < 300


def test_each_question_that_goes_by_post_has_a_field_of_its_own_name():
    assert all(verb.startswith("pdd_") for verb in BY_POST)
