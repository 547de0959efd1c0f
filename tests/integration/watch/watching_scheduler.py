"""The plugin's scheduler, which also writes down what it hands out: a test can look at the scheduler itself."""

import json
import os
import time

from pdd_vllm_plugin.scheduler import PDDAsyncScheduler


class WatchingScheduler(PDDAsyncScheduler):
    """Appends one line per step that had outputs: time, and new tokens per request."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._steps = open(os.environ["PDD_TEST_STEPS"], "a", buffering=1)  # noqa: PTH123, SIM115 - for its life

    def update_from_output(self, scheduler_output, model_runner_output):
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        made = {o.request_id: len(o.new_token_ids) for of in outputs.values() for o in of.outputs}
        if made:
            line = {"at": time.time(), "made": made, "running": len(self.running), "waiting": len(self.waiting)}
            self._steps.write(json.dumps(line) + "\n")
        return outputs
