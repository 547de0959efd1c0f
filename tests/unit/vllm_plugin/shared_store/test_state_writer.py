"""What waits to be written is bounded, whatever the store does."""

from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from pdd_core.handoff import Status
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.shared_store.state_writer import QUEUE_STATES, Removal, StateWriter, confirmed
from pdd_vllm_plugin.shared_store.store_metrics import StoreMetrics
from pdd_vllm_plugin.tombstones import MAX_TOMBSTONES


class Writer(StateWriter):
    def __init__(self, *, opened=True, **config):
        self.registry = CollectorRegistry()
        super().__init__(PDDConfig(**config), None, StoreMetrics(self.registry))
        self.open = opened

    def dropped(self):
        return self.registry.get_sample_value("pdd_store_states_total", {"outcome": "dropped"})


def record(number, size=10):
    return SimpleNamespace(opt_in=SimpleNamespace(handoff_id=f"{number:032}"), size=size)


def test_a_full_queue_drops_what_comes_and_counts_it():
    writer = Writer()
    for number in range(QUEUE_STATES + 5):
        writer.put(record(number))
    assert (len(writer._states), writer.dropped()) == (QUEUE_STATES, 5)


def test_large_states_fill_it_sooner_and_one_fits_always():
    writer = Writer(max_state_tokens=400)
    for number in range(3):
        writer.put(record(number, size=90))
    assert (len(writer._states), writer.dropped()) == (1, 2)
    writer.drop_all()
    writer.put(record(4, size=1_000))
    assert (len(writer._states), writer.dropped()) == (1, 3)


def test_what_waits_is_written_as_it_is_then_and_once():
    writer = Writer()
    writer.put(record(1))
    writer.put(record(1, size=99))
    assert (len(writer._states), writer._held, writer.dropped()) == (1, 10, 0)


def test_while_the_store_is_away_nothing_piles_up():
    writer = Writer(opened=False)
    writer.put(record(1))
    assert (writer._states, writer.dropped()) == ({}, 1)
    for number in range(MAX_TOMBSTONES + 3):
        writer.remove(Removal(f"{number:032}", "", ""))
    assert len(writer._removals) == MAX_TOMBSTONES


def test_a_deleted_state_that_waits_is_not_written():
    writer = Writer()
    writer.put(record(1))
    writer.remove(Removal(f"{1:032}", "", "1"))
    assert (writer._states, writer._held) == ({}, 0)


@pytest.mark.parametrize(
    ("status", "said"),
    [(Status.HANDED_OFF, "1"), (Status.FINISHED, "1"), (Status.ABORTED, "0"), (Status.RUNNING, "0")],
)
def test_a_tombstone_confirms_what_the_engine_had_ended(status, said):
    assert confirmed(status) == said
