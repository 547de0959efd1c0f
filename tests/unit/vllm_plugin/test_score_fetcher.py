import asyncio

import numpy as np
import pytest

from pdd_core.errors import NotCaptured
from pdd_vllm_plugin.score_fetcher import RPC, ScoreFetcher, combine


def message(rows, layers, window=16):
    return {"layers": layers, "window": window, "values": np.array(rows, dtype=np.float32).tobytes()}


def test_one_rank():
    scores = combine([message([[0.25, 0.75], [1, 0]], [3, 5])], "max")
    assert scores.values.tolist() == [[0.25, 0.75], [1, 0]]
    assert (scores.layers, scores.window, scores.heads) == ((3, 5), 16, "max")


@pytest.mark.parametrize(("heads", "expected"), [("max", [[0.5, 0.75]]), ("mean", [[0.375, 0.5]])])
def test_tensor_parallel_ranks_hold_parts_of_the_heads(heads, expected):
    ranks = [message([[0.25, 0.75]], [3]), message([[0.5, 0.25]], [3])]
    assert combine(ranks, heads).values.tolist() == expected


def test_pipeline_ranks_hold_parts_of_the_layers():
    none = {"layers": [], "window": 0, "values": b""}
    scores = combine([message([[1, 0]], [7]), none, message([[0, 1]], [2])], "max")
    assert scores.layers == (2, 7)
    assert scores.values.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("ranks", "why"),
    [
        ([message([[1]], [1]), None], "no scores"),
        ([{"missed": "it ran as a graph"}], "it ran as a graph"),
        ([{"layers": [], "window": 0, "values": b""}], "no worker"),
        ([message([[float("nan")]], [1])], "block table"),
    ],
)
def test_what_is_not_whole_is_no_score(ranks, why):
    with pytest.raises(NotCaptured, match=why):
        combine(ranks, "max")


class Engine:
    def __init__(self, error=None):
        self.calls = []
        self.error = error

    async def collective_rpc(self, method, args):
        assert method == RPC
        self.calls.append(args[0])
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return [[message([[len(name)]], [1]) for name in args[0]]]


@pytest.mark.anyio
async def test_who_waits_while_a_call_is_under_way_shares_the_next():
    engine = Engine()
    fetcher = ScoreFetcher(engine, "max")
    names = ["a", "bb", "ccc", "dddd"]
    first = asyncio.create_task(fetcher.fetch(names[0]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = await asyncio.gather(*(fetcher.fetch(name) for name in names[1:]))
    results = [await first, *rest]
    assert [scores.values.item() for scores in results] == [1, 2, 3, 4]
    assert engine.calls == [["a"], ["bb", "ccc", "dddd"]]


@pytest.mark.anyio
async def test_a_lost_engine_is_a_reason_and_no_crash():
    fetcher = ScoreFetcher(Engine(RuntimeError("gone")), "max")
    with pytest.raises(NotCaptured, match="RuntimeError"):
        await fetcher.fetch("a")
