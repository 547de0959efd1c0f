"""What is said at the start: the hardware always, warnings where they matter."""

from types import SimpleNamespace

from pdd_core.env import ServeSettings
from pdd_llamacpp_adapter.engine.hardware.placement import Placement
from pdd_llamacpp_adapter.runtime.hardware import hardware_lines, hardware_warnings


def engine(*, advice="", reason="values differ"):
    kv = SimpleNamespace(shape=None, reason=reason)
    placement = Placement("CPU", (), 0, 31, advice=advice)
    return SimpleNamespace(placement=placement, threads=(2, 4), kv=kv)


def warnings(settings, **fields):
    return list(hardware_warnings(engine(**fields), settings))


def test_the_lines_name_the_threads():
    assert hardware_lines(engine())[-1] == "CPU threads: 2, for prompts 4"


def test_a_sound_device_is_not_warned_of():
    assert warnings(ServeSettings()) == []
    assert warnings(ServeSettings(cloud_url="http://h:1/v1")) == []


def test_short_memory_is_told_with_what_to_do():
    assert warnings(ServeSettings(), advice="a smaller n_ctx") == ["a smaller n_ctx"]


def test_another_model_than_the_clouds_is_told_where_there_is_a_cloud():
    lora = {"lora": "a.gguf", "rope_scale": 2.0}
    [said] = warnings(ServeSettings(cloud_url="http://h:1/v1", **lora))
    assert said.startswith("lora, rope_scale make the device's model another one")
    assert warnings(ServeSettings(**lora)) == []


def test_why_no_cells_are_taken_is_told_where_they_are_asked_for():
    [said] = warnings(ServeSettings(cloud_url="http://h:1/v1", kv="auto"))
    assert said == "the device takes no KV cache from the cloud: values differ"
