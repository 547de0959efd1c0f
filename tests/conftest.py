"""For all tests."""

import os
import signal

from hypothesis import HealthCheck, settings

# Machines are shared: no test is judged by how long an example takes. Nor by chance: the examples stay the same.
# HYPOTHESIS_PROFILE=exhaustive draws many others.
ALWAYS = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **ALWAYS)
settings.register_profile("exhaustive", derandomize=False, max_examples=2000, print_blob=True, **ALWAYS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# A run in the background has Ctrl-C ignored, and one under nohup the end of its terminal; the processes that tests
# start and interrupt would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
