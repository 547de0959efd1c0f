"""Where a slot cuts what it judges."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.slot import _cuts


@given(
    count=st.integers(1, 300),
    asked=st.sets(st.integers(0, 299)),
    n_batch=st.integers(1, 64),
    most_outputs=st.integers(2, 32),
)
def test_no_batch_has_too_many_tokens_or_logits_of_too_many(count, asked, n_batch, most_outputs):
    following = {index: None for index in sorted(asked) if index < count}
    cuts = list(_cuts(count, following, SimpleNamespace(n_batch=n_batch, most_outputs=most_outputs)))
    assert [index for begin, end in cuts for index in range(begin, end)] == list(range(count))
    for begin, end in cuts:
        assert end - begin <= n_batch
        assert len({index for index in following if begin <= index < end} | {end - 1}) <= most_outputs
