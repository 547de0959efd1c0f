"""With one API process, nothing is shared; with several, each joins the others."""

import sys
from types import SimpleNamespace

import pytest

from pdd_vllm_plugin import endpoint


def config(count, rank=0):
    return SimpleNamespace(parallel_config=SimpleNamespace(_api_process_count=count, _api_process_rank=rank))


def test_one_process_joins_nobody_and_loads_nothing_for_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pdd_vllm_plugin.processes")]:
        monkeypatch.delitem(sys.modules, name)
    assert endpoint._join(config(1)) is None
    assert not any(name.startswith("pdd_vllm_plugin.processes") for name in sys.modules)


@pytest.mark.parametrize("count", [2, 4])
def test_several_meet_in_one_folder(monkeypatch, base, count):
    monkeypatch.setattr("pdd_vllm_plugin.processes.folder.default_base", lambda: base)
    made = [endpoint._join(config(count, rank)) for rank in range(count)]
    assert len(list(base.iterdir())) == 1
    assert made[1].names.claim("a" * 32)
    assert [one.names.is_taken("a" * 32) for one in made] == [rank != 1 for rank in range(count)]
    for one in made:
        one.leave()
    assert not list(base.iterdir())
