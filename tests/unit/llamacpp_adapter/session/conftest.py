from __future__ import annotations

from types import SimpleNamespace

import anyio
import pytest
from still_time import StillTimeLoop


@pytest.fixture
def anyio_backend(monkeypatch):
    """A loop in which waiting takes no time. Sessions take their time from it."""
    monkeypatch.setattr(
        "pdd_llamacpp_adapter.session.live_answer.time", SimpleNamespace(monotonic=anyio.current_time)
    )
    return "asyncio", {"loop_factory": StillTimeLoop}
