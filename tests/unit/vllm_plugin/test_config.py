from types import SimpleNamespace

import pytest

from pdd_core.errors import ConfigurationError
from pdd_core.planner.plan_file import PlanFile
from pdd_vllm_plugin.config import PDDConfig


def read(**settings):
    return PDDConfig.from_vllm(SimpleNamespace(additional_config={"pdd": settings}))


def plan(folder, **plugin):
    file = folder / "plan.json"
    PlanFile(plugin=plugin).save(file)
    return str(file)


def test_a_plan_sets_what_is_not_given(tmp_path):
    file = plan(tmp_path, default_decode_budget=37, ttl_s=60.0)
    config = read(plan_file=file, ttl_s=90.0)
    assert (config.default_decode_budget, config.ttl_s) == (37, 90.0)


def test_a_plan_with_an_unknown_setting_is_refused_by_its_name(tmp_path):
    with pytest.raises(ConfigurationError, match=r"additional_config\.pdd\.speed is unknown"):
        read(plan_file=plan(tmp_path, speed=1))


def test_a_plan_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.json"):
        read(plan_file=str(tmp_path / "none.json"))
