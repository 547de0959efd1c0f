"""The demo from beginning to end: prepare, start, answer in every way, report, and leave nothing running."""

from __future__ import annotations

import math
import secrets
import time
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

import anyio

from pdd_cli.cloud import ended_by_sigterm, started
from pdd_cli.demo.facts import Facts, KVFacts
from pdd_cli.demo.live_display import LiveView
from pdd_cli.demo.record import write_record
from pdd_cli.demo.report import print_header, print_report
from pdd_cli.demo.scenario import FREQUENCY_PENALTY, HEADROOM, READING_RATE, kv_budget, sustained_rate
from pdd_cli.demo.ways import Way
from pdd_cli.demo_model import device_gguf, model_name, prepare
from pdd_cli.extras import require
from pdd_cli.kv_handover import cells_of, cells_underway
from pdd_cli.launcher import CloudServer
from pdd_cli.link import emulated
from pdd_cli.plots.style import check_picture
from pdd_cli.plots.timeline import PlottedAnswer, draw_timeline
from pdd_cli.progress import ConsoleProgress
from pdd_cli.urls import openai_base_url
from pdd_core.break_even import break_even_budget
from pdd_core.timeline import Source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from pdd_cli.demo.scenario import DemoScenario
    from pdd_cli.demo.ways import Outcomes
    from pdd_core.handoff import CloudInfo
    from pdd_llamacpp_adapter import CloudClient, DeviceEngine, DeviceProfile, Outcome

N_CTX = 8192
"""The demo model's own context, on both sides."""
_WARM_UP_TOKENS = 32
_PROBE_TOKENS = 256
_RATE_TOKENS = 20
_COUNT = {3: "three", 4: "four"}
_SHARED_MACHINE = 0.5
"""A device without profile prefills beside a cloud that computes on the same cores."""


def run_demo(
    scenario: DemoScenario,
    *,
    url: str | None,
    api_key: str | None,
    port: int | None,
    json_path: Path | None,
    plot: Path | None = None,
    console: Console,
) -> None:
    """Run the demo against the cloud at `url`, or against one that is started for it.

    The figures go to `json_path`, the timelines of the answers to `plot`, where these are given.

    Raises:
        PDDError: something is not installed, cannot be prepared, or fails; nothing is left running.
    """
    require("device", need="the demo")
    check_picture(plot)
    from pdd_llamacpp_adapter import DeviceEngine

    progress = ConsoleProgress(console)
    with ended_by_sigterm(), ExitStack() as stack:
        if url is None:
            require("cloud", need="a demo without --url")
            model = prepare(scenario.gguf, progress=progress)
            gguf, api_key = model.gguf, secrets.token_urlsafe(16)
            server = CloudServer(
                model.vllm_dir,
                served_name=model.name,
                port=port,
                api_key=api_key,
                demo=scenario.gguf is None,
            )
            url = stack.enter_context(started(server, console)).base_url
        else:
            gguf = device_gguf(scenario.gguf, progress=progress)
        engine = stack.enter_context(DeviceEngine.open(gguf, n_ctx=N_CTX, threads=scenario.threads, kv=True))
        show = _Show(scenario, engine, console)
        facts, outcomes = anyio.run(show.play, openai_base_url(url), api_key)
    print_report(console, facts, outcomes)
    if json_path is not None:
        write_record(json_path, facts, outcomes)
        console.print(f"Figures: {json_path}", highlight=False, markup=False, soft_wrap=True)
    if plot is not None:
        answers = [
            PlottedAnswer.of(outcome, title=way.label, rate=facts.rate) for way, outcome in outcomes.items()
        ]
        title = f"One answer in {_COUNT[len(answers)]} ways ({_conditions(facts)})"
        picture, _ = draw_timeline(answers, plot, title=title)
        console.print(f"Picture: {picture}", highlight=False, markup=False, soft_wrap=True)


def _conditions(facts: Facts) -> str:
    link = "" if facts.link is None else f", {facts.link.bit_s / 1e6:g} Mbit/s"
    return f"{facts.model}, prompt of {facts.prompt_tokens:,}{link}"


class _Show:
    """The ways to answer, on engines that are open."""

    def __init__(self, scenario: DemoScenario, engine: DeviceEngine, console: Console) -> None:
        from pdd_llamacpp_adapter import PROFILES

        self._scenario = scenario
        self._engine = engine
        self._console = console
        self._profile: DeviceProfile | None = PROFILES[scenario.profile]
        self._rate = READING_RATE
        self._prompt: Sequence[int] = engine.vocab.render_chat([{"role": "user", "content": scenario.message()}])

    async def play(self, base_url: str, api_key: str | None) -> tuple[Facts, Outcomes]:
        """Answer in one way after the other, each from cold caches."""
        from pdd_llamacpp_adapter import CloudClient

        async with AsyncExitStack() as stack:
            if self._scenario.link is not None:
                base_url = await stack.enter_async_context(emulated(self._scenario.link, base_url))
            cloud = await stack.enter_async_context(CloudClient(base_url, api_key=api_key))
            info = await cloud.connect(self._engine.vocab)
            await self._warm_up(cloud)
            prefill_tps = self._profile.prefill_tps if self._profile else await self._measured_prefill()
            self._rate = self._scenario.rate or await self._measured_rate(cloud)
            budget = self._scenario.decode_budget or self._computed_budget(prefill_tps)
            facts = Facts.of(
                self._scenario,
                profile=self._profile,
                cloud=info,
                model=model_name(self._scenario.gguf),
                prompt_tokens=len(self._prompt),
                decode_budget=budget,
                rate=self._rate,
                prefill_tps=prefill_tps,
                kv=self._kv(info, prefill_tps),
            )
            print_header(self._console, facts)
            engine, kv = self._engine, facts.kv
            outcomes = {Way.HANDOFF: await self._one(Way.HANDOFF, budget, engine=engine, cloud=cloud)}
            if kv is not None:
                outcomes[Way.KV_HANDOFF] = await self._one(
                    Way.KV_HANDOFF, kv.decode_budget, engine=engine, cloud=cloud, cell_bytes=kv.cell_bytes
                )
            outcomes[Way.DEVICE_ONLY] = await self._one(Way.DEVICE_ONLY, None, engine=engine)
            outcomes[Way.CLOUD_ONLY] = await self._one(Way.CLOUD_ONLY, None, cloud=cloud)
        return facts, outcomes

    def _computed_budget(self, prefill_tps: float) -> int:
        speed = prefill_tps if self._profile else prefill_tps * _SHARED_MACHINE
        budget = break_even_budget(len(self._prompt), rate=self._rate, prefill_tps=speed, headroom=HEADROOM)
        return min(budget or self._scenario.max_tokens, self._scenario.max_tokens)

    def _kv(self, info: CloudInfo, prefill_tps: float) -> KVFacts | str:
        """Return what is known of the cloud's cells, or why this device takes none."""
        geometry = cells_of(info, self._engine)
        if isinstance(geometry, str):
            return geometry
        link, most = self._scenario.link, self._scenario.max_tokens
        budget = self._scenario.decode_budget or kv_budget(
            len(self._prompt),
            rate=self._rate,
            prefill_tps=prefill_tps if self._profile else prefill_tps * _SHARED_MACHINE,
            cells_per_s=math.inf if link is None else link.bytes_per_s / geometry.cell_bytes,
            rtt_s=0.0 if link is None else link.rtt_s,
        )
        return KVFacts.of(geometry, min(budget or most, most))

    async def _one(
        self,
        way: Way,
        budget: int | None,
        *,
        engine: DeviceEngine | None = None,
        cloud: CloudClient | None = None,
        cell_bytes: int | None = None,
    ) -> Outcome:
        from pdd_llamacpp_adapter import AnswerRequest, AnswerSession

        self._engine.reset()
        request = AnswerRequest(
            prompt_token_ids=self._prompt,
            max_tokens=self._scenario.max_tokens,
            frequency_penalty=FREQUENCY_PENALTY,
            decode_budget=budget,
            kv=cell_bytes is not None,
            cache_salt=secrets.token_hex(8),  # vLLM's prefix cache would remember the way before
        )
        with LiveView(self._console, way.heading) as view:
            async with AnswerSession(
                request,
                engine=engine,
                cloud=cloud,
                rate=self._rate,
                flush_within=math.inf,  # the ways are compared at one rate, to their ends
                profile=self._profile,
                on_progress=view.progress,
            ) as answer:
                if cell_bytes is not None:
                    view.cells = lambda: cells_underway(answer.outcome, cell_bytes)
                async for token in answer:
                    view.show(token)
            return answer.outcome

    async def _warm_up(self, cloud: CloudClient) -> None:
        """Both engines allocate and page in on their first request; no way should pay for that."""
        from pdd_llamacpp_adapter import AnswerRequest, AnswerSession

        request = AnswerRequest(
            prompt_token_ids=self._prompt[:_WARM_UP_TOKENS], max_tokens=2, cache_salt=secrets.token_hex(8)
        )
        for engines in ({"cloud": cloud}, {"engine": self._engine}):
            async with AnswerSession(request, rate=math.inf, **engines) as answer:
                async for _ in answer:
                    pass

    async def _measured_rate(self, cloud: CloudClient) -> float:
        """Return a rate that the cloud keeps up while the device prefills beside it."""
        from pdd_llamacpp_adapter import AnswerRequest, AnswerSession

        self._engine.reset()
        request = AnswerRequest(
            prompt_token_ids=self._prompt,
            max_tokens=_RATE_TOKENS,
            min_tokens=_RATE_TOKENS,
            cache_salt=secrets.token_hex(8),
        )
        with ConsoleProgress(self._console)("Measuring how fast the cloud answers beside the device"):
            async with AnswerSession(
                request, engine=self._engine, cloud=cloud, rate=math.inf, profile=self._profile
            ) as answer:
                tokens = [token async for token in answer]
        return sustained_rate([token.received_at for token in tokens if token.source is Source.CLOUD])

    async def _measured_prefill(self) -> float:
        """Return the device's own prefill speed, tokens per second, on an otherwise idle machine."""
        self._engine.reset()
        ids = self._prompt[:_PROBE_TOKENS]
        begun = time.monotonic()
        await self._engine.slots[0].extend(ids, want_logits=True)
        return len(ids) / (time.monotonic() - begun)
