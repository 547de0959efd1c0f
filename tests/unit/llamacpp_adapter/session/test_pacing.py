import math

import pytest

from pdd_core import hookimpl
from pdd_core.errors import ConfigurationError
from pdd_core.hookspecs import PaceRequest, PaceTarget
from pdd_core.plugins import Policies
from pdd_llamacpp_adapter.session.pacing import PACINGS, GuardedPacer, default_policies, recent_step

STATE = {
    "buffered": 3,
    "complete": False,
    "cloud_left": 5,
    "cloud_step": 0.02,
    "ready_in": 2.0,
    "device_step": None,
    "idle": 0.0,
}


class Plugin:
    def __init__(self, due):
        self.due = due

    @hookimpl
    def pdd_pace(self):
        return self


def guard(due, name="probe"):
    policies = Policies({name: Plugin(due)}, allow=())
    return GuardedPacer.resolve(policies, PaceRequest(1, 10), PaceTarget(10.0))


def test_the_first_pacing_named_is_the_default():
    assert PACINGS == ("adaptive", "fixed", "ewma", "reading", "unlimited")
    assert default_policies() is default_policies()
    assert "adaptive" in default_policies().describe()


@pytest.mark.parametrize("name", PACINGS)
def test_a_pacing_is_chosen_by_its_name(name):
    pacer = GuardedPacer.resolve(default_policies(name), PaceRequest(1, 10), PaceTarget(10.0))
    assert name in default_policies(name).describe()
    assert pacer.due(1.0, shown=0, shown_at=None, **STATE) == 1.0
    assert (pacer.due(1.0, shown=1, shown_at=1.0, **STATE) == 1.0) is (name == "unlimited")


def test_an_unknown_pacing_names_the_choices():
    with pytest.raises(ConfigurationError, match="adaptive, fixed, ewma, reading, unlimited, not 'brisk'"):
        default_policies("brisk")


def test_a_pacer_is_given_everything():
    seen = {}
    guard(lambda now, **state: seen.update(state) or now).due(1.0, shown=2, shown_at=0.5, **STATE)
    assert seen == {"shown": 2, "shown_at": 0.5, **STATE}


def test_the_first_token_is_due_at_once_whatever_the_pacer_says():
    assert guard(lambda now, **_: now + 60).due(1.0, shown=0, shown_at=None, **STATE) == 1.0


def test_a_wait_that_ends_shows_the_token_even_if_the_pacer_would_go_on_waiting():
    pacer = guard(lambda now, **_: now + 1)
    assert pacer.due(0.0, shown=1, shown_at=0.0, **STATE) == 1.0
    assert pacer.due(0.5, shown=1, shown_at=0.0, **STATE) == 1.5, (
        "asked again before the end: the last result counts"
    )
    assert pacer.due(1.5, shown=1, shown_at=0.0, **STATE) == 1.5
    assert pacer.due(1.5, shown=2, shown_at=1.5, **STATE) == 2.5


@pytest.mark.parametrize("value", [math.nan, math.inf, "soon", ValueError("boom")])
def test_a_pacer_that_fails_once_is_not_asked_again(value, caplog):
    calls = []

    def due(now, **_):
        calls.append(now)
        if isinstance(value, Exception):
            raise value
        return value

    pacer = guard(due, "broken")
    assert [pacer.due(at, shown=1, shown_at=0.0, **STATE) for at in (1.0, 2.0)] == [1.0, 2.0]
    assert calls == [1.0]
    assert "'broken'" in caplog.text


def test_the_recent_step_is_the_mean_of_the_latest_arrivals():
    assert recent_step([]) is None
    assert recent_step([1.0]) is None
    assert recent_step([1.0, 1.0]) == 0.0
    assert recent_step([0.0, 0.1, 0.4]) == pytest.approx(0.2)
    assert recent_step([0.0, 50.0, *(50.0 + 0.1 * index for index in range(1, 16))]) == pytest.approx(0.1)
