from types import SimpleNamespace

import pytest

from pdd_core.errors import UnsupportedDeployment
from pdd_vllm_plugin.kv.rope import rope_geometry


def rotary(*, dim=64, halves=True):
    return SimpleNamespace(is_neox_style=halves, rotary_dim=dim)


def rope(modules=None, **config):
    return rope_geometry(
        SimpleNamespace(**config), [SimpleNamespace(), *([rotary()] if modules is None else modules)]
    )


LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_type": None, "type": "llama3"}},
        {"rope_parameters": {kind: {**LLAMA3, "rope_theta": 5e5} for kind in ("full", "other")}},
    ],
)
def test_each_form_of_the_configuration_is_read(config):
    found = rope(**config)
    assert (found.theta, found.scaling, found.factor, found.rotary_dim) == (5e5, "llama3", 32.0, 64)
    assert found.pairs == "halves"


def test_a_plain_model_has_no_scaling():
    found = rope([rotary(dim=32), rotary(dim=32)], rope_theta=1e4, rope_scaling=None)
    assert (found.theta, found.scaling, found.factor, found.rotary_dim) == (1e4, "default", 1.0, 32)


@pytest.mark.parametrize(
    ("modules", "config", "named"),
    [
        ([], {}, "no rotary positions"),
        ([rotary(halves=False)], {}, "GPT-J"),
        ([rotary(), rotary(dim=32)], {}, "several kinds"),
        (
            None,
            {"rope_parameters": {"full": {"rope_theta": 1.0}, "sliding": {"rope_theta": 2.0}}},
            "several kinds",
        ),
    ],
)
def test_other_positions_are_refused_by_name(modules, config, named):
    with pytest.raises(UnsupportedDeployment, match=named):
        rope(modules, **config)
