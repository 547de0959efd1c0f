from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pdd_cli.convert.agreement import BOUND, Agreement
from pdd_core.errors import ModelError

GOOD = Agreement(prompts=4, same_next=4, mean=BOUND, most=1.0)


def test_what_rounding_explains_passes(tmp_path) -> None:
    GOOD.check()
    GOOD.save(tmp_path)
    assert Agreement.of(tmp_path) == GOOD


@pytest.mark.parametrize("mean", [BOUND * 1.01, math.inf, math.nan])
def test_what_rounding_does_not_explain_is_refused(mean: float) -> None:
    with pytest.raises(ModelError, match=r"the two forms disagree: .* behind 4 of 4 prompts"):
        replace(GOOD, mean=mean).check()
