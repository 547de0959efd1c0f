import itertools

from hypothesis import given
from hypothesis import strategies as st

from pdd_core.hookspecs import PaceRequest, PaceTarget
from pdd_core.plugins import Policies
from pdd_core.policies.pacing import FixedRate, FixedRatePacing


def show(rate, arrivals):
    """Show tokens that arrive at the given times as the token loop does: wait for the token, then for its slot."""
    pacer, shown = FixedRate(rate), []
    for arrival in arrivals:
        now = max(arrival, shown[-1] if shown else arrival)
        shown.append(max(now, pacer.due(now, buffered=1, complete=False, ready_in=None)))
    return shown


arrivals = st.lists(st.floats(0, 100), min_size=1, max_size=40).map(sorted)


@given(arrivals, st.floats(1, 100))
def test_no_token_comes_before_it_is_there_nor_faster_than_the_rate(times, rate):
    shown = show(rate, times)
    assert shown[0] == times[0]
    assert all(at >= arrived for at, arrived in zip(shown, times, strict=True))
    assert all(later - earlier >= 1 / rate - 1e-9 for earlier, later in itertools.pairwise(shown))


@given(arrivals, st.floats(1, 100))
def test_a_token_waits_for_nothing_but_its_slot(times, rate):
    shown = show(rate, times)
    for before, arrived, at in zip(shown, times[1:], shown[1:], strict=False):
        assert at <= max(arrived, before + 1 / rate) + 1e-9


@given(arrivals)
def test_an_unlimited_rate_passes_tokens_through(times):
    assert show(float("inf"), times) == times


def test_the_hook_makes_a_pacer_per_request():
    policies = Policies({"fixed": FixedRatePacing()}, allow=[])
    arguments = {"request": PaceRequest(10, 10), "target": PaceTarget(rate=2.0)}
    first, name = policies.first_result("pdd_pace", lambda pacer: hasattr(pacer, "due"), **arguments)
    second, _ = policies.first_result("pdd_pace", lambda pacer: hasattr(pacer, "due"), **arguments)
    assert name == "fixed"
    assert first is not second
    assert first.due(5.0, buffered=1, complete=False, ready_in=None) == 5.0
    assert first.due(5.1, buffered=1, complete=False, ready_in=None) == 5.5
