from __future__ import annotations

import multiprocessing

import pytest
from evaluate_fakes import CountingWorker

from pdd_core.errors import DeviceEngineFailed
from pdd_lab.evaluate.jobs import AHEAD, workers

NUMBERS = range(12)
MEASURED = [None if number == 4 else ("recall", number) for number in NUMBERS]


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_cases(tmp_path, jobs):
    with workers(jobs, CountingWorker, tmp_path) as measure_all:
        assert list(measure_all("recall", NUMBERS)) == MEASURED
        assert list(measure_all("answers", [5])) == [("answers", 5)]


def test_several_processes_share_the_cases(tmp_path):
    with workers(2, CountingWorker, tmp_path) as measure_all:
        list(measure_all("together", range(20, 60)))
    found = [path.name.split("-") for path in tmp_path.iterdir()]
    assert sorted(int(number) for _, number, _ in found) == list(range(20, 60))
    assert len({process for _, _, process in found}) == 2


def test_what_is_not_needed_any_more_is_not_begun(tmp_path):
    with workers(2, CountingWorker, tmp_path) as measure_all:
        for result in measure_all("recall", range(1000)):
            assert result == ("recall", 0)
            break
    assert len(list(tmp_path.iterdir())) <= 1 + 2 * AHEAD


def test_a_case_that_nobody_waits_for_is_not_waited_for(tmp_path):
    with workers(2, CountingWorker, tmp_path) as measure_all:
        assert next(iter(measure_all("recall", [0, 1000, 1000]))) == ("recall", 0)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_is_raised_and_all_processes_end(tmp_path, jobs):
    with pytest.raises(ValueError, match="thirteen"), workers(jobs, CountingWorker, tmp_path) as measure_all:
        list(measure_all("recall", [1, 13, 2]))
    assert not multiprocessing.active_children()


def test_a_process_that_is_ended_is_told(tmp_path):
    with pytest.raises(DeviceEngineFailed, match="--jobs"), workers(2, CountingWorker, tmp_path) as measure_all:
        list(measure_all("recall", [1, 2, 666, 3]))
    assert not multiprocessing.active_children()


def test_one_process_is_this_one_and_is_closed(tmp_path):
    with workers(1, CountingWorker, tmp_path) as measure_all:
        list(measure_all("recall", [1]))
        assert not (tmp_path / "closed").exists()
        assert not multiprocessing.active_children()
    assert (tmp_path / "closed").exists()
