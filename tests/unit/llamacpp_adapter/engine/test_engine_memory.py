"""What an engine tells of its memory, and keeps of it for a prompt."""

from __future__ import annotations

import numpy as np
import pytest

from pdd_llamacpp_adapter.engine.engine_memory import EngineMemory
from pdd_llamacpp_adapter.engine.engine_thread import EngineThread
from pdd_llamacpp_adapter.engine.history import RefinedHistory

pytestmark = pytest.mark.anyio

HISTORY = RefinedHistory((0, 1, 5, 9), tuple(range(10)))
REFINED = [0, 1, 5, 9, 70, 71]
NEXT_TURN = [*range(10), 70, 71, 80, 81]


class Context:
    """A context without a model."""

    n_ctx = 100
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
    yield EngineMemory(Context(), thread)
    thread.shut_down()


async def test_a_refined_history_is_gone_on_from(memory):
    assert memory.holds(NEXT_TURN) == 12
    assert await memory.start(NEXT_TURN) == 12
    assert (memory.context.ids, memory.history) == (REFINED, HISTORY)


async def test_while_idle_work_changes_it_the_memory_is_what_an_answer_would_find(memory):
    saved = await memory.save()
    with memory.telling_of(saved):
        await memory.rewind(2)
        assert memory.history == HISTORY
        assert memory.holds(NEXT_TURN) == 12
        assert memory.holds(NEXT_TURN, refined=False) == 2
        memory.context.ids = list(NEXT_TURN[:9])
        assert memory.holds(NEXT_TURN, refined=False) == 2
    assert memory.history is None
    assert memory.holds(NEXT_TURN) == 9


async def test_or_left_where_nobody_could_judge_it(memory):
    assert memory.holds(NEXT_TURN, refined=False) == 2
    assert await memory.start(NEXT_TURN, refined=False) == 2
    assert (memory.context.ids, memory.history) == ([0, 1], None)
