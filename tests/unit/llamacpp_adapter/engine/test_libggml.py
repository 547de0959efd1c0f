from __future__ import annotations

from types import SimpleNamespace

import pytest

from pdd_llamacpp_adapter.engine.libggml import Ggml


def test_a_function_comes_from_the_first_library_that_has_it() -> None:
    ggml = Ggml([SimpleNamespace(first=1), SimpleNamespace(first=2, second=3)])
    assert (ggml.first, ggml.second) == (1, 3)


def test_a_function_that_no_library_has_is_told_by_name() -> None:
    with pytest.raises(AttributeError, match="gguf_free"):
        _ = Ggml([SimpleNamespace()]).gguf_free
