"""Slow starts, one behind the other on a thread, while tests run that need none of them.

vLLM takes over a minute to start, most of it on one core. Each start begins when the one before is over, so that
no more than one of them runs beside the tests.
"""

import threading
from concurrent.futures import Future


class Boots:
    """Runs jobs in the order in which they were added; `of` waits for one and returns what it made."""

    def __init__(self):
        self._jobs = {}
        self._left = threading.Event()

    def add(self, name, job):
        self._jobs[name] = job, Future()

    def start(self):
        threading.Thread(target=self._run, name="boots", daemon=True).start()

    def leave(self):
        """Begin no further job."""
        self._left.set()

    def _run(self):
        for job, made in self._jobs.values():
            if self._left.is_set():
                made.cancel()
                continue
            try:
                made.set_result(job())
            except BaseException as error:  # noqa: BLE001 - it is raised where the test asks
                made.set_exception(error)

    def of(self, name):
        return self._jobs[name][1].result()
