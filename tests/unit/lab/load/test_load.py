from __future__ import annotations

import time

import anyio
import numpy as np
import pytest
from load_server import FakeServer, serving

from pdd_core.errors import CloudRefused, CloudUnreachable, ConfigurationError
from pdd_core.timeline import Source
from pdd_lab.load.measuring_client import LoadClient
from pdd_lab.load.random_prompts import Prompts
from pdd_lab.load.reply import Reply
from pdd_lab.traces import Trace

PROMPT = [1, 2, 3]


def asked(fake: FakeServer, *, tokens: int = 4, probed: bool = True, **options) -> Reply:
    async def run() -> Reply:
        async with LoadClient(f"{fake.url}/v1", **options) as client:
            await client.served()
            if probed:
                await client.probe(PROMPT)
            reply = Reply(index=0, due=time.monotonic(), prompt_tokens=len(PROMPT))
            await client.ask(reply, PROMPT, max_tokens=tokens)
            return reply

    return anyio.run(run)


def test_every_token_has_its_time_and_the_lengths_are_forced() -> None:
    with serving(FakeServer()) as fake:
        reply = asked(fake)
    assert reply.ok
    assert len(reply.token_times) == reply.tokens == 4
    assert reply.token_times == sorted(reply.token_times)
    assert reply.by_source() == {Source.CLOUD: 4, Source.DEVICE: 0}
    last = fake.requests[-1]
    assert (last["min_tokens"], last["max_tokens"], last["ignore_eos"]) == (4, 4, True)
    assert last["prompt"] == PROMPT
    assert last["model"] == "fake"


def test_a_server_that_cannot_be_forced_is_asked_without() -> None:
    with serving(FakeServer(refuses=("ignore_eos",))) as fake:
        reply = asked(fake)
    assert reply.ok
    assert "min_tokens" not in fake.requests[-1]
    assert "ignore_eos" in fake.requests[0]


def test_what_a_local_server_tells_says_who_made_the_answer() -> None:
    told = {"mode": "handoff", "tokens": {"cloud": 1, "device": 3}}
    with serving(FakeServer(pdd=told, owned_by="pdd-device")) as fake:
        reply = asked(fake)
    assert reply.mode == "handoff"
    assert reply.by_source() == {Source.CLOUD: 1, Source.DEVICE: 3}


@pytest.mark.parametrize(
    ("cloud", "device", "mode"), [(3, 4, "handoff"), (3, 0, "cloud_only"), (0, 4, "device_only")]
)
def test_the_mode_is_who_made_the_answer_not_who_was_to(cloud: int, device: int, mode: str) -> None:
    told = {"mode": "handoff", "tokens": {"cloud": cloud, "device": device}}
    assert Reply(index=0, due=0.0, prompt_tokens=1, pdd=told).mode == mode


@pytest.mark.parametrize(
    ("failure", "name", "seen"),
    [("429", "HTTP 429", 0), ("break", "broke off", 1), ("error event", "HTTP 500", 1)],
)
def test_what_goes_wrong_has_a_short_name(failure: str, name: str, seen: int) -> None:
    with serving(FakeServer(fails={1: failure})) as fake:
        reply = asked(fake, probed=False)
    assert (reply.error, len(reply.token_times), reply.ok) == (name, seen, False)


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with serving(FakeServer()) as fake:
        pass
    with pytest.raises(CloudUnreachable):
        asked(fake)


def test_a_wrong_key_is_refused_by_name() -> None:
    with serving(FakeServer(key="right")) as fake:
        with pytest.raises(CloudRefused, match="Unauthorized"):
            asked(fake, api_key="wrong")
        assert asked(fake, api_key="right").ok


def test_a_model_that_is_not_served_is_refused() -> None:
    with serving(FakeServer()) as fake, pytest.raises(CloudRefused, match="does not serve other"):
        asked(fake, model="other")


def test_what_the_server_is_can_be_asked() -> None:
    async def run(url: str):
        async with LoadClient(f"{url}/v1") as client:
            return await client.served(), await client.metrics(), await client.round_trip()

    with serving(FakeServer(plugin=True)) as fake:
        served, metrics, seconds = anyio.run(run, fake.url)
    assert (served.model, served.max_model_len, served.device) == ("fake", 4096, False)
    assert served.info["engine"] == "vllm 0.0"
    assert served.holds(4096)
    assert not served.holds(4097)
    assert "num_gpu_blocks" in metrics
    assert seconds > 0


def test_a_request_that_is_cancelled_stops_the_server() -> None:
    async def run(url: str) -> Reply:
        async with LoadClient(f"{url}/v1") as client:
            reply = Reply(index=0, due=time.monotonic(), prompt_tokens=3)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: client.ask(reply, PROMPT, max_tokens=10_000))
                while not reply.token_times:
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
            return reply

    with serving(FakeServer(gap=0.01)) as fake:
        reply = anyio.run(run, fake.url)
        for _ in range(500):
            if not fake.running:
                break
            time.sleep(0.01)
        assert (fake.running, fake.gone) == (0, 1)
    assert not reply.ok
    assert reply.error is None


def test_latencies_count_from_when_a_request_was_due() -> None:
    reply = Reply(index=0, due=10.0, prompt_tokens=1, sent=12.0, token_times=[13.0, 13.5], finished=14.0)
    assert (reply.ttft, reply.late, reply.shown()) == (3.0, 2.0, [3.0, 3.5])


def trace(*hashes: list[int], prompt: int = 10, block: int = 4) -> Trace:
    count = len(hashes)
    return Trace(
        name="t",
        arrival_s=np.zeros(count),
        prompt_tokens=np.full(count, prompt),
        output_tokens=np.ones(count, dtype=np.int64),
        hash_offsets=np.cumsum([0, *map(len, hashes)]),
        hash_values=np.array([one for each in hashes for one in each], dtype=np.int64),
        block_tokens=block,
    )


def test_equal_hashes_are_equal_beginnings_and_nothing_else_is() -> None:
    prompts, made = Prompts(), trace([1, 2, 3], [1, 2, -9], [4])
    first, second, third = (prompts.of_request(made, index) for index in range(3))
    assert [len(one) for one in (first, second, third)] == [10, 10, 10]
    assert first[:8] == second[:8]
    assert first[8:] != second[8:]
    assert third[:4] != first[:4]


def test_prompts_are_the_same_for_a_seed_and_lie_in_the_vocabulary() -> None:
    assert Prompts(seed=1).random(5, 0) == Prompts(seed=1).random(5, 0) != Prompts(seed=2).random(5, 0)
    assert all(50 <= token < 100 for token in Prompts(vocab_size=100).random(500, 0))
    with pytest.raises(ConfigurationError):
        Prompts(vocab_size=1)


def test_a_trace_without_hashes_has_prompts_with_nothing_in_common() -> None:
    bare = Trace("t", np.zeros(2), np.full(2, 6), np.ones(2, dtype=np.int64))
    prompts = Prompts()
    assert prompts.of_request(bare, 0)[:1] != prompts.of_request(bare, 1)[:1]
    assert len(prompts.of_request(bare, 1)) == 6
