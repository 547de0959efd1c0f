"""A device starts and plans with whatever is in the files of what it learnt."""

import json
import math
from copy import deepcopy

import pytest
from example_count import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from pdd_core.env import ServeSettings
from pdd_core.planner.plan_file import PlanFile
from pdd_core.planner.planner import Planner
from pdd_core.planner.profiles import MeasuredDevice
from pdd_core.planner.types import Goals, PlanRequest
from pdd_llamacpp_adapter.runtime.learning import Learning

SETTINGS = ServeSettings(gguf="m.gguf", cloud_url="http://cloud/v1")
FALLING = PlanFile(
    device=MeasuredDevice(
        name="d",
        model="m",
        prefill_tps=[{"at": 0, "value": 1000}, {"at": 4000, "value": 200}],
        decode_tps=[{"at": 0, "value": 30}],
        n_ctx=4096,
    )
)
NUMBERS = (10**400, 10**18, -1, 0, 1e308, 5e-324, -0.0, math.nan, math.inf, -math.inf)
OTHERS = (None, True, [], {}, "", "nan", "1e400", "9" * 5000, "\ud800", "\u0663", [[[]]], {"value": 1}, {"0": 1})
HOSTILE = st.one_of(
    st.sampled_from(NUMBERS + OTHERS),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.floats(), max_size=3),
)


def learnt(plan):
    learning = Learning(SETTINGS, plan, n_ctx=4096)
    for tokens in (100, 700, 3000):
        learning.device.read(0, tokens, tokens / 500)
        learning.device.decoded(tokens, 50, 2.5)
        learning.cloud("m").first_token(tokens, 0.4)
        learning.lengths.observe("app", tokens, 90)
        learning.lengths.observe("", tokens, 300, cut_short=True)
    learning.cloud("m").round_trip(0.05)
    learning.cloud("m").step(0.02)
    return learning


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDD_CACHE_DIR", str(tmp_path))
    return tmp_path / "calibration"


def places(data, at=()):
    """Every place in some JSON: what leads there."""
    yield at
    if isinstance(data, dict):
        for key, inner in data.items():
            yield from places(inner, (*at, key))


def changed(data, place, value):
    if not place:
        return value
    data = deepcopy(data)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return data


def renamed(data, place, name):
    """The same with another key at the end of `place`."""
    if not place:
        return data
    data = deepcopy(data)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[name] = inner.pop(place[-1])
    return data


def usable(learning):
    """Whether a device could go on: finite figures, plans, and a file that can be read again."""
    for tokens in (1, 128, 1000, 4000, 100_000):
        device, cloud = learning.device.state(tokens, 0, 500), learning.cloud("m").state(tokens)
        for one in (device.prefill_tps, device.decode_tps, cloud.ttft_s, cloud.tpot_s, cloud.rtt_s):
            assert 0 < one.mean < math.inf
        for group in ("", "app", "other"):
            table = learning.lengths.table(group, tokens)
            assert all(map(math.isfinite, table.survival + table.mean_min + table.mean_square))
            assert table.survival[0] == pytest.approx(1)
            request = PlanRequest(num_prompt_tokens=tokens, max_tokens=2000, rate=10, group=group)
            Planner(learning.lengths, Goals()).pdd_plan(request, device, cloud)
    learning.device.read(0, 500, 1.0)
    learning.device.decoded(500, 10, 1.0)
    learning.cloud("m").first_token(500, 0.3)
    learning.cloud("m").step(0.1)
    learning.lengths.observe("app", 500, 50, cut_short=True)
    written = learning.snapshot()
    again = Learning(SETTINGS, PlanFile(), n_ctx=4096)
    again.device.restore(json.loads(json.dumps(written["device"]["speed"])))
    again.lengths.restore(json.loads(json.dumps(written["device"]["lengths"])))
    again.cloud("m").restore(json.loads(json.dumps(written["clouds"]["m"])))
    assert len(json.dumps(written)) < 100_000


@examples(100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_device_goes_on_from_any_files(cache, caplog, data):
    before, now = (data.draw(st.sampled_from([PlanFile(), FALLING]), label=when) for when in ("before", "now"))
    for left in cache.glob("*"):
        left.unlink()
    learning = learnt(before)
    learning.restore()
    learning.write(learning.snapshot())
    path = data.draw(st.sampled_from(sorted(cache.glob("*.json"))), label="file")
    content = json.loads(path.read_text())
    for _ in range(data.draw(st.integers(0, 3), label="changes")):
        place = data.draw(st.sampled_from(list(places(content))), label="place")
        if data.draw(st.booleans(), label="value"):
            content = changed(content, place, data.draw(HOSTILE))
        else:
            content = renamed(content, place, data.draw(st.text(max_size=3) | st.integers().map(str)))
    path.write_text(json.dumps(content))
    caplog.clear()
    later = Learning(SETTINGS, now, n_ctx=4096)
    later.restore()
    later.cloud("m")
    assert len(caplog.records) == (not path.exists())
    usable(later)
