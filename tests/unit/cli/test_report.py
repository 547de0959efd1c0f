from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pdd_cli.demo.facts import KVFacts
from pdd_cli.demo.report import print_header, print_report
from pdd_cli.demo.ways import Way
from pdd_cli.link import Link
from pdd_llamacpp_adapter.session.outcome import KVReport, Mode

KV = KVFacts(cell_bytes=9360, key_type="q8_0", value_type="q4_0", decode_budget=21)


def printed(show, *told) -> str:
    out = io.StringIO()
    show(Console(file=out, width=80), *told)
    return out.getvalue()


def test_the_link_and_the_cells_are_disclosed(facts) -> None:
    text = printed(print_header, replace(facts, link=Link(1e8), kv=KV, no_kv=None))
    assert "100 Mbit/s, round trip 20 ms, emulated by a proxy on this machine" in text
    assert "16.3 MB for the whole prompt (keys q8_0, values q4_0)" in text
    assert "156 tokens may be decoded by the cloud, 21 with the KV cache (auto)" in text


def test_why_there_is_one_way_less_is_disclosed(facts) -> None:
    text = printed(print_header, facts)
    assert "as it is; none is emulated" in text
    assert "one way less: the cloud hands over no KV cache" in text


@pytest.mark.parametrize("with_kv", [False, True])
def test_the_table_fits_a_narrow_terminal(facts, outcome, with_kv: bool) -> None:
    outcomes = {
        Way.HANDOFF: outcome(Mode.HANDOFF, cloud=156, device=200),
        Way.DEVICE_ONLY: outcome(Mode.DEVICE_ONLY, device=356),
        Way.CLOUD_ONLY: outcome(Mode.CLOUD_ONLY, cloud=356),
    }
    if with_kv:
        report = KVReport(cells=1500, bytes=14_040_000)
        outcomes[Way.KV_HANDOFF] = outcome(Mode.HANDOFF, cloud=20, device=336, kv=report, took_over=6.0)
    text = printed(print_report, facts, outcomes)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["handoff"][-1] == "-"
    assert ("kv_handoff" in rows) is with_kv
    if with_kv:
        assert rows["kv_handoff"] == ["kv_handoff", "5.0", "125", "125", "20", "336", "156", "6.0", "14.0"]
