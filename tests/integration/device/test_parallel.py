"""Several answers at the same time, on the real engine: each is the one that it would be by itself."""

from __future__ import annotations

import json
import math
from contextlib import aclosing

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from gguf_files import VOCABULARIES, Model
from near_ties import assert_same

from pdd_core.errors import ContextOverflow, DeviceEngineFailed
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, DeviceEngine
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed, probe
from pdd_llamacpp_adapter.request import Grammar, GrammarKind

pytestmark = pytest.mark.anyio

SLOTS = 4
TOPICS = ("rivers in Europe", "bees", "how bread is made", "the moon", "old maps", "chess", "salt", "lighthouses")
LENGTH = 32
LONG = 120


@pytest.fixture(scope="module")
def several(gguf):
    with DeviceEngine.open(gguf, n_ctx=1024, threads=1, parallel=SLOTS, kv=True) as engine:
        yield engine


@pytest.fixture
def slots(several):
    for slot in several.slots:
        slot.reset()
    return several.slots


def prompts(engine):
    return [
        engine.vocab.render_chat([{"role": "user", "content": f"Say three things about {topic}."}])
        for topic in TOPICS
    ]


async def answered(engine, prompt, max_tokens=LENGTH, **fields):
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=max_tokens, **({"ignore_eos": True} | fields))
    async with AnswerSession(request, engine=engine, rate=math.inf) as answer:
        return [token.token_id async for token in answer]


async def at_once(works):
    found = [None] * len(works)

    async def run(index, work):
        found[index] = await work

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            for index, work in enumerate(works):
                tasks.start_soon(run, index, work)
    return found


async def test_answers_made_together_are_those_made_one_by_one(several, slots, engine):
    asked = prompts(several)
    alone = [await answered(engine, prompt) for prompt in asked]
    together = await at_once([answered(several, prompt) for prompt in asked])
    for prompt, ours, theirs in zip(asked, together, alone, strict=True):
        await assert_same(engine, prompt, ours, theirs)
    assert len(several.queue._free) == SLOTS


async def test_each_keeps_to_a_grammar_of_its_own(several, slots):
    words = [["alpha", "beta"], ["one", "two", "three"], ["red", "green"], ["north", "south"]]
    found = await at_once(
        [
            answered(several, prompt, grammar=Grammar(GrammarKind.CHOICE, json.dumps(ones)), ignore_eos=False)
            for prompt, ones in zip(prompts(several)[:4], words, strict=True)
        ]
    )
    for ids, ones in zip(found, words, strict=True):
        assert b"".join(map(several.vocab.piece, ids)).decode() in ones


async def test_a_sequence_holds_what_it_says_whoever_shares_its_batches(several, slots, long_prompt):
    pieces = [long_prompt[start : start + 200] for start in (0, 100, 200, 300)]
    for slot, ids in zip(slots, pieces, strict=True):
        await slot.extend(ids)
    plain = [await slot.extend(ids[:1], want_logits=True) for slot, ids in zip(slots, pieces, strict=True)]
    for slot in slots:
        assert await slot.memory.rewind(200) == 200
    shared = await at_once(
        [slot.extend(ids[:1], want_logits=True) for slot, ids in zip(slots, pieces, strict=True)]
    )
    for slot, ids, one, other in zip(slots, pieces, plain, shared, strict=True):
        assert slot.memory.sequence.ids == [*ids, ids[0]]
        assert np.abs(one - other).max() < 0.05
        assert slot.memory.holds([*ids, ids[0], 5]) == 201


async def test_an_answer_that_is_cancelled_costs_the_others_nothing(several, slots, engine):
    asked = prompts(several)[:3]
    alone = [await answered(engine, prompt) for prompt in asked[1:]]
    begun = anyio.Event()

    async def cut_short():
        request = AnswerRequest(prompt_token_ids=asked[0], max_tokens=500, ignore_eos=True)
        async with AnswerSession(request, engine=several, rate=math.inf) as answer:
            async for _ in answer:
                begun.set()

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()

            async def cancelled():
                with scope:
                    await cut_short()

            tasks.start_soon(cancelled)
            await begun.wait()
            found = []

            async def rest():
                found.extend(await at_once([answered(several, prompt) for prompt in asked[1:]]))

            tasks.start_soon(rest)
            await anyio.lowlevel.checkpoint()
            scope.cancel()
    for prompt, ours, theirs in zip(asked[1:], found, alone, strict=True):
        await assert_same(engine, prompt, ours, theirs)
    assert len(several.queue._free) == SLOTS


async def test_a_chat_goes_on_in_the_slot_that_has_it(several, slots):
    asked = prompts(several)[:4]
    first = await at_once([answered(several, prompt, 8) for prompt in asked])
    for prompt, ids in zip(asked, first, strict=True):
        turn = [*prompt, *ids, *several.vocab.tokenize(" And then?")]
        held = several.slot_for(turn).memory.holds(turn)
        assert held >= len(prompt) + 7
    request = AnswerRequest(prompt_token_ids=[*asked[2], *first[2], 30], max_tokens=4, ignore_eos=True)
    async with AnswerSession(request, engine=several, rate=math.inf) as answer:
        _ = [token async for token in answer]
    assert answer.outcome.reused_tokens >= len(asked[2]) + 7


async def test_each_slot_has_room_for_an_answer_of_its_own(gguf, long_prompt):
    with DeviceEngine.open(gguf, n_ctx=128, threads=1, parallel=SLOTS) as engine:
        assert engine.n_ctx == 128
        for slot in engine.slots:
            await slot.extend(long_prompt[:127])
        await at_once([slot.extend(long_prompt[:1]) for slot in engine.slots])
        assert [slot.memory.n_past for slot in engine.slots] == [128] * SLOTS
        with pytest.raises(ContextOverflow):
            await engine.slots[2].extend([1])


async def test_cells_are_handed_to_each_slot(several, slots, long_prompt):
    from pdd_llamacpp_adapter.engine.kv.sequence_state import read

    ids = long_prompt[:200]
    plain = await slots[0].extend(ids, want_logits=True)
    cells = slots[0].memory.sequence.cells
    own = read(cells.layout, cells.own(0, 199))

    async def taken(slot):
        await slot.extend(ids[:60])
        await slot.memory.add_cells(120, own.keys[:, 120:], own.values[:, 120:])
        await slot.memory.add_cells(60, own.keys[:, 60:120], own.values[:, 60:120])
        await slot.memory.join_cells(ids[:199])
        return await slot.extend(ids[199:], want_logits=True)

    for logits in await at_once([taken(slot) for slot in slots[1:]]):
        assert np.abs(logits - plain).max() < 0.1
    assert [slot.memory.n_past for slot in slots] == [200] * SLOTS


async def greedy_ids(slot, ids, count=200):
    made, logits = [], await slot.extend(ids, want_logits=True)
    for _ in range(count):
        made.append(int(logits.argmax()))
        logits = await slot.extend(made[-1:], want_logits=True)
    return made


async def next_turn(slot, prompt, made):
    """Another end behind most of the answer; whatever of it is held is not read again."""
    turn = [*prompt, *made[:-5], 9, 9]
    kept = await slot.memory.start(turn)
    return kept, await greedy_ids(slot, turn[kept:], 20)


@pytest.mark.parametrize("swa_full", [True, False])
async def test_a_sliding_window_moves_with_each_answer_by_itself(tmp_path, swa_full):
    (path,) = Model(VOCABULARIES["spm"](), arch="gemma3", context=2048).write(tmp_path / "window.gguf")
    asked = [[5 + index * step % 23 for index in range(300)] for step in (3, 5, 7)]
    found = []
    for slots in (1, 3):
        params = {"n_ctx": 1024, "threads": 1, "parallel": slots, "swa_full": swa_full, "batch_size": 64}
        with DeviceEngine.open(path, **params) as engine:
            places = engine.slots * (3 // slots)
            if slots == 1:
                answers = []
                for prompt in asked:
                    engine.reset()
                    made = await greedy_ids(places[0], prompt)
                    answers.append((made, await next_turn(places[0], prompt, made)))
            else:
                first = await at_once([greedy_ids(*one) for one in zip(places, asked, strict=True)])
                turns = [next_turn(*one) for one in zip(places, asked, first, strict=True)]
                answers = list(zip(first, await at_once(turns), strict=True))
            found.append(answers)
    assert found[0] == found[1]


async def test_closing_the_engine_ends_all_answers(gguf):
    with DeviceEngine.open(gguf, n_ctx=512, threads=1, parallel=2) as engine:
        failed = []

        async def make(slot, prompt):
            logits = await slot.extend(prompt, want_logits=True)
            try:
                async with aclosing(slot.generate(logits, greedy)) as steps:
                    async for step in steps:
                        running.add(slot)
                        if len(running) == 2:
                            both.set()
                        assert step.choices
            except DeviceEngineFailed as error:
                failed.append(str(error))

        running, both = set(), anyio.Event()
        with anyio.fail_after(LONG):
            async with anyio.create_task_group() as tasks:
                for slot, prompt in zip(engine.slots, prompts(engine)[:2], strict=True):
                    tasks.start_soon(make, slot, prompt)
                await both.wait()
                await anyio.to_thread.run_sync(engine.close)
    assert len(failed) == 2
    assert all("closed" in message for message in failed)


def greedy(logits):
    from pdd_llamacpp_adapter.engine.steps import Choice

    return Choice(int(logits.argmax()), last=False)


async def test_the_probe_sees_what_sharing_costs(several, slots):
    await probe(several, DeviceSpeed(), size=several.vocab.size)
    assert 1.0 <= several.sharing.together < 3 * SLOTS
    assert [slot.memory.n_past for slot in slots] == [0] * SLOTS
