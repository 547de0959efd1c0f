"""What a device learns from its answers: its own speed, the cloud's, and how long answers get. Kept in files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from pdd_core.env import Env
from pdd_core.planner.calibration import CloudCalibration, DeviceCalibration
from pdd_core.planner.lengths import OutputLengths
from pdd_core.planner.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pdd_core.env import ServeSettings
    from pdd_core.planner.plan_file import PlanFile
    from pdd_llamacpp_adapter.engine.speed import Work
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.session.answer_session import AnswerSession

_KEEP_EVERY_S = 60.0
LOOK_AFTER = 16
"""Answers without a word of how fast device, cloud or link are, after which the next one looks."""
_LEAST_READ = 32
_LEAST_DECODED = 4
"""Fewer tokens tell little about a speed."""


class Learning:
    """One device's knowledge, and that of each model of its cloud. Belongs to one event loop.

    `restore` and `write` take milliseconds: they are a thread's work, where an answer might wait.
    """

    def __init__(self, settings: ServeSettings, plan: PlanFile, *, n_ctx: int) -> None:
        self._settings = settings
        self.n_ctx = n_ctx
        self._cloud_profile = plan.cloud
        self._store: Store | None = None
        self._clouds: dict[str, CloudCalibration] = {}
        self.device = DeviceCalibration(n_ctx, plan.device)
        self.answers_unseen = 0
        """Answers since one told how fast the device reads."""
        self.answers_without_cloud = 0
        """Answers since the cloud was asked for one."""
        self.answers_without_cells = LOOK_AFTER
        """Answers since cells of the cloud's KV cache were asked for; at first, one looks at once."""
        self.lengths = OutputLengths()
        if plan.lengths is not None:
            self.lengths.restore(plan.lengths)

    def cloud(self, model: str) -> CloudCalibration:
        """Return what is known of the cloud while it serves `model`; empty before that is known."""
        if model not in self._clouds:
            self._clouds[model] = CloudCalibration(self._cloud_profile)
            if self._store is not None:
                self._store.restore(self._cloud_file(self._store, model), self._clouds[model].restore)
            if self._clouds[model].link_seen:
                self.answers_without_cells = 0
        return self._clouds[model]

    def ended(self, session: AnswerSession, request: AnswerRequest, *, group: str, model: str) -> None:
        """Learn from an answer that has ended, however it did.

        Args:
            session: its session, at rest.
            request: what was asked for.
            group: whose answers are alike.
            model: what the cloud serves.
        """
        outcome, work, arrivals = session.outcome, session.work, session.arrivals
        prompt, shown = outcome.prompt_tokens, len(outcome.timeline.tokens)
        self.answers_unseen += 1
        self.answers_without_cloud += 1
        self.answers_without_cells += 1
        if work is not None and work.read_tokens >= _LEAST_READ:
            self.answers_unseen = 0
            self.device.read(outcome.reused_tokens, outcome.reused_tokens + work.read_tokens, work.read_s)
        if work is not None and work.decoded_tokens >= _LEAST_DECODED:
            self.device.decoded(prompt + shown, work.decoded_tokens, work.decoded_s)
        if arrivals is not None:
            self.answers_without_cloud = 0
            cloud = self.cloud(model)
            if arrivals.first_token_s is not None:
                cloud.first_token(prompt, arrivals.first_token_s)
            if arrivals.step_s is not None:
                cloud.step(arrivals.step_s)
        if request.kv:
            self.answers_without_cells = 0
        if outcome.kv is not None and outcome.kv.bytes:
            self.cloud(model).cells(outcome.kv.bytes, outcome.kv.seconds)
        if shown and outcome.finish_reason != "error" and not request.ignore_eos:
            # ended by a limit, or by its reader: it would have got longer
            self.lengths.observe(group, prompt, shown, cut_short=outcome.finish_reason != "stop")

    def probed(self, work: Work) -> None:
        """Learn from work that was no answer's, in an empty context."""
        self.device.read(0, work.read_tokens, work.read_s)
        self.device.decoded(work.read_tokens, work.decoded_tokens, work.decoded_s)

    def restore(self) -> None:
        """Go on from what was learnt before, if anything was, and write from now on."""
        self._store = Store(Env().cache_dir / "calibration")
        self._store.restore(self._device_file(self._store), self._take)

    def _take(self, data: Mapping[str, Any]) -> None:
        self.device.restore(data["speed"])
        self.lengths.restore(data["lengths"])

    def snapshot(self) -> dict[str, Any]:
        """Return what is known, for `write`."""
        return {
            "device": {"speed": self.device.as_json(), "lengths": self.lengths.as_json()},
            "clouds": {model: one.as_json() for model, one in self._clouds.items()},
        }

    def write(self, snapshot: Mapping[str, Any]) -> None:
        """Write a snapshot into the cache folder, if that was asked for by `restore`."""
        if self._store is None:
            return
        self._store.save(self._device_file(self._store), snapshot["device"])
        for model, data in snapshot["clouds"].items():
            self._store.save(self._cloud_file(self._store, model), data)

    async def keep(self) -> None:
        """Write what is known now and then, and when cancelled."""
        try:
            while True:
                await anyio.sleep(_KEEP_EVERY_S)
                await anyio.to_thread.run_sync(self.write, self.snapshot())
        finally:
            self.write(self.snapshot())

    def _device_file(self, store: Store) -> Path:
        settings = self._settings
        return store.path("device", settings.gguf, settings.llama.speed_key)

    def _cloud_file(self, store: Store, model: str) -> Path:
        return store.path("cloud", self._settings.cloud_url or "", model)
