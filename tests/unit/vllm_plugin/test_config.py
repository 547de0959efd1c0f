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


def test_kv_handover_is_on_where_it_can_be_and_packs_keys_with_more_bits():
    config = read()
    assert (config.kv, config.kv_key_type, config.kv_value_type) == ("auto", "q8_0", "q4_0")
    assert (config.kv_mbit_s, config.kv_request_mbit_s) == (None, None)


def test_the_settings_of_kv_handover_are_taken():
    config = read(kv="on", kv_key_type="f16", kv_value_type="q8_0", kv_mbit_s=100, kv_request_mbit_s=12.5)
    assert (config.kv, config.kv_key_type, config.kv_value_type) == ("on", "f16", "q8_0")
    assert (config.kv_mbit_s, config.kv_request_mbit_s) == (100, 12.5)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("kv", True, "one of auto, on, off"),
        ("kv", "always", "one of auto, on, off"),
        ("kv_key_type", "q5_1", "one of f16, q8_0, q4_0"),
        ("kv_value_type", None, "one of f16, q8_0, q4_0"),
        ("kv_shelf_bytes", 0, "above 0"),
        ("kv_shelf_bytes", 1.5, "above 0"),
        ("kv_ttl_s", -1, "above 0"),
        ("kv_mbit_s", 0, "a number above 0, or null"),
        ("kv_mbit_s", float("nan"), "a number above 0, or null"),
        ("kv_request_mbit_s", "8", "a number above 0, or null"),
        ("kv_request_mbit_s", True, "a number above 0, or null"),
        ("kv_max_prompt_tokens", None, "above 0"),
    ],
)
def test_a_wrong_setting_of_kv_handover_is_refused_by_its_name(name, value, wanted):
    with pytest.raises(ConfigurationError, match=rf"additional_config\.pdd\.{name} must be {wanted}, not"):
        read(**{name: value})
