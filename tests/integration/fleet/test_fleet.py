"""Two vLLMs behind vllm-router, which loses headers and queries, and a device: no token is lost or comes twice."""

import asyncio
import math
import re

import pytest
from cloud_support import KEY, new_id, wait_until
from device_server import PATIENT, DeviceServer
from fleet_example import fleet
from held_engine import Held
from rich.console import Console

from pdd_core.patience import Patience
from pdd_core.timeline import Source
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, CloudClient

pytestmark = pytest.mark.anyio

QUESTIONS = ["What do bees make?", "What is the capital of France?", "Write one sentence about the moon."]
"""The best two tokens of their greedy answers are nowhere closer than 0.07 nats: see test_with_cloud.py."""
LENGTH, LONG = 32, 1500
GREEDY = {
    "model": "smollm2",
    "temperature": 0,
    "max_tokens": LENGTH,
    "frequency_penalty": 0,
    "presence_penalty": 0,
}
ROOM = 1024
"""Tokens of the device's context, in which the facts do not fit."""
WAIT = Patience(late_s=math.inf, first_token_s=120.0)
FACTS = " ".join(
    f"Room {n} of the museum shows things that were found in the year {1700 + 7 * n}." for n in range(60)
)
VLLMS_OWN = (
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    "vllm:time_to_first_token_seconds_bucket",
)
"""What deploy/grafana/pdd-device.json shows of vLLM's own."""


def messages(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def paired(behind_router, tmp_path_factory):
    """A device as users start it."""
    flags = ("--gguf", "demo", "--n-ctx", str(ROOM), "--cloud", behind_router.url, "--cloud-api-key", KEY)
    folder = tmp_path_factory.mktemp("device")
    with DeviceServer(folder, *flags, "--decode-budget", "8", "--refine", "0.25", **PATIENT) as server:
        yield server.connected()


@pytest.fixture
def alone(behind_router, engine):
    """What a replica alone answers, asked past the router and without opting in: text and token ids."""

    def answer(question):
        with behind_router.replicas[-1].client() as client:
            prompt = engine.vocab.render_chat(messages(question))
            made = client.completions.create(**GREEDY, prompt=prompt, extra_body={"return_token_ids": True})
        choice = made.choices[0]
        return choice.text, [token for token in choice.token_ids if token not in engine.vocab.stop_ids]

    return answer


@pytest.fixture
def answered(behind_router, engine):
    async def answer(question, *, on_token, budget, max_tokens=LENGTH, patience=WAIT):
        """The shown tokens and the outcome.

        `on_token(session, shown, device)` is told of each token: it lets the device begin, and says when to leave.
        """
        engine.reset()
        device = Held(engine)
        prompt = engine.vocab.render_chat(messages(question))
        request = AnswerRequest(prompt_token_ids=prompt, max_tokens=max_tokens, decode_budget=budget)
        shown = []
        async with CloudClient(behind_router.url, api_key=KEY) as client:
            await client.connect(engine.vocab)
            async with AnswerSession(
                request, engine=device, cloud=client, rate=math.inf, patience=patience
            ) as session:
                async for token in session:
                    shown.append(token)
                    if on_token(session, shown, device):
                        break
        return shown, session.outcome

    return answer


@pytest.fixture
def ids(engine):
    """The ids of shown tokens, without the one that ends an answer."""
    return lambda shown: [token.token_id for token in shown if token.token_id not in engine.vocab.stop_ids]


def by_replica(behind_router):
    return [replica.metric("pdd_requests_total") for replica in behind_router.replicas]


def test_an_answer_is_the_replicas_own_to_the_letter_and_sessions_reach_both(behind_router, paired, alone):
    expected = {question: alone(question)[0] for question in QUESTIONS}
    with paired.client() as client:
        for number in range(40):  # each has an even chance to reach the replica that has had none yet
            question = QUESTIONS[number % len(QUESTIONS)]
            of_its_own = {"X-Session-ID": new_id()}
            answer = client.chat.completions.create(
                **GREEDY, messages=messages(question), extra_headers=of_its_own
            )
            assert answer.choices[0].message.content == expected[question]
            assert answer.pdd["mode"] == "handoff"
            assert answer.pdd["cloud_error"] is None
            assert answer.pdd["tokens"]["cloud"] > 0
            if number >= len(QUESTIONS) and all(by_replica(behind_router)):
                return
    pytest.fail("one replica had no answer to make")


def test_the_refined_prompt_comes_through_the_router(behind_router, paired):
    with paired.client() as client:
        answer = client.chat.completions.create(
            **GREEDY,
            messages=messages(f"{FACTS}\n\nWhen were the things in room 23 found?"),
            extra_body={"ignore_eos": True},
        )
    report = answer.pdd["refinement"]
    assert report["ratio"] == 0.25
    assert 0 < report["kept_tokens"] <= 0.25 * report["prompt_tokens"] + 64
    assert behind_router.metric("pdd_refinements_total", method="attention") >= 1
    assert answer.usage.completion_tokens == LENGTH


async def test_a_late_device_goes_on_where_the_budget_ended(answered, alone, ids):
    def after_the_budget(_, shown, device):
        if len(shown) == 8:
            device.begin.set()

    shown, outcome = await answered(QUESTIONS[0], on_token=after_the_budget, budget=8)
    assert ids(shown) == alone(QUESTIONS[0])[1]
    assert [token.source for token in shown] == [Source.CLOUD] * 8 + [Source.DEVICE] * (len(shown) - 8)
    assert outcome.extensions == 0
    assert outcome.cloud_error is None


async def test_further_legs_reach_the_replica_of_the_first(behind_router, answered, alone, ids):
    behind_router.wait_still()
    before, extended = by_replica(behind_router), behind_router.metric("pdd_extensions_total")

    def in_the_second_leg(_, shown, device):
        if len(shown) == 5:
            device.begin.set()

    patience = Patience(late_s=0.0, max_extensions=LENGTH)
    shown, outcome = await answered(QUESTIONS[1], on_token=in_the_second_leg, budget=3, patience=patience)
    assert ids(shown) == alone(QUESTIONS[1])[1]
    assert outcome.extensions >= 1
    assert outcome.cloud_error is None
    behind_router.wait_still()
    assert behind_router.metric("pdd_extensions_total") > extended
    unused, used = sorted(now - then for now, then in zip(by_replica(behind_router), before, strict=True))
    assert unused == 0
    assert used >= 2


async def test_leaving_stops_the_replica(behind_router, answered):
    behind_router.wait_still()
    before = behind_router.metric("pdd_requests_total", status="aborted")
    made = behind_router.metric("pdd_generated_tokens_total")
    shown, outcome = await answered(QUESTIONS[2], on_token=lambda *_: True, budget=LONG, max_tokens=LONG)
    assert len(shown) == 1
    assert outcome.finish_reason == "cancelled"
    behind_router.wait_still()
    assert behind_router.metric("pdd_requests_total", status="aborted") == before + 1
    assert behind_router.metric("pdd_generated_tokens_total") - made < LONG / 2


def test_the_example_answers(behind_router, prepared, tmp_path, capsys):
    """All of it but its own vLLMs."""
    workers = [replica.server.root_url for replica in behind_router.replicas]
    with fleet.front(workers, prepared, KEY, tmp_path, Console()) as (_, device):
        answer = fleet.ask(device, KEY, "Why is the sky blue?")
    printed = capsys.readouterr().out
    cloud, own = re.search(r"\[tokens of the cloud: (\d+), of the device: (\d+)\]", printed).groups()
    assert answer
    assert answer in printed
    assert int(cloud) > 0
    assert int(cloud) + int(own) <= 80


def test_the_dashboard_shows_what_vllm_has(behind_router):
    there = {sample.name for sample in behind_router.replicas[0].samples()}
    assert set(VLLMS_OWN) <= there


async def test_a_replica_dies_in_the_midst_and_the_device_finishes(behind_router, answered, paired, alone, ids):
    """The last test: one replica is gone after it."""
    expected = {question: alone(question) for question in QUESTIONS}
    behind_router.wait_still()

    lost = []

    async def begin_once_it_is_lost(session, device):
        while session.outcome.cloud_error is None:
            await asyncio.sleep(0.01)
        device.begin.set()

    def kill_at_the_first(session, shown, device):
        if len(shown) == 1:
            [replica] = wait_until(behind_router.at_work)
            replica.kill()
            behind_router.replicas.remove(replica)
            lost.append(asyncio.create_task(begin_once_it_is_lost(session, device)))
        return len(shown) >= LENGTH and shown[-1].source is Source.DEVICE

    patience = Patience(late_s=math.inf, first_token_s=120.0, cloud_retries=0)
    shown, outcome = await answered(
        QUESTIONS[2], on_token=kill_at_the_first, budget=LONG, max_tokens=LONG, patience=patience
    )
    _, whole = expected[QUESTIONS[2]]
    assert ids(shown)[: len(whole)] == whole
    sources = [token.source for token in shown]
    assert sources[0] is Source.CLOUD
    assert sources == sorted(sources, key=[Source.CLOUD, Source.DEVICE].index)
    assert outcome.cloud_error.startswith("CloudLost")
    assert lost[0].done()

    def from_the_cloud():
        """However the router deals with the dead one meanwhile: each answer is whole."""
        with paired.client() as client:
            answer = client.chat.completions.create(
                **GREEDY, messages=messages(QUESTIONS[0]), extra_headers={"X-Session-ID": new_id()}
            )
        assert answer.choices[0].message.content == expected[QUESTIONS[0]][0]
        return answer.pdd["tokens"]["cloud"]

    wait_until(from_the_cloud, seconds=120)
