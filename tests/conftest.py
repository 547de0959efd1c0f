"""For all tests."""

import signal

from hypothesis import HealthCheck, settings

# Machines are shared: no test is judged by how long an example takes.
settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")

# A run in the background has Ctrl-C ignored, and one under nohup the end of its terminal; the processes that tests
# start and interrupt would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
