"""Cells that the engine's own prefill made, given back to it in pieces while it prefills the front."""

from __future__ import annotations

from itertools import pairwise

import anyio
import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions
import numpy as np
import pytest
from near_ties import NEAR_TIE, assert_same

from pdd_core.errors import ConfigurationError, DeviceEngineFailed, InvalidCells
from pdd_core.kv.cell_types import CellType
from pdd_core.kv.pieces import pieces_between
from pdd_llamacpp_adapter import DeviceEngine
from pdd_llamacpp_adapter.engine.kv.sequence_state import read

pytestmark = pytest.mark.anyio

CACHES = {"f16": (CellType.F16, False), "f16-fa": (CellType.F16, True)}
CACHES |= {"q8_0-fa": (CellType.Q8_0, True), "q4_0-fa": (CellType.Q4_0, True)}
NEAR = {CellType.F16: NEAR_TIE, CellType.Q8_0: 0.4, CellType.Q4_0: 1.6}
"""Cells that lie in another order make sums that differ in the last bits, by which a few of the next cells are
rounded otherwise. These are the largest differences of logits that followed within 24 tokens."""
CELLS = 300
"""Those of the prompt without its last token: two whole pieces, and a part of one."""
ANSWER = 48


@pytest.fixture(scope="module", params=CACHES)
def opened(request, gguf):
    kind, flash_attn = CACHES[request.param]
    with DeviceEngine.open(
        gguf, n_ctx=1024, kv=True, cache_type_k=kind, cache_type_v=kind, flash_attn=flash_attn
    ) as engine:
        yield engine


@pytest.fixture
def taking(opened):
    opened.reset()
    return opened


@pytest.fixture(scope="module")
def own(opened, long_prompt):
    """The cells that `opened` makes of the prompt, and how it answers from them."""

    async def make():
        cells = await own_cells(opened, long_prompt[:CELLS])
        await process(opened, long_prompt[:CELLS])
        return cells, await greedy(opened, long_prompt[CELLS])

    return anyio.run(make)


@pytest.fixture(scope="module")
def f16(gguf):
    with DeviceEngine.open(gguf, n_ctx=1024, kv=True) as engine:
        yield engine


@pytest.fixture
def usual(f16):
    """Of the usual cache only: where the type makes no difference."""
    f16.reset()
    return f16


async def process(engine, ids, chunk=64):
    logits = None
    for start in range(0, len(ids), chunk):
        logits = await engine.slots[0].extend(ids[start : start + chunk], want_logits=start + chunk >= len(ids))
    return logits


async def greedy(engine, last, count=ANSWER):
    """Return `count` tokens behind what the engine holds and the token `last`."""
    made, logits = [], await engine.slots[0].extend([last], want_logits=True)
    while len(made) < count:
        made.append(int(logits.argmax()))
        logits = await engine.slots[0].extend(made[-1:], want_logits=True)
    return made


async def own_cells(engine, ids):
    """Return the cells of `ids` that a prefill of the engine's makes, as vLLM would send them."""
    engine.reset()
    await process(engine, ids)
    cells = engine.slots[0].memory.sequence.cells
    found = read(cells.layout, cells.own(0, len(ids)))
    engine.reset()
    return found


async def add(engine, cells, start, end):
    await engine.slots[0].memory.add_cells(start, cells.keys[:, start:end], cells.values[:, start:end])


async def read_with_two_fronts(engine, ids, cells, front):
    """Let the engine hold `ids`: the first `front` by prefill, the others by pieces that arrive meanwhile."""
    pieces, done = list(pieces_between(front, len(ids))), 0
    while pieces or done < front:
        if pieces:
            piece = pieces.pop(0)
            await add(engine, cells, piece.start, piece.end)
        if done < front:
            await engine.slots[0].extend(ids[done : min(front, done + 64)])
            done = engine.slots[0].memory.n_past
    await engine.slots[0].memory.join_cells(ids)


@pytest.mark.parametrize("front", [0, 1, CELLS // 2, CELLS - 1])
async def test_joined_cells_are_answered_from_as_the_engines_own(taking, own, long_prompt, front):
    ids, last = long_prompt[:CELLS], long_prompt[CELLS]
    cells, answer = own
    taking.reset()
    await read_with_two_fronts(taking, ids, cells, front)
    assert taking.slots[0].memory.sequence.ids == ids
    joined = taking.slots[0].memory.sequence.cells
    held = read(joined.layout, joined.own(front, CELLS))
    assert held.positions.tolist() == list(range(front, CELLS))
    assert np.array_equal(held.keys, cells.keys[:, front:]), "the same bits, once unpacked and packed again"
    assert np.array_equal(held.values, cells.values[:, front:])
    await same(taking, [*ids, last], await greedy(taking, last), answer)


async def same(engine, prompt, ours, theirs):
    await assert_same(engine, prompt, ours, theirs, near=NEAR[engine.slots[0].memory.sequence.cells.layout.kind])


async def test_the_engine_goes_on_from_joined_cells_in_a_next_turn_and_after_a_rewind(taking, own, long_prompt):
    ids, last, turn = long_prompt[:CELLS], long_prompt[CELLS], long_prompt[400:440]
    cells, _ = own
    taking.reset()
    await process(taking, ids)
    await taking.slots[0].extend([last])
    await process(taking, turn)
    next_turn = await greedy(taking, 7)
    assert await taking.slots[0].memory.rewind(200) == 200
    await process(taking, turn)
    rewound = await greedy(taking, 7)
    taking.reset()
    await read_with_two_fronts(taking, ids, cells, 100)
    await taking.slots[0].extend([last])
    conversation = [*ids, last, *turn, 7]
    assert await taking.slots[0].memory.start(conversation) == CELLS + 1
    await process(taking, turn)
    found = await greedy(taking, 7)
    assert await taking.slots[0].memory.rewind(200) == 200
    assert taking.slots[0].memory.sequence.ids == ids[:200]
    await process(taking, turn)
    other = await greedy(taking, 7)
    await same(taking, conversation, found, next_turn)
    await same(taking, [*ids[:200], *turn, 7], other, rewound)


async def test_a_memory_with_joined_cells_can_be_put_aside_and_taken_back(taking, own, long_prompt):
    ids, last = long_prompt[:CELLS], long_prompt[CELLS]
    cells, _ = own
    taking.reset()
    await read_with_two_fronts(taking, ids, cells, 100)
    saved = await taking.slots[0].memory.save()
    found = await greedy(taking, last)
    await taking.slots[0].memory.load(saved)
    assert taking.slots[0].memory.sequence.ids == ids
    await same(taking, [*ids, last], await greedy(taking, last), found)


async def test_cells_that_are_dropped_leave_the_front_as_it_is(taking, own, long_prompt):
    ids, last = long_prompt[:CELLS], long_prompt[CELLS]
    cells, answer = own
    taking.reset()
    await add(taking, cells, 200, CELLS)
    await process(taking, ids[:100])
    await taking.slots[0].memory.drop_cells()
    with pytest.raises(DeviceEngineFailed, match="do not lie between 100 and 300"):
        await taking.slots[0].memory.join_cells(ids)
    assert taking.slots[0].memory.sequence.ids == ids[:100]
    await process(taking, ids[100:])
    await same(taking, [*ids, last], await greedy(taking, last), answer)


async def test_own_cells_compare_as_the_same_and_others_do_not(taking, own, long_prompt):
    cells, _ = own
    taking.reset()
    await process(taking, long_prompt[:CELLS])
    part = cells.keys[:, 100:200], cells.values[:, 100:200]
    assert await taking.slots[0].memory.compare_cells(100, *part) > 0.9999
    assert await taking.slots[0].memory.compare_cells(101, *part) < 0.5
    assert await taking.slots[0].memory.compare_cells(100, part[0][..., ::-1].copy(), part[1]) < 0.5
    assert taking.slots[0].memory.n_past == CELLS
    with pytest.raises(DeviceEngineFailed, match="no cells from 250 to 350"):
        await taking.slots[0].memory.compare_cells(250, *part)


async def test_a_front_may_have_read_on_into_the_cells(usual, long_prompt):
    ids, last = long_prompt[:CELLS], long_prompt[CELLS]
    cells = await own_cells(usual, ids)
    await process(usual, ids)
    own = await greedy(usual, last)
    usual.reset()
    await add(usual, cells, 128, CELLS)
    await process(usual, ids[:150])
    await usual.slots[0].memory.join_cells(ids)
    await assert_same(usual, [*ids, last], await greedy(usual, last), own)


REFUSED = {
    "a gap": (40, 100),
    "an overlap": (40, 130),
    "behind": (CELLS, CELLS + 20),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_pieces_that_do_not_follow_each_other_are_refused_and_all_are_dropped(usual, long_prompt, case):
    cells = await own_cells(usual, long_prompt[: CELLS + 20])
    await process(usual, long_prompt[:40])
    await add(usual, cells, 128, CELLS)
    with pytest.raises(DeviceEngineFailed, match="do not end where those from 128 on begin"):
        await add(usual, cells, *REFUSED[case])
    await holds_its_front_alone(usual, long_prompt)


async def test_arrays_that_are_none_of_the_models_are_refused_and_all_are_dropped(usual, long_prompt):
    cells = await own_cells(usual, long_prompt[:CELLS])
    await process(usual, long_prompt[:40])
    await add(usual, cells, 128, CELLS)
    with pytest.raises(InvalidCells, match="not of this model"):
        await usual.slots[0].memory.add_cells(40, cells.keys[:29, 40:128], cells.values[:29, 40:128])
    await holds_its_front_alone(usual, long_prompt)


async def test_ids_that_the_front_does_not_begin_with_are_refused(usual, long_prompt):
    cells = await own_cells(usual, long_prompt[:CELLS])
    for ids in (long_prompt[1 : CELLS + 1], long_prompt[: CELLS - 1], long_prompt[: CELLS + 1]):
        usual.reset()
        await process(usual, long_prompt[:40])
        await add(usual, cells, 40, CELLS)
        with pytest.raises(DeviceEngineFailed):
            await usual.slots[0].memory.join_cells(ids)
        await holds_its_front_alone(usual, long_prompt)


async def test_a_state_that_llama_refuses_leaves_the_front(usual, long_prompt, monkeypatch):
    cells = await own_cells(usual, long_prompt[:CELLS])
    await process(usual, long_prompt[:40])
    await add(usual, cells, 128, CELLS)
    taken = L.llama_state_seq_set_data
    monkeypatch.setattr(
        L, "llama_state_seq_set_data", lambda ctx, data, size, seq: taken(ctx, data, size - 9, seq)
    )
    with pytest.raises(DeviceEngineFailed, match="does not take cells"):
        await add(usual, cells, 40, 128)
    await holds_its_front_alone(usual, long_prompt)


async def holds_its_front_alone(engine, prompt):
    """The engine holds the first 40 tokens, no cells wait, and it goes on from there as ever."""
    assert len(engine.slots[0].memory.sequence.cells) == 0
    assert engine.slots[0].memory.sequence.ids == prompt[:40]
    for sequence in (1, 2):
        assert L.llama_memory_seq_pos_max(engine.slots[0].memory.sequence.context.memory, sequence) == -1
    with pytest.raises(DeviceEngineFailed):
        await engine.slots[0].memory.join_cells(prompt[:CELLS])
    found = await process(engine, prompt[40:104])
    engine.reset()
    expected = await process(engine, prompt[:40])
    expected = await process(engine, prompt[40:104])
    np.testing.assert_allclose(found, expected, atol=0.05)


async def test_a_batch_that_fails_before_any_front_leaves_the_cells(usual, long_prompt, monkeypatch):
    cells = await own_cells(usual, long_prompt[:CELLS])
    await add(usual, cells, 64, CELLS)
    with monkeypatch.context() as broken:
        broken.setattr(L, "llama_decode", lambda ctx, batch: -3)
        with pytest.raises(DeviceEngineFailed, match="-3"):
            await usual.slots[0].extend(long_prompt[:64])
    await process(usual, long_prompt[:64])
    await usual.slots[0].memory.join_cells(long_prompt[:CELLS])
    assert usual.slots[0].memory.n_past == CELLS


async def test_what_starts_anew_drops_cells(usual, long_prompt):
    cells = await own_cells(usual, long_prompt[:CELLS])

    async def saved_and_loaded():
        await usual.slots[0].memory.load(await usual.slots[0].memory.save())

    ways = (
        lambda: usual.slots[0].memory.rewind(0),
        lambda: usual.slots[0].memory.start(long_prompt),
        saved_and_loaded,
    )
    for way in ways:
        await process(usual, long_prompt[:40])
        await add(usual, cells, 40, CELLS)
        await way()
        assert len(usual.slots[0].memory.sequence.cells) == 0
        usual.reset()


async def test_cells_do_not_take_the_room_of_a_front_that_has_overtaken_them(gguf, long_prompt):
    with DeviceEngine.open(gguf, n_ctx=512, kv=True) as engine:
        cells = await own_cells(engine, long_prompt[:500])
        await add(engine, cells, 100, 500)
        await process(engine, long_prompt[:500])
        assert engine.slots[0].memory.n_past == 500
        assert len(engine.slots[0].memory.sequence.cells) == 0


async def test_an_engine_that_takes_cells_in_does_everything_else_bit_by_bit_as_one_that_does_not(
    usual, engine, long_prompt
):
    found = []
    for one in (usual, engine):
        rows = [await process(one, long_prompt[:300])]
        rows += [await one.slots[0].extend([token], want_logits=True) for token in long_prompt[300:332]]
        await one.slots[0].memory.rewind(150)
        rows += [await process(one, long_prompt[400:500], chunk=100)]
        found.append(np.stack(rows))
    assert np.array_equal(*found)


async def test_an_engine_that_was_not_asked_to_takes_no_cells_in(engine, usual, long_prompt):
    cells = await own_cells(usual, long_prompt[:20])
    assert engine.kv.shape is None
    await engine.slots[0].memory.drop_cells()
    with pytest.raises(DeviceEngineFailed, match="not switched on"):
        await add(engine, cells, 0, 20)


async def test_quantised_values_need_flash_attention(gguf):
    with pytest.raises(ConfigurationError, match="flash_attn"):
        DeviceEngine.open(gguf, n_ctx=256, cache_type_k="q8_0", cache_type_v="q8_0")


def test_pieces_of_the_tests_are_of_different_sizes():
    sizes = [piece.tokens for piece in pieces_between(0, CELLS)]
    assert sizes == [44, 128, 128]
    assert all(a.start == b.end for a, b in pairwise(pieces_between(0, CELLS)))
