"""Several API processes of one server, as far as the plugin sees them, over one folder: in one process of ours."""

import asyncio
import time
from contextlib import suppress

from vllm_fakes import FakeEngine, output, sampling_params

from pdd_core.optin import OptIn
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.generate_recorder import GenerateRecorder
from pdd_vllm_plugin.handoff_record import HandoffRecord
from pdd_vllm_plugin.handoff_service import HandoffService
from pdd_vllm_plugin.handoff_store import HandoffStore
from pdd_vllm_plugin.processes.other_processes import OtherProcesses

NO_PROCESS = 2**22 + 1
"""More than a process's id can be."""


def record(handoff_id, completion_id="cmpl-" + "x" * 20, *, tokens=0, touched=None):
    made = HandoffRecord(
        opt_in=OptIn(handoff_id), completion_id=completion_id, engine_request_id=f"engine-{handoff_id}", model="m",
        tokenizer="d", sampling_params={}, created=0.0, touched=time.monotonic() if touched is None else touched,
        started=True,
    )  # fmt: skip
    made.output_token_ids.extend(range(tokens))
    return made


class ApiProcess:
    """One of `count`, with an engine client of its own."""

    def __init__(self, base, rank, count, *, clock=time.monotonic, **config):
        self.rank = rank
        self.engine = FakeEngine([output([7], "a"), output([8], "b"), output([9], "c", "stop")])
        self.service = HandoffService()
        self.service.config = PDDConfig(**config)
        self.service.engine_client = self.engine
        self.others = OtherProcesses.join(base, "server", rank, count)
        self.service.processes = self.others
        self.service.store = HandoffStore(self.service.config, clock, self.others.names)
        self.store = self.service.store
        self.ask = self.service.answers.answer
        self.recorder = GenerateRecorder(
            self.engine, self.store, model="m", tokenizer="d", metrics=self.service.metrics
        )
        self.streams = []

    async def serve(self):
        self._task = await self.others.serve(self.service)

    async def stop(self):
        """End as at the end of the event loop."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def die(self):
        """What the others see once the process was killed: its socket's listener and its id are gone."""
        self.others._counts._rows[self.rank * 4] = NO_PROCESS

    def begin(self, handoff_id, completion_id="cmpl-" + "x" * 20):
        params = sampling_params({"pdd_handoff": handoff_id})
        self.streams.append(self.recorder.generate({"prompt_token_ids": [1, 2]}, params, completion_id))
        return self.streams[-1]
