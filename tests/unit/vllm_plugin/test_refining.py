import asyncio
import time
from types import MappingProxyType

import numpy as np
import pytest

from pdd_core.handoff import NoRefinement, Refinement
from pdd_core.hookspecs import hookimpl
from pdd_core.optin import OptIn
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.record import NOT_ENABLED, PENDING, HandoffRecord
from pdd_vllm_plugin.refining import Refining

pytestmark = pytest.mark.anyio

LENGTH = 200


class Tokenizer:
    all_special_ids = (0,)
    added_tokens_decoder = MappingProxyType({})

    def convert_ids_to_tokens(self, ids):
        return ["<s>" if token == 0 else f"Ġw{token}" for token in ids]

    def get_vocab(self):
        return {"<s>": 0, "Ċ": 1}

    def get_added_vocab(self):
        return {"<s>": 0}


class Engine:
    """Scores token 77 far above the others."""

    def __init__(self, answer=None):
        self.answer = answer

    async def collective_rpc(self, method, args):
        await asyncio.sleep(0)
        if self.answer is not None:
            return [[self.answer]]
        values = np.full((1, LENGTH), 1e-4, dtype=np.float32)
        values[0, 77] = 1.0
        return [[{"layers": [3], "window": 16, "values": values.tobytes()}]]


def record(*, ratio=0.25, protect=(), length=LENGTH):
    made = HandoffRecord(
        opt_in=OptIn("h" * 32, refine_ratio=ratio, protect=protect), completion_id="cmpl-x", engine_request_id="x",
        model="m", tokenizer="t", sampling_params={}, created=time.time(), touched=0.0, refinement=PENDING,
    )  # fmt: skip
    made.prompt_token_ids.extend([0, *(2 + index % 50 for index in range(length - 1))])
    return made


async def refined(refining, asked):
    refining.begin(asked)
    await asyncio.wait_for(asked.refined.wait(), 20)
    return asked.refinement


def refining(engine=None, method="attention", **settings):
    return Refining(engine or Engine(), PDDConfig(**settings), method, Tokenizer())


async def test_what_was_attended_to_stays():
    asked = record(protect=((10, 13),))
    refinement = await refined(refining(), asked)
    assert isinstance(refinement, Refinement), refinement
    assert (refinement.method, refinement.window, refinement.layers) == ("attention", 16, [3])
    assert {0, 10, 11, 12, 77, LENGTH - 1} <= set(refinement.kept_indices)
    assert refinement.kept_token_ids == [asked.prompt_token_ids[index] for index in refinement.kept_indices]
    assert not asked.refinement_pending


async def test_a_refiner_without_scores_asks_no_worker():
    refinement = await refined(refining(Engine({"missed": "never asked"}), method="truncation"), record())
    assert (refinement.method, refinement.window, refinement.layers) == ("truncation", 0, [])


@pytest.mark.parametrize(
    ("engine", "settings", "reason"),
    [
        (Engine({"missed": "it ran as a graph"}), {}, "not_captured"),
        (Engine({"layers": [3], "window": 16, "values": b"\0" * 8}), {}, "not_captured"),
        (Engine(), {"refine_max_prompt_tokens": 100}, "too_long"),
        (Engine({"layers": [3]}), {}, "failed"),
    ],
)
async def test_why_there_is_none(engine, settings, reason):
    refinement = await refined(refining(engine, **settings), record())
    assert isinstance(refinement, NoRefinement)
    assert refinement.reason == reason


async def test_too_long_a_prompt_asks_no_worker():
    """No worker has followed it."""
    refinement = await refined(refining(Engine({"missed": "never asked"}), refine_max_prompt_tokens=100), record())
    assert refinement.reason == "too_long"


class Confused:
    @hookimpl
    def pdd_refine(self, prompt):
        return [5, 3, len(prompt)]


async def test_a_third_partys_nonsense_is_passed_over(caplog):
    made = refining()
    made._policies.manager.register(Confused(), "confused")
    refinement = await refined(made, record())
    assert refinement.method == "attention"
    assert "confused" in caplog.text


async def test_an_end_before_the_first_token_settles_it():
    asked = record()
    asked.end("abort")
    assert asked.refined.is_set()
    assert asked.refinement.reason == "failed"


async def test_a_request_that_is_not_refined_stays_so():
    asked = record()
    asked.refinement = NOT_ENABLED
    asked.end("stop")
    assert asked.refinement is NOT_ENABLED
