from __future__ import annotations

from types import SimpleNamespace

import pytest
from kv_cells import geometry

from pdd_cli.kv_handover import cells_of
from pdd_core.kv.geometry import NoKV

GEOMETRY = geometry()


def told(kv, difference: str | None = None):
    device = SimpleNamespace(kv=SimpleNamespace(differs_from=lambda _: difference))
    return cells_of(SimpleNamespace(kv=kv), device)


def test_cells_that_fit_the_device_are_described() -> None:
    assert told(GEOMETRY) is GEOMETRY


@pytest.mark.parametrize(
    ("kv", "difference", "why"),
    [
        (None, None, "the plugin in the cloud does not know how to"),
        (NoKV(reason="not_enabled", message="switched off"), None, "switched off"),
        (GEOMETRY, "number of layers: 30 here, 2 there", "number of layers: 30 here, 2 there"),
    ],
)
def test_why_there_are_none_is_told(kv, difference: str | None, why: str) -> None:
    assert told(kv, difference) == why
