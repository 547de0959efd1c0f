from __future__ import annotations

import math

import pytest
from cells_by_hand import BY_HEAD, geometry

from pdd_llamacpp_adapter.session.cells_check import LEAST_SIMILARITY, CellsChecks

CLOUD = "http://cloud/v1"


@pytest.mark.parametrize(
    ("similarity", "passes"),
    [(1.0, True), (LEAST_SIMILARITY, True), (LEAST_SIMILARITY - 0.001, False), (-1.0, False), (math.nan, False)],
)
def test_what_is_alike_passes(similarity, passes, caplog):
    checks = CellsChecks()
    assert checks.passed(CLOUD, geometry()) is None
    assert checks.compared(CLOUD, geometry(), similarity) is passes
    assert checks.passed(CLOUD, geometry()) is passes
    assert len(caplog.records) == (not passes)


def test_each_cloud_and_geometry_is_compared_for_itself():
    checks = CellsChecks()
    checks.compared(CLOUD, geometry(), 1.0)
    assert checks.passed("http://another/v1", geometry()) is None
    assert checks.passed(CLOUD, geometry(BY_HEAD)) is None
    assert checks.passed(CLOUD, geometry(key_type="q8_0")) is None
