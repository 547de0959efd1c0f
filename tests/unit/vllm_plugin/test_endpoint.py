"""With one API process, nothing is shared; with several, each joins the others."""

import sys
from types import SimpleNamespace

import pytest
from kv_cells import geometry

from pdd_vllm_plugin import endpoint
from pdd_vllm_plugin.kv.handshake import OFF
from pdd_vllm_plugin.kv.shelves import Shelves


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


def test_the_line_at_the_start_says_whether_kv_caches_are_handed_over(tmp_path):
    on = endpoint._told(Shelves(geometry(head_size=64), {0: [tmp_path]}))
    assert on == "on (q8_0 keys, q4_0 values, 416 bytes a token)"
    assert endpoint._told(OFF) == "off (this server hands no KV cache over: additional_config.pdd.kv is off)"
