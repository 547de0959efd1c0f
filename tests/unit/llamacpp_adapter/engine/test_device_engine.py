"""Where the engine cuts what it judges, and whose chat template it takes."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ConfigurationError
from pdd_core.llama_params import LlamaParams
from pdd_llamacpp_adapter.engine.device_engine import _cuts, _template


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


def test_a_template_comes_from_its_setting_or_its_file(tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}")
    assert _template(LlamaParams()) is None
    assert _template(LlamaParams.of(chat_template="x")) == "x"
    assert _template(LlamaParams.of(chat_template_file=file)) == "{{ messages }}"
    with pytest.raises(ConfigurationError, match="chat_template_file"):
        _template(LlamaParams.of(chat_template_file=tmp_path / "none"))
