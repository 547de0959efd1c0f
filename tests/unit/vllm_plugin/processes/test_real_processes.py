"""Real processes that want the same ids at the same time, and what it does to the others if one stops or dies."""

import multiprocessing
import os
import signal
import time

import pytest

from pdd_vllm_plugin.processes.folder import SharedFolder
from pdd_vllm_plugin.processes.shared_counts import SharedCounts
from pdd_vllm_plugin.processes.shared_names import SharedNames

COUNT = 3
CONTEXT = multiprocessing.get_context("spawn")  # as vLLM starts them


def names_of(base, rank):
    folder = SharedFolder(base, "real")
    return SharedNames(folder.fd, SharedCounts(folder.fd, rank, COUNT))


def claim_each(base, rank, ids, start, won):
    names = names_of(base, rank)
    mine = []
    for at in range(0, len(ids), 20):
        start.wait()  # so that they stay together
        mine += [one for one in ids[at : at + 20] if names.claim(one)]
    won.put(mine)


def claim_without_end(base, rank, ready):
    names = names_of(base, rank)
    for number in range(10**9):
        name = f"of-{rank}-{number}"
        names.claim(name)
        names.ended(name)
        names.bury(name)
        names.free(name, ended=False)
        if number == 100:
            ready.set()


def test_of_processes_that_claim_an_id_at_once_one_gets_it(base):
    ids = [f"{number:032x}" for number in range(2000)]
    start, won = CONTEXT.Barrier(COUNT), CONTEXT.Queue()
    processes = [CONTEXT.Process(target=claim_each, args=(base, n, ids, start, won)) for n in range(COUNT)]
    for one in processes:
        one.start()
    winners = [won.get(timeout=60) for _ in processes]
    for one in processes:
        one.join()
    assert sorted(name for names in winners for name in names) == ids


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_process_that_stops_or_dies_at_any_moment_holds_up_nobody(base, how):
    mine = names_of(base, 0)
    for _ in range(3):
        ready = CONTEXT.Event()
        other = CONTEXT.Process(target=claim_without_end, args=(base, 1, ready))
        other.start()
        try:
            assert ready.wait(60)
            os.kill(other.pid, how)
            if how is signal.SIGKILL:
                other.join()
            began = time.monotonic()
            for number in range(200):
                assert mine.claim(f"mine-{number}")
                assert mine.owners(f"mine-{number}", completions=False) == [0]
                mine.free(f"mine-{number}", ended=False)
            assert time.monotonic() - began < 30
            if how is signal.SIGKILL:  # what it had is free again, whatever it was about to do
                left = list(base.glob("pdd-*/*.run"))
                assert len(left) <= 1
                assert not mine._counts.is_alive(1)
        finally:
            other.kill()
            other.join()
