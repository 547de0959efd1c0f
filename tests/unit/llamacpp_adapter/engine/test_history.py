from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.history import common_prefix


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_a_common_prefix_is_common_and_the_longest(ours, theirs):
    length = common_prefix(ours, theirs)
    assert ours[:length] == theirs[:length]
    assert ours[: length + 1] != theirs[: length + 1] or length == min(len(ours), len(theirs))
