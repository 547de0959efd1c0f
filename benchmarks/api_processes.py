"""What an API process pays to keep its handoffs known to the others: microseconds of its event loop per call.

    python benchmarks/api_processes.py [--processes 4] [--per-second 200] [--seconds 5]

Each process claims, looks up, ends and frees ids at this rate, all in one folder. Times are of the calls alone.
"""

import argparse
import multiprocessing
import os
import secrets
import tempfile
import time
from pathlib import Path

from pdd_vllm_plugin.handoff_names import Totals
from pdd_vllm_plugin.processes.folder import SharedFolder, default_base
from pdd_vllm_plugin.processes.shared_counts import SharedCounts
from pdd_vllm_plugin.processes.shared_names import SharedNames


def calls(names, handoff_id, completion):
    """What a process does for one request, by its name."""
    return {
        "claim": lambda: (names.claim(handoff_id), names.name_completion(completion)),
        "look up": lambda: names.owners(handoff_id, completions=False),
        "look up an unknown id": lambda: names.owners(completion, completions=False),
        "end": lambda: (names.ended(handoff_id), names.others(), names.tell(Totals(1, 1, 1))),
        "free": lambda: (names.free(handoff_id, ended=True), names.unname_completion(completion)),
    }


def work(base, rank, options, results):
    """Be one process; put the seconds of each call into `results`."""
    folder = SharedFolder(base, "bench")
    names = SharedNames(folder.fd, SharedCounts(folder.fd, rank, options.processes))
    times = {}
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        time.sleep(1 / options.per_second)
        handoff_id, completion = secrets.token_hex(16), secrets.token_hex(16)
        for what, call in calls(names, handoff_id, completion).items():
            began = time.perf_counter()
            call()
            times.setdefault(what, []).append(time.perf_counter() - began)
    results.put(times)
    folder.leave()


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--per-second", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    for base in (default_base(), Path(tempfile.gettempdir())):
        results = multiprocessing.Queue()
        started = [
            multiprocessing.Process(target=work, args=(base, rank, options, results))
            for rank in range(options.processes)
        ]
        for one in started:
            one.start()
        found = [results.get() for _ in started]
        for one in started:
            one.join()
        print(f"{base}, {options.processes} processes on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        for what in found[0]:
            of_all = sorted(seconds for times in found for seconds in times[what])
            shares = (of_all[int(len(of_all) * share)] * 1e6 for share in (0.5, 0.9, 0.99))
            print(f"  {what:22} p50 {next(shares):6.1f}  p90 {next(shares):6.1f}  p99 {next(shares):6.1f} us")


if __name__ == "__main__":
    main()
