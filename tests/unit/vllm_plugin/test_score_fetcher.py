import asyncio
from types import SimpleNamespace

import anyio
import numpy as np
import pytest
from vllm_fakes import FakeCoreClient, parallel

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
    vllm_config = SimpleNamespace(parallel_config=parallel())

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
    first = asyncio.create_task(fetcher.fetch(names[0], 0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = await asyncio.gather(*(fetcher.fetch(name, 0) for name in names[1:]))
    results = [await first, *rest]
    assert [scores.values.item() for scores in results] == [1, 2, 3, 4]
    assert engine.calls == [["a"], ["bb", "ccc", "dddd"]]


@pytest.mark.anyio
async def test_a_lost_engine_is_a_reason_and_no_crash():
    fetcher = ScoreFetcher(Engine(RuntimeError("gone")), "max")
    with pytest.raises(NotCaptured, match="RuntimeError"):
        await fetcher.fetch("a", 0)


class TwoEngines:
    """Each has what it was given, once. To ask both as vLLM does is an error here."""

    vllm_config = SimpleNamespace(parallel_config=parallel(engines=2))

    def __init__(self, *held):
        self.engine_core = FakeCoreClient()
        self.engine_core.answers = {rank: self.takes(set(names)) for rank, names in enumerate(held)}

    def takes(self, names):
        def take(method, timeout, args):
            assert (method, timeout) == (RPC, None)
            workers = [[message([[len(name)]], [1]) if name in names else None for name in args[0]]]
            names.difference_update(args[0])
            return workers

        return take


@pytest.mark.anyio
async def test_each_engine_is_asked_for_its_own_only_and_none_waits_for_another():
    engines = TwoEngines(["a", "bb"], ["ccc"])
    engines.engine_core.held[0] = anyio.Event()
    fetcher = ScoreFetcher(engines, "max")
    waiting = [asyncio.create_task(fetcher.fetch(name, 0)) for name in ("a", "bb")]
    assert (await fetcher.fetch("ccc", 1)).values.item() == 3
    assert not any(task.done() for task in waiting)
    engines.engine_core.held[0].set()
    assert [scores.values.item() for scores in await asyncio.gather(*waiting)] == [1, 2]
    asked = [(rank, args[0]) for rank, *_, args in engines.engine_core.asked]
    assert asked == [(1, ["ccc"]), (0, ["a", "bb"])]


@pytest.mark.anyio
async def test_where_the_engine_is_not_known_the_one_that_has_scores_is_found():
    fetcher = ScoreFetcher(TwoEngines(["a"], ["bb", "twice"]), "max")
    assert [(await fetcher.fetch(name, None)).values.item() for name in ("bb", "a")] == [2, 1]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "held", [([], []), (["a"], ["a"])], ids=["nobody has some", "an earlier request has, too"]
)
async def test_scores_of_nobody_or_of_another_request_are_no_scores(held):
    with pytest.raises(NotCaptured, match="no scores"):
        await ScoreFetcher(TwoEngines(*held), "max").fetch("a", None)


@pytest.mark.anyio
async def test_a_pipeline_rank_without_a_layer_does_not_make_its_engine_the_one():
    engines = TwoEngines([], ["a"])
    none = {"layers": [], "window": 0, "values": b""}
    engines.engine_core.answers[0] = lambda *_: [[None], [none]]
    assert (await ScoreFetcher(engines, "max").fetch("a", None)).values.item() == 1


@pytest.mark.anyio
async def test_engines_that_cannot_be_asked_alone_are_a_reason():
    engines = TwoEngines()
    engines.engine_core = SimpleNamespace()
    with pytest.raises(NotCaptured, match="no way to ask engine 1 alone"):
        await ScoreFetcher(engines, "max").fetch("a", 1)
