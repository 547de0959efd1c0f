from pathlib import Path
from types import SimpleNamespace

import pytest

from pdd_core.kv.geometry import KVGeometry, KVPart
from pdd_core.optin import OptIn
from pdd_vllm_plugin.kv.keeper import FEATURE, CellKeeper
from pdd_vllm_plugin.kv.rank_cells import RankCells
from pdd_vllm_plugin.kv.shelf import NO_ROOM
from pdd_vllm_plugin.kv.writer import FAILED
from pdd_vllm_plugin.prompt_tracker import PromptChunk

ID = "h" * 32
GEOMETRY = KVGeometry(
    num_layers=2, num_kv_heads=4, head_size=32, key_type="q8_0", value_type="q4_0", key_rotation=1,
    value_rotation=1, rope={"theta": 1e4, "rotary_dim": 32}, parts=[{"layers": (0, 2), "heads": (0, 4)}],
)  # fmt: skip
CELL = 2 * 2 * (34 + 18)


class Writer:
    def __init__(self):
        self.jobs, self.room = [], True

    def put(self, job):
        self.jobs.append(job)

    def has_room(self, nbytes):
        return self.room

    def counts(self):
        return {"kept": 3}


class Packer:
    def __init__(self):
        self.taken, self.error = [], None

    def take(self, blocks, tokens):
        if self.error is not None:
            raise self.error
        self.taken.append((blocks, tokens))
        return SimpleNamespace(nbytes=5)


class World:
    def __init__(self, *, gives=True):
        part, layout = KVPart(layers=(0, 2), heads=(2, 4)), SimpleNamespace(block_size=16)
        cells = RankCells(GEOMETRY, part, gives, (), layout, layout, group=1, split=2)
        self.writer, self.packer = Writer(), Packer()
        shelf = SimpleNamespace(
            fits=lambda tokens, cell_bytes: tokens * cell_bytes <= 90 * CELL, folder=Path("/f"), nonce="n",
            counts=lambda: {"stored": 1},
        )  # fmt: skip
        self.keeper = CellKeeper(cells, self.packer, shelf, self.writer, most_tokens=100)

    def wants(self, *, tokens=50, kv=True, lora=None, features=()):
        new = SimpleNamespace(
            prompt_token_ids=tokens and [1] * tokens, lora_request=lora, mm_features=list(features)
        )
        return self.keeper.wants(new, OptIn(ID, kv=kv))

    def end_step(self, *, start, tokens, features=(FEATURE,)):
        blocks = ((), (4, 5, 9))
        chunk = PromptChunk("a", ID, frozenset(features), 50, start, tokens, blocks)
        self.keeper.end_step((chunk,))

    @property
    def reasons(self):
        return [job.content.reason for job in self.writer.jobs]


def test_who_does_not_ask_gets_nothing():
    world = World()
    assert not world.wants(kv=False)
    assert world.writer.jobs == []


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"lora": object()}, "lora"),
        ({"features": ["image"]}, "multimodal"),
        ({"tokens": 101}, "too_long"),
        ({"tokens": 100}, "no_room"),
        ({"tokens": 1}, "not_captured"),
        ({"tokens": None}, "not_captured"),
    ],
)
def test_who_cannot_have_cells_gets_the_reason(request_, reason):
    world = World()
    assert not world.wants(**request_)
    assert world.reasons == [reason]
    assert ID not in world.writer.jobs[0].content.message


def test_a_prompt_is_taken_when_it_is_complete_without_its_last_token():
    world = World()
    assert world.wants()
    world.end_step(start=0, tokens=49)
    world.end_step(start=0, tokens=50, features=["refine"])
    assert world.writer.jobs == []
    world.end_step(start=40, tokens=12)
    # 49 tokens in the kernel's blocks of 16, two in one of the scheduler's
    assert world.packer.taken == [([8, 9, 10, 11], 49)]
    [job] = world.writer.jobs
    assert (job.handoff_id, job.tokens, job.cell_bytes, job.nbytes) == (ID, 49, CELL, 5)
    assert job.since > 0


def test_too_much_waiting_is_no_room():
    world = World()
    world.writer.room = False
    world.end_step(start=0, tokens=50)
    assert world.writer.jobs[0].content == NO_ROOM
    assert world.packer.taken == []


def test_no_memory_is_no_room():
    world = World()
    world.packer.error = MemoryError()
    world.end_step(start=0, tokens=50)
    assert world.writer.jobs[0].content == NO_ROOM


def test_a_failure_is_told_to_whoever_asks_later():
    world = World()
    world.packer.error = ZeroDivisionError()
    with world.keeper.failsafe:
        world.end_step(start=0, tokens=50)
    assert world.keeper.failsafe.failed
    assert not world.wants()
    assert world.writer.jobs[-1].content == FAILED


def test_of_workers_with_the_same_heads_one_keeps_them():
    world = World(gives=False)
    assert not world.wants()
    assert world.writer.jobs == []


def test_an_api_server_is_told_where_the_cells_are():
    message = World().keeper.message()
    assert (message["folder"], message["nonce"]) == ("/f", "n")
    assert message["part"] == {"layers": [0, 2], "heads": [2, 4]}
    whole = KVGeometry.model_validate({**message["geometry"], "parts": [{"layers": [0, 2], "heads": [0, 4]}]})
    assert whole == GEOMETRY
    assert World().keeper.counts() == {"kept": 3, "stored": 1}
