"""What an engine tells of its memory, and keeps of it for a prompt."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pdd_core.errors import DeviceEngineFailed, InvalidCells
from pdd_core.kv.cell_types import CellType
from pdd_llamacpp_adapter.engine.engine_memory import EngineMemory
from pdd_llamacpp_adapter.engine.engine_thread import EngineThread
from pdd_llamacpp_adapter.engine.history import RefinedHistory
from pdd_llamacpp_adapter.engine.kv.key_order import KeyOrder
from pdd_llamacpp_adapter.engine.kv.kv_support import KVShape, KVSupport
from pdd_llamacpp_adapter.engine.kv.sequence_state import CellLayout, read

pytestmark = pytest.mark.anyio

HISTORY = RefinedHistory((0, 1, 5, 9), tuple(range(10)))
REFINED = [0, 1, 5, 9, 70, 71]
NEXT_TURN = [*range(10), 70, 71, 80, 81]


class Sequence:
    """A sequence of a context without a model."""

    context = SimpleNamespace(closed=False, kv=KVSupport())
    cells = None

    def __init__(self):
        self.ids, self.history = list(REFINED), HISTORY

    def rewind(self, length):
        del self.ids[length:]
        if self.history is not None and length < len(self.history.ids):
            self.history = None
        return length

    def state_size(self):
        return 4

    def state(self):
        return np.zeros(4, dtype=np.uint8)

    def load(self, state, ids):
        self.ids = list(ids)


@pytest.fixture
def memory():
    thread = EngineThread()
    yield EngineMemory(Sequence(), thread)
    thread.shut_down()


async def test_a_refined_history_is_gone_on_from(memory):
    assert memory.holds(NEXT_TURN) == 12
    assert await memory.start(NEXT_TURN) == 12
    assert (memory.sequence.ids, memory.history) == (REFINED, HISTORY)


async def test_while_idle_work_changes_it_the_memory_is_what_an_answer_would_find(memory):
    saved = await memory.save()
    with memory.telling_of(saved):
        await memory.rewind(2)
        assert memory.history == HISTORY
        assert memory.holds(NEXT_TURN) == 12
        assert memory.holds(NEXT_TURN, refined=False) == 2
        memory.sequence.ids = list(NEXT_TURN[:9])
        assert memory.holds(NEXT_TURN, refined=False) == 2
    assert memory.history is None
    assert memory.holds(NEXT_TURN) == 9


async def test_or_left_where_nobody_could_judge_it(memory):
    assert memory.holds(NEXT_TURN, refined=False) == 2
    assert await memory.start(NEXT_TURN, refined=False) == 2
    assert (memory.sequence.ids, memory.history) == ([0, 1], None)


class WaitingCells:
    """Cells of a context without a model."""

    layout = CellLayout(KVShape(1, 1, 32, 1e4, 32, "default", 1.0, KeyOrder.HALVES), CellType.F16, False, 100)

    def __init__(self):
        self.added = []

    def __len__(self):
        return len(self.added)

    def add(self, start, state, count):
        self.added.append((start, count, state))

    def own(self, start, end):
        return next(state for first, count, state in self.added if (first, first + count) == (start, end))

    def drop(self):
        self.added.clear()


@pytest.fixture
def waiting(memory):
    memory.sequence.cells = WaitingCells()
    return memory.sequence.cells


def numbers(cells):
    return np.random.default_rng(0).standard_normal((1, cells, 1, 32), dtype=np.float32).astype(np.float16)


async def test_cells_are_added_in_llamas_form_and_compared_with_its_own(memory, waiting):
    keys = numbers(5).astype(np.float32)
    await memory.add_cells(20, keys, -keys)
    ((start, count, state),) = waiting.added
    assert (start, count) == (20, 5)
    assert np.array_equal(read(waiting.layout, state).values, -keys)
    assert await memory.compare_cells(20, keys, -keys) == pytest.approx(1.0)


async def test_arrays_that_are_no_cells_drop_those_that_wait(memory, waiting):
    keys = numbers(5).astype(np.float32)
    await memory.add_cells(20, keys, keys)
    with pytest.raises(InvalidCells):
        await memory.add_cells(15, keys, keys * np.float32("nan"))
    assert not waiting.added
    assert memory.sequence.ids == REFINED


async def test_an_answer_that_starts_drops_cells_that_wait(memory, waiting):
    keys = numbers(5).astype(np.float32)
    await memory.add_cells(20, keys, keys)
    await memory.start(NEXT_TURN)
    assert not waiting.added


async def test_a_context_that_takes_no_cells_in_says_why(memory):
    keys = numbers(5).astype(np.float32)
    for refused in (memory.add_cells(0, keys, keys), memory.compare_cells(0, keys, keys), memory.join_cells([1])):
        with pytest.raises(DeviceEngineFailed, match="not switched on"):
            await refused
    await memory.drop_cells()
