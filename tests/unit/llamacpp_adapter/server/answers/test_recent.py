"""The newest answers: bounded, newest first."""

from pdd_llamacpp_adapter.server.answers.recent import RecentAnswers
from pdd_llamacpp_adapter.server.wire.failures import INTERNAL


def test_the_newest_hundred_are_kept_newest_first():
    times = iter(range(1000))
    recent = RecentAnswers(clock=lambda: next(times))
    for _ in range(250):
        recent.add(None, INTERNAL)
    told = recent.list()
    assert [one["ended"] for one in told] == list(range(249, 149, -1))
    assert {one["error"] for one in told} == {INTERNAL.code or INTERNAL.type}
