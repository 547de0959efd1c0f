import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import InvalidOptIn
from pdd_core.kept_fields import MAX_KEPT_IDS, MAX_STOP_CHARS, check_kept_fields
from pdd_core.optin import (
    FOREIGN_TOKENIZER,
    MAX_DECODE_BUDGET,
    MAX_PROTECTED,
    OptIn,
    check_one_answer,
    check_protected,
    check_tokenizer_digest,
    parse_opt_in,
)

ID = uuid.uuid4().hex


@pytest.mark.parametrize("xargs", [None, {}, {"other": 1}])
def test_a_request_without_pdd_fields_has_not_opted_in(xargs):
    assert parse_opt_in(xargs) is None


def test_all_three_fields_are_read():
    xargs = {"pdd_handoff": ID, "pdd_decode_budget": 24, "pdd_refine_ratio": 0.5, "mine": "too"}
    assert parse_opt_in(xargs) == OptIn(ID, 24, 0.5)


@pytest.mark.parametrize("value", [0, -1, "5", 1e9, 10**9, MAX_DECODE_BUDGET + 1, True, None, 1.5, [3]])
def test_a_wrong_budget_is_named(value):
    with pytest.raises(InvalidOptIn, match="pdd_decode_budget must be an integer") as caught:
        parse_opt_in({"pdd_handoff": ID, "pdd_decode_budget": value})
    assert caught.value.param == "vllm_xargs.pdd_decode_budget"


@pytest.mark.parametrize("value", [0, 2, -0.5, "0.5", True, None, float("nan"), float("inf")])
def test_a_wrong_ratio_is_named(value):
    with pytest.raises(InvalidOptIn) as caught:
        parse_opt_in({"pdd_handoff": ID, "pdd_refine_ratio": value})
    assert caught.value.param == "vllm_xargs.pdd_refine_ratio"


@pytest.mark.parametrize(
    "value", ["", "short", "x" * 129, "x" * 15, "spaces are not allowed", "../../etc/passwd-x", 7, None]
)
def test_a_wrong_id_is_named(value):
    with pytest.raises(InvalidOptIn) as caught:
        parse_opt_in({"pdd_handoff": value})
    assert caught.value.param == "vllm_xargs.pdd_handoff"


def test_an_id_is_required_with_a_budget():
    with pytest.raises(InvalidOptIn, match="pdd_handoff is required"):
        parse_opt_in({"pdd_decode_budget": 4})


def test_a_misspelt_field_is_named_with_the_right_ones():
    with pytest.raises(InvalidOptIn, match=r"pdd_decod_budget is not a field.*pdd_decode_budget") as caught:
        parse_opt_in({"pdd_handoff": ID, "pdd_decod_budget": 4})
    assert caught.value.param == "vllm_xargs.pdd_decod_budget"


def test_a_huge_value_is_not_echoed_whole():
    with pytest.raises(InvalidOptIn) as caught:
        parse_opt_in({"pdd_handoff": ID, "pdd_decode_budget": "9" * 100_000})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("n", [None, 1])
def test_one_answer_is_fine(n):
    check_one_answer(n)


@pytest.mark.parametrize("n", [0, 2, "1"])
def test_more_than_one_answer_is_refused(n):
    with pytest.raises(InvalidOptIn) as caught:
        check_one_answer(n)
    assert caught.value.param == "n"


@given(
    handoff_id=st.uuids().map(lambda u: u.hex),
    budget=st.none() | st.integers(1, MAX_DECODE_BUDGET),
    ratio=st.none() | st.floats(0, 1, exclude_min=True),
)
def test_what_one_side_sends_the_other_reads(handoff_id, budget, ratio):
    opt_in = OptIn(handoff_id, budget, ratio)
    assert parse_opt_in(opt_in.xargs()) == opt_in


def test_the_fields_of_the_budget_policies_go_both_ways():
    opt_in = OptIn("a" * 32, 40, least_budget=12, tenant="batch", extends="b" * 32)
    assert parse_opt_in(opt_in.xargs()) == opt_in


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"pdd_least_budget": 0}, "pdd_least_budget must be an integer from 1"),
        ({"pdd_least_budget": True}, "pdd_least_budget must be an integer from 1"),
        (
            {"pdd_decode_budget": 5, "pdd_least_budget": 6},
            r"pdd_least_budget must be at most pdd_decode_budget \(5\)",
        ),
        ({"pdd_tenant": ""}, "pdd_tenant must have 1 to 64 characters"),
        ({"pdd_tenant": "*"}, "pdd_tenant may only have the characters"),
        ({"pdd_tenant": 5}, "pdd_tenant must be a string"),
        ({"pdd_extends": "short"}, "pdd_extends must have 16 to 128 characters"),
    ],
)
def test_a_wrong_field_of_the_budget_policies_is_named(fields, named):
    with pytest.raises(InvalidOptIn, match=named) as caught:
        parse_opt_in({"pdd_handoff": "a" * 32, **fields})
    assert caught.value.param == f"vllm_xargs.{list(fields)[-1]}"


@pytest.mark.parametrize(("given", "wish"), [(1, True), (True, True), (0, False)])
def test_the_kv_cache_is_asked_for_by_a_flag(given, wish):
    opt_in = parse_opt_in({"pdd_handoff": ID, "pdd_kv": given})
    assert opt_in.kv is wish
    assert ("pdd_kv" in opt_in.xargs()) is wish


@pytest.mark.parametrize("value", [2, -1, "1", None, 1.0, [1]])
def test_a_wrong_flag_is_named(value):
    with pytest.raises(InvalidOptIn, match="pdd_kv must be true or false") as caught:
        parse_opt_in({"pdd_handoff": ID, "pdd_kv": value})
    assert caught.value.param == "vllm_xargs.pdd_kv"


def test_the_kv_cache_is_not_asked_for_without_a_handoff():
    with pytest.raises(InvalidOptIn, match="pdd_handoff is required"):
        parse_opt_in({"pdd_kv": 1})


@pytest.mark.parametrize("spans", [0, 1, MAX_PROTECTED])
def test_so_many_spans_may_be_protected(spans):
    bounds = list(range(2 * spans))
    assert len(parse_opt_in({"pdd_handoff": ID, "pdd_protect": bounds}).protect) == spans


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (list(range(2 * MAX_PROTECTED + 2)), r"must have at most 4,096 spans, not 4,097"),
        (["x" * 1000] * 1_000_000, "must have at most 4,096 spans"),
        ([0, 2**31], "increasing positions below 2147483648"),
        ([0, 10**400], "increasing positions"),
        ([5, 5], "increasing positions"),
        ([1, 2, 3], "increasing positions"),
        ("x" * 100_000, "increasing positions"),
    ],
)
def test_protected_spans_that_cannot_be_are_named_in_a_few_words(value, problem):
    with pytest.raises(InvalidOptIn, match=f"pdd_protect {problem}" if "most" in problem else problem) as caught:
        parse_opt_in({"pdd_handoff": ID, "pdd_protect": value})
    assert caught.value.param == "vllm_xargs.pdd_protect"
    assert len(str(caught.value)) < 300


def test_a_protected_span_ends_within_the_prompt():
    check_protected(((0, 2), (5, 10)), 10)
    check_protected((), 0)
    with pytest.raises(InvalidOptIn, match="must end within the prompt, which has 9 tokens, not at 10") as caught:
        check_protected(((0, 2), (5, 10)), 9)
    assert caught.value.param == "vllm_xargs.pdd_protect"


@pytest.mark.parametrize(
    ("stop", "bad_words", "param"),
    [
        (None, None, None),
        ("x" * MAX_STOP_CHARS, None, None),
        (["x"] * 4, ["y" * (MAX_STOP_CHARS - 4)], None),
        ([5, None, "x"], {"no": "list"}, None),  # vLLM's to refuse
        ("x" * (MAX_STOP_CHARS + 1), None, "stop"),
        (["x" * MAX_STOP_CHARS, "x"], None, "stop"),
        ("x", ["y"] * MAX_STOP_CHARS, "bad_words"),
        (None, ["y" * (MAX_STOP_CHARS + 1)], "bad_words"),
        ([""] * (MAX_STOP_CHARS + 1), None, "stop"),
    ],
)
def test_texts_that_are_kept_are_bounded_together(stop, bad_words, param):
    if param is None:
        check_kept_fields({"stop": stop, "bad_words": bad_words})
        return
    with pytest.raises(InvalidOptIn, match="at most 16,384 characters") as caught:
        check_kept_fields({"stop": stop, "bad_words": bad_words})
    assert caught.value.param == param


def test_anthropics_name_of_it_counts_as_well():
    check_kept_fields({})
    with pytest.raises(InvalidOptIn) as caught:
        check_kept_fields({"stop_sequences": ["x" * MAX_STOP_CHARS, "y"]})
    assert caught.value.param == "stop_sequences"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop_token_ids": [7] * MAX_KEPT_IDS}, None),
        ({"stop_token_ids": 5, "allowed_token_ids": None, "logit_bias": "7"}, None),  # vLLM's to refuse
        ({"stop_token_ids": [7] * (MAX_KEPT_IDS + 1)}, "stop_token_ids"),
        ({"stop_token_ids": [7], "allowed_token_ids": [7] * MAX_KEPT_IDS}, "allowed_token_ids"),
        ({"allowed_token_ids": [7], "logit_bias": dict.fromkeys(range(MAX_KEPT_IDS), 1.0)}, "logit_bias"),
    ],
)
def test_ids_that_are_kept_are_bounded_together(fields, param):
    if param is None:
        check_kept_fields(fields)
        return
    with pytest.raises(InvalidOptIn, match="at most 131,072 entries together") as caught:
        check_kept_fields(fields)
    assert caught.value.param == param


def test_the_name_of_a_field_is_not_echoed_whole():
    with pytest.raises(InvalidOptIn) as caught:
        parse_opt_in({"pdd_handoff": ID, "pdd_" + "x" * 100_000: 1})
    assert len(str(caught.value)) + len(caught.value.param) < 500


DIGEST = "0123456789abcdef" * 4


def test_the_digest_of_a_tokenizer_goes_both_ways():
    opt_in = OptIn(ID, tokenizer=DIGEST)
    assert parse_opt_in(opt_in.xargs()) == opt_in


def test_a_digest_alone_does_not_opt_in():
    assert parse_opt_in({"pdd_tokenizer": DIGEST}) is None
    with pytest.raises(InvalidOptIn, match="pdd_handoff"):
        parse_opt_in({"pdd_tokenizer": DIGEST, "pdd_decode_budget": 3})


@pytest.mark.parametrize(
    "value", ["", DIGEST[1:], f"{DIGEST}0", DIGEST.upper(), f"{DIGEST[1:]}\n", "g" * 64, 7, None]
)
def test_what_is_no_digest_is_named(value):
    with pytest.raises(InvalidOptIn, match="pdd_tokenizer must have 64 hexadecimal digits") as caught:
        parse_opt_in({"pdd_handoff": ID, "pdd_tokenizer": value})
    with pytest.raises(InvalidOptIn, match="pdd_tokenizer must have 64 hexadecimal digits"):
        check_tokenizer_digest({"pdd_tokenizer": value}, DIGEST)
    assert (caught.value.param, caught.value.code) == ("vllm_xargs.pdd_tokenizer", None)


def test_a_foreign_digest_has_a_code_of_its_own():
    check_tokenizer_digest(None, DIGEST)
    check_tokenizer_digest({"other": 1}, DIGEST)
    check_tokenizer_digest({"pdd_tokenizer": DIGEST}, DIGEST)
    with pytest.raises(InvalidOptIn, match=f"which is {DIGEST}") as caught:
        check_tokenizer_digest({"pdd_tokenizer": "f" * 64}, DIGEST)
    assert (caught.value.param, caught.value.code) == ("vllm_xargs.pdd_tokenizer", FOREIGN_TOKENIZER)
