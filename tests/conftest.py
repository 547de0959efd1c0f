"""For all tests."""

import gc
import os
import signal

from hypothesis import HealthCheck, settings

# Machines are shared: no test is judged by how long an example takes. Nor by chance: the examples stay the same.
# HYPOTHESIS_PROFILE=exhaustive draws many others.
ALWAYS = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, max_examples=50, **ALWAYS)
settings.register_profile("exhaustive", derandomize=False, max_examples=2000, print_blob=True, **ALWAYS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Tests share the cores with one another and with engines: torch and BLAS take one thread. Where a test asks
# llama.cpp for several, one that waits for another sleeps. By itself it spins, on the core that the other needs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A run in the background has Ctrl-C ignored, and one under nohup the end of its terminal; the processes that tests
# start and interrupt would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_finish():
    """What was imported stays: looking through it for garbage, again and again, takes a good part of all time."""
    gc.collect()
    gc.freeze()
