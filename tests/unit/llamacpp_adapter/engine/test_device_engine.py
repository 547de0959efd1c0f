"""Whose chat template the engine takes."""

import pytest

from pdd_core.errors import ConfigurationError
from pdd_core.llama_params import LlamaParams
from pdd_llamacpp_adapter.engine.device_engine import _template


def test_a_template_comes_from_its_setting_or_its_file(tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}")
    assert _template(LlamaParams()) is None
    assert _template(LlamaParams.of(chat_template="x")) == "x"
    assert _template(LlamaParams.of(chat_template_file=file)) == "{{ messages }}"
    with pytest.raises(ConfigurationError, match="chat_template_file"):
        _template(LlamaParams.of(chat_template_file=tmp_path / "none"))
