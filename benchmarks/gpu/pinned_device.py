"""One device: llama.cpp in a process of its own, on one core, that answers when it is told to."""

import asyncio
import math
import multiprocessing
import os
import secrets
import time
import traceback
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pdd_cli.demo.scenario import kv_budget
from pdd_cli.link import Link

_PATIENCE_S = 300


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What all devices have in common."""

    gguf: Path
    url: str
    api_key: str
    prompt_tokens: int
    max_tokens: int
    rate: float
    """Tokens per second shown."""
    refine_ratio: float
    """The share of the prompt that a device reads in the refined mode."""
    guard_nats: float
    """Above this, the guard sends a device back to the whole prompt; ``inf`` never."""
    links: dict[str, str] = field(default_factory=dict)
    """URLs by which the cloud is reached over this device's own links, by the links' names."""
    kv: bool = False
    """Have a second engine, whose context takes the cloud's KV cache."""


@dataclass(frozen=True, slots=True)
class Order:
    """One answer to make."""

    mode: str
    """``device_only``, ``handoff``, ``refined`` and ``kv`` (handoffs as well) or ``cloud_only``."""
    number: int
    """Which prompt."""
    link: str | None = None
    """Over which link; None without one."""
    wait_s: float = 0.0
    """Seconds to wait first, so that not all devices ask in the same millisecond."""


class PinnedDevice:
    """Starts the process; `begin` an answer, then `result` waits for it."""

    def __init__(self, number: int, core: int, settings: DeviceSettings) -> None:
        self.number = number
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, number, core, settings), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, order: Order) -> None:
        self._pipe.send(order)

    def result(self) -> dict[str, Any]:
        """Return the answer's figures, or what became ready.

        Raises:
            RuntimeError: the device failed, or its process ended.
        """
        try:
            if not self._pipe.poll(_PATIENCE_S):
                raise RuntimeError(f"device {self.number} gives no answer")
            ok, answer = self._pipe.recv()
        except EOFError as error:
            raise RuntimeError(f"device {self.number} ended") from error
        if not ok:
            raise RuntimeError(f"device {self.number}: {answer}")
        return answer

    def stop(self) -> None:
        with suppress(OSError):
            self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Any, number: int, core: int, settings: DeviceSettings) -> None:
    for thread in Path("/proc/self/task").iterdir():  # numpy has some: they would work on the cloud's cores
        os.sched_setaffinity(int(thread.name), {core})
    try:
        asyncio.run(_answers(pipe, number, settings))
    except EOFError:
        pass
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to who waits
        traceback.print_exc()
        with suppress(OSError):
            pipe.send((False, f"{type(error).__name__}: {error}"))


async def _answers(pipe: Any, number: int, settings: DeviceSettings) -> None:
    from pdd_llamacpp_adapter import CloudClient, DeviceEngine, DeviceSpeed

    n_ctx = settings.prompt_tokens + settings.max_tokens + 128
    async with AsyncExitStack() as stack:

        def engine(**options: bool) -> Any:
            return stack.enter_context(DeviceEngine.open(settings.gguf, n_ctx=n_ctx, threads=1, **options))

        async def side(engine: Any) -> Side:
            clouds = {}
            for name, url in {None: settings.url, **settings.links}.items():
                clouds[name] = await stack.enter_async_context(CloudClient(url, api_key=settings.api_key))
                await clouds[name].connect(engine.vocab)
            return Side(engine, clouds)

        plain = await side(engine())
        with_kv = await side(engine(kv=True)) if settings.kv else plain
        device = _Device(number, plain, with_kv, DeviceSpeed(), settings)
        await device.warm_up()
        pipe.send((True, {"prefill_tps": device.speed.prefill_tps, "step_s": device.speed.step_s}))
        while True:
            order = await asyncio.to_thread(pipe.recv)
            pipe.send((True, await device.answer(order)))


@dataclass(frozen=True, slots=True)
class Side:
    """One of a device's engines, of which one works at a time, and its ways to the cloud, by link."""

    engine: Any
    clouds: dict[str | None, Any]


class _Device:
    def __init__(self, number: int, plain: Side, kv: Side, speed: Any, settings: DeviceSettings) -> None:
        self._number = number
        self._plain = plain
        self._kv = kv
        self.speed = speed
        self._settings = settings

    async def warm_up(self) -> None:
        """Page the weights in, and find out how fast this core is; have the cloud compile what refining needs.

        Over each link, cells are loaded once: device and cloud compare theirs when they first meet.
        """
        engine = self._plain.engine
        alone, cloud = {"engine": engine}, {"cloud": self._plain.clouds[None], "vocab": engine.vocab}
        short, whole = self._prompt(-1)[:512], {"max_tokens": 8, "budget": 8, "rate": math.inf}
        for engines, ratio in ((alone, None), (cloud, None), (alone | cloud, self._settings.refine_ratio)):
            await self._session(short, engines, **whole, refine_ratio=ratio)
        if self._settings.kv:
            for over in self._kv.clouds.values():
                await self._session(short, {"engine": self._kv.engine, "cloud": over}, **whole, kv=True)

    async def answer(self, order: Order) -> dict[str, Any]:
        """Make one answer and return its figures."""
        prompt = self._prompt(order.number)
        await asyncio.sleep(order.wait_s)
        side = self._kv if order.mode == "kv" else self._plain
        device, cloud = {"engine": side.engine}, {"cloud": side.clouds[order.link]}
        engines = {
            "device_only": device,
            "cloud_only": cloud | {"vocab": side.engine.vocab},
        }.get(order.mode, device | cloud)
        ratio = self._settings.refine_ratio if order.mode == "refined" else None
        budget = None
        if order.mode in ("handoff", "refined"):
            budget = self._budget(math.ceil(len(prompt) * (ratio or 1.0)))
        elif order.mode == "kv":
            budget = self._kv_budget(len(prompt), Link.parse(order.link) if order.link else None)
        prefill_tps = self.speed.prefill_tps
        begun = time.time()
        outcome = await self._session(
            prompt,
            engines,
            max_tokens=self._settings.max_tokens,
            budget=budget,
            rate=self._settings.rate,
            refine_ratio=ratio,
            kv=order.mode == "kv",
        )
        return {
            "mode": order.mode,
            "link": order.link,
            "device": self._number,
            "number": order.number,
            "begun": begun,
            "ended": time.time(),
            "prefill_tps": prefill_tps,
            **figures(outcome, self._settings.rate),
        }

    def _budget(self, prompt_tokens: int) -> int:
        """Return the budget that the device's server would set with ``decode_budget = "auto"``."""
        from pdd_core.break_even import break_even_budget
        from pdd_llamacpp_adapter.runtime.agreement import HEADROOM

        budget = break_even_budget(
            prompt_tokens, rate=self._settings.rate, prefill_tps=self.speed.prefill_tps, headroom=HEADROOM
        )
        return min(budget or self._settings.max_tokens, self._settings.max_tokens)

    def _kv_budget(self, prompt_tokens: int, link: Link | None) -> int:
        """Return the budget for a link whose goodput is known, and cells that come while the device prefills."""
        from pdd_llamacpp_adapter.runtime.agreement import HEADROOM

        cells = self._kv.clouds[None].info.kv
        budget = kv_budget(
            prompt_tokens,
            rate=self._settings.rate,
            prefill_tps=self.speed.prefill_tps,
            cells_per_s=math.inf if link is None else link.bytes_per_s / cells.cell_bytes,
            rtt_s=0.0 if link is None else link.rtt_s,
            headroom=HEADROOM,
        )
        return min(budget or self._settings.max_tokens, self._settings.max_tokens)

    async def _session(
        self,
        prompt: list[int],
        engines: dict[str, Any],
        *,
        max_tokens: int,
        budget: int | None,
        rate: float,
        refine_ratio: float | None = None,
        kv: bool = False,
    ) -> Any:
        from pdd_core.refinement.guard import Guard
        from pdd_llamacpp_adapter import AnswerRequest, AnswerSession

        for side in (self._plain, self._kv):
            side.engine.reset()
        guard = Guard(threshold=self._settings.guard_nats)
        request = AnswerRequest(
            prompt_token_ids=prompt,
            max_tokens=max_tokens,
            ignore_eos=True,
            decode_budget=budget,
            refine_ratio=refine_ratio,
            kv=kv,
            cache_salt=secrets.token_hex(8),  # the cloud's prefix cache would remember the mode before
        )
        async with AnswerSession(
            request, rate=rate, flush_within=math.inf, speed=self.speed, guard=guard, **engines
        ) as answer:
            async for _ in answer:
                pass
        return answer.outcome

    def _prompt(self, number: int) -> list[int]:
        """Return a chat prompt of about the wanted length: real text, another one for each device and number."""
        vocab, wanted = self._plain.engine.vocab, self._settings.prompt_tokens
        text = _text()
        begins = (self._number * 7919 + (number + 1) * 104729) % (len(text) // 2)
        low, high = 0, 8 * wanted
        while high - low > 8:
            middle = (low + high) // 2
            low, high = (
                (middle, high) if len(_chat(vocab, text[begins : begins + middle])) <= wanted else (low, middle)
            )
        return _chat(vocab, text[begins : begins + low])


def _chat(vocab: Any, text: str) -> list[int]:
    return vocab.render_chat([{"role": "user", "content": f"{text}\n\nSummarise this text."}])


def _text() -> str:
    """Real text of any length: the reference of the Python language, which comes with Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def figures(outcome: Any, rate: float) -> dict[str, Any]:
    """Return what the user saw and what it cost, JSON-ready."""
    from pdd_core.qoe import STALL_GAPS
    from pdd_core.timeline import Source

    timeline = outcome.timeline
    gaps = timeline.gaps
    return {
        "prompt_tokens": outcome.prompt_tokens,
        "tokens": len(timeline.tokens),
        "ttft_s": timeline.ttft,
        "gap_mean_s": timeline.tpot_mean,
        "gap_max_s": timeline.tpot_max,
        "stalls": sum(gap > STALL_GAPS / rate for gap in gaps),
        "decode_budget": outcome.decode_budget,
        "cloud_tokens": timeline.count(Source.CLOUD) + outcome.cloud_tokens_in_vain,
        "cloud_tokens_in_vain": outcome.cloud_tokens_in_vain,
        "device_tokens": timeline.count(Source.DEVICE),
        "took_over_at": outcome.took_over_at,
        "extensions": outcome.extensions,
        "cloud_error": outcome.cloud_error,
        "finish_reason": outcome.finish_reason,
        "refinement": None if outcome.refinement is None else asdict(outcome.refinement),
        "kv": None if outcome.kv is None else asdict(outcome.kv),
        "shown_at": [round(token.shown_at, 3) for token in timeline.tokens],
    }
