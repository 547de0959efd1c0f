"""Real processes that want the same ids at the same time, and what it does to the others if one stops or dies."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from claiming import COUNT, claim_each, claim_without_end, names_of

CONTEXT = multiprocessing.get_context("spawn")  # as vLLM starts them


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
    for killed in range(1, 4):
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
                assert len(left) <= killed  # each had one name at a time
                assert not mine._counts.is_alive(1)
        finally:
            other.kill()
            other.join()


SERVE = """
import os, subprocess, sys
import pdd_vllm_plugin
from pdd_vllm_plugin.processes import folder
folder.default_base = lambda: folder.Path(sys.argv[1])
pdd_vllm_plugin.register()
child = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
assert len(os.listdir(sys.argv[1])) == 1
child.kill()  # and nobody waits until it has ended
"""
API_PROCESS = """
import sys, time
from pathlib import Path
from pdd_vllm_plugin.compat import server_identity
from pdd_vllm_plugin.processes.other_processes import OtherProcesses
joined = OtherProcesses.join(Path(sys.argv[1]), server_identity(), 0, 2)
print("joined", flush=True)
time.sleep(600)
"""


def test_the_process_that_serves_removes_the_folder_of_the_children_that_it_kills(base):
    subprocess.run([sys.executable, "-c", SERVE, str(base), API_PROCESS], check=True, timeout=120)
    assert not list(base.iterdir())
