"""Who deletes ids that nobody has cannot make the ids of others be forgotten."""

import pytest

from pdd_vllm_plugin.tombstones import MAX_REFUSED, MAX_TOMBSTONES, TOMBSTONE_TTL_S, Tombstones


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def forgotten():
    return []


@pytest.fixture
def tombstones(clock, forgotten):
    return Tombstones(clock, lambda *what: forgotten.append(what))


def flood(tombstones, times=MAX_REFUSED + 10):
    """Delete ids that nobody has, and return how many were remembered."""
    remembered = 0
    for number in range(times):
        if tombstones.has_room(f"flood{number}"):
            tombstones.refuse(f"flood{number}")
            remembered += 1
    return remembered


def test_a_flood_of_unknown_ids_makes_no_other_be_forgotten(tombstones, forgotten):
    tombstones.bury("deleted")
    tombstones.bury("its completion", of_completion=True)
    tombstones.refuse("to come")
    assert flood(tombstones) == MAX_REFUSED - 1
    assert all(name in tombstones for name in ("deleted", "its completion", "to come"))
    assert forgotten == []
    assert not tombstones.has_room("one more")


def test_what_is_remembered_may_be_refused_again_without_room(tombstones, clock):
    tombstones.refuse("to come")
    flood(tombstones)
    clock.now = TOMBSTONE_TTL_S - 1
    assert tombstones.has_room("to come")
    tombstones.refuse("to come")
    clock.now = TOMBSTONE_TTL_S + 1
    assert tombstones.has_room("another")
    assert "to come" in tombstones
    assert "flood0" not in tombstones


def test_deleted_states_make_way_for_later_ones_only(tombstones, forgotten):
    tombstones.refuse("to come")
    for number in range(MAX_TOMBSTONES + 2):
        tombstones.bury(f"deleted{number}", of_completion=number % 2 == 1)
    assert forgotten == [("deleted0", False), ("deleted1", True)]
    assert "to come" in tombstones


def test_only_a_deleted_state_was_one(tombstones):
    tombstones.refuse("to come")
    tombstones.bury("deleted")
    assert [tombstones.had_state(name) for name in ("to come", "deleted", "other")] == [False, True, False]


def test_each_is_forgotten_after_its_minute(tombstones, clock, forgotten):
    tombstones.bury("deleted")
    tombstones.refuse("to come")
    clock.now = TOMBSTONE_TTL_S
    tombstones.purge()
    assert forgotten == []
    clock.now += 1
    tombstones.purge()
    assert sorted(forgotten) == [("deleted", False), ("to come", False)]
