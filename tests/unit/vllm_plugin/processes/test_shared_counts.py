import pytest
from api_processes import NO_PROCESS

from pdd_vllm_plugin.handoff_names import Totals
from pdd_vllm_plugin.processes.folder import SharedFolder
from pdd_vllm_plugin.processes.shared_counts import SharedCounts


@pytest.fixture
def rows(base):
    folder = SharedFolder(base, "a")
    made = [SharedCounts(folder.fd, rank, 3) for rank in range(3)]
    yield made
    folder.leave()


def test_each_sees_the_sum_of_the_others(rows):
    for rank, one in enumerate(rows):
        one.tell(Totals(10 + rank, rank, 1000 * 2**32 * rank))
    assert rows[0].others() == Totals(11 + 12, 1 + 2, 3000 * 2**32)
    assert rows[2].others() == Totals(10 + 11, 1, 1000 * 2**32)


def test_the_fullest_is_the_other_one_with_most_that_can_make_way(rows):
    assert rows[0].fullest() is None
    rows[0].tell(Totals(9, 9, 0))
    rows[1].tell(Totals(9, 1, 0))
    rows[2].tell(Totals(2, 2, 0))
    assert [one.fullest() for one in rows] == [2, 0, 0]


def test_who_has_left_or_died_counts_for_nothing(rows):
    rows[1].tell(Totals(5, 5, 5))
    rows[2].tell(Totals(7, 7, 7))
    rows[1].leave()
    rows[2]._rows[2 * 4] = NO_PROCESS
    assert [rows[0].is_alive(rank) for rank in (-1, 0, 1, 2, 3)] == [False, True, False, False, False]
    assert rows[0].others() == Totals()


def test_who_died_is_found_out_when_room_is_wanted(rows):
    rows[2].tell(Totals(7, 7, 7))
    rows[2]._rows[2 * 4] = NO_PROCESS
    assert rows[0].others() == Totals(7, 7, 7)
    assert rows[0].fullest() is None
    assert rows[0].others() == Totals()


def test_who_has_not_come_yet_counts_for_nothing(base):
    only = SharedCounts(SharedFolder(base, "a").fd, 0, 2)
    assert only.others() == Totals()
    assert not only.is_alive(1)
