"""What the workers tell, and what becomes of it."""

from types import SimpleNamespace

import pytest
from kv_cells import BY_HEADS, BY_LAYERS, FIELDS, WHOLE, geometry
from vllm_fakes import FakeCoreClient, FakeEngine, parallel

from pdd_core.errors import UnsupportedDeployment
from pdd_core.kv.geometry import NoKV
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.deployment import WORKER_CLS
from pdd_vllm_plugin.kv.handshake import NOT_ENABLED, OFF, find_shelves
from pdd_vllm_plugin.kv.shelves import Shelves

pytestmark = pytest.mark.anyio
VLLMS = "vllm.v1.worker.gpu_worker.Worker"
NONE = {"none": {"reason": "unsupported", "message": "layer 3 has a sliding window"}}


@pytest.fixture
def workers(tmp_path):
    """Makes what the workers of one engine tell, with their folders."""

    def make(parts, engine=0, **fields):
        told = []
        for number, (layers, heads) in enumerate(parts):
            folder = tmp_path / f"{engine}-{number}"
            folder.mkdir()
            (folder / "nonce").write_text(f"nonce {engine} {number}")
            told.append(
                {
                    "folder": str(folder),
                    "nonce": f"nonce {engine} {number}",
                    "part": {"layers": list(layers), "heads": list(heads)},
                    "geometry": {**FIELDS, **fields},
                }
            )
        return told

    return make


def engine(*answers, worker_cls=WORKER_CLS):
    made = FakeEngine()
    made.vllm_config = SimpleNamespace(parallel_config=parallel(engines=len(answers), worker_cls=worker_cls))
    if len(answers) == 1:

        async def collective_rpc(method, *_):
            assert method == "pdd_kv_shelf"
            if isinstance(answers[0], Exception):
                raise answers[0]
            return answers[0]

        made.collective_rpc = collective_rpc
    else:
        made.engine_core = FakeCoreClient(range(len(answers)))
        made.engine_core.answers = {rank: lambda *_, told=told: told for rank, told in enumerate(answers)}
    return made


async def found(*answers, kv="auto", **more):
    return await find_shelves(engine(*answers, **more), PDDConfig(kv=kv))


@pytest.mark.parametrize("parts", [WHOLE, BY_HEADS, BY_LAYERS])
async def test_the_workers_parts_are_one_geometry(workers, tmp_path, parts):
    shelves = await found(workers(parts))
    assert isinstance(shelves, Shelves)
    assert shelves.geometry == geometry(parts)
    assert shelves.folders == {0: [tmp_path / f"0-{number}" for number in range(len(parts))]}


async def test_of_workers_that_have_the_same_heads_one_is_read(workers, tmp_path):
    """More tensor-parallel workers than KV heads."""
    twice = [part for part in BY_HEADS for _ in range(2)]
    shelves = await found(workers(twice))
    assert shelves.geometry == geometry(BY_HEADS)
    assert shelves.folders == {0: [tmp_path / "0-0", tmp_path / "0-2"]}


async def test_each_engine_has_its_folders(workers, tmp_path):
    shelves = await found(workers(BY_HEADS), workers(BY_HEADS, engine=1))
    assert shelves.folders[1] == [tmp_path / "1-0", tmp_path / "1-1"]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            lambda told: told[1].update(nonce="another machine's"),
            "engine 0 are on another machine .* run an API server",
        ),
        (lambda told: told[0].update(folder="/nowhere"), "engine 0 are on another machine"),
        (lambda told: told.pop(), "do not have all cells: .*no part has some head"),
        (lambda told: told[1].update(part={"layers": [0, 2], "heads": [0, 2]}), "two parts have the same head"),
        (lambda told: told[1].update(geometry={**FIELDS, "head_size": 64}), "engine 0 pack different cells"),
        (lambda told: told[1].update(NONE), "layer 3 has a sliding window"),
    ],
)
async def test_why_there_are_no_cells_is_told(workers, spoil, problem):
    told = workers(BY_HEADS)
    spoil(told)
    none = await found(told)
    assert isinstance(none, NoKV)
    assert none.reason == "unsupported"
    with pytest.raises(UnsupportedDeployment, match=f"pdd.kv is on, but .*{problem}"):
        await found(told, kv="on")


async def test_engines_that_pack_differently_give_none(workers):
    none = await found(workers(WHOLE), workers(WHOLE, engine=1, value_type="q8_0"))
    assert (none.reason, none.message) == ("unsupported", "the engines pack different cells")


async def test_workers_that_do_not_know_the_question_give_none():
    none = await found(AttributeError("no pdd_kv_shelf"), kv="auto")
    assert none.reason == "unsupported"
    assert "no pdd_kv_shelf" in none.message


async def test_a_vllm_whose_engines_cannot_be_asked_alone_gives_none(workers):
    asked = engine(workers(WHOLE), workers(WHOLE, engine=1))
    del asked.engine_core
    assert (await find_shelves(asked, PDDConfig())).reason == "unsupported"


async def test_nobody_is_asked_where_it_is_off_or_the_workers_are_vllms():
    asked = engine(RuntimeError("asked"))
    assert await find_shelves(asked, PDDConfig(kv="off")) == OFF
    asked = engine(RuntimeError("asked"), worker_cls=VLLMS)
    assert await find_shelves(asked, PDDConfig()) == NOT_ENABLED
    with pytest.raises(UnsupportedDeployment, match="start it with --worker-cls pdd_vllm_plugin"):
        await find_shelves(asked, PDDConfig(kv="on"))
