"""What is counted, over a recorder whose engine is a fake."""

import pytest
from prometheus_client import CollectorRegistry
from vllm_fakes import FakeEngine, output, sampling_params

from pdd_core.handoff import NoRefinement, Refinement
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.generate_recorder import GenerateRecorder
from pdd_vllm_plugin.handoff_store import HandoffStore
from pdd_vllm_plugin.metrics import CloudMetrics

pytestmark = pytest.mark.anyio
ID = "a" * 32


def report(tokens, set_by, **more):
    return {
        "pdd": {
            "engine": 0,
            "tokens": tokens,
            "set_by": set_by,
            "pressure": 0.0,
            "lowered": 0,
            "raised": 0,
            **more,
        }
    }


class Counted:
    def __init__(self, refiner=None):
        self.registry = CollectorRegistry()
        self.metrics = CloudMetrics(self.registry)
        self.store = HandoffStore(PDDConfig())
        self.engine = FakeEngine()
        self.recorder = GenerateRecorder(
            self.engine, self.store, model="m", tokenizer="d", metrics=self.metrics, refiner=refiner
        )

    def __call__(self, name, **labels):
        return self.registry.get_sample_value(name, labels)

    async def answer(self, *outputs, opt_in=None, **params):
        self.engine.outputs = list(outputs)
        fields = {"pdd_handoff": ID, **(opt_in or {})}
        async for item in self.recorder.generate({}, sampling_params(fields, **params), "cmpl-1-0"):
            yield item


@pytest.fixture
def counted():
    return Counted()


async def test_a_handoff_is_counted_with_its_budget_and_what_it_left_undone(counted):
    outputs = [
        output([7], kv=report(9, "client")),
        output([8], kv=report(3, "load", pressure=1.0, lowered=1)),
        output([9], "", "length", "pdd_handoff", kv=report(3, "load", pressure=1.0, lowered=2, raised=1)),
    ]
    pressures = [counted("pdd_pressure", engine="0") async for _ in counted.answer(*outputs, max_tokens=50)]
    assert pressures == [0.0, 1.0, 1.0]
    assert counted("pdd_pressure", engine="0") == 0.0  # nobody is left who could tell of it
    assert counted("pdd_requests_total", status="handed_off") == 1
    assert counted("pdd_budgets_total", set_by="load") == 1
    assert counted("pdd_budgets_total", set_by="client") is None  # one request, one budget: the last
    assert counted("pdd_budget_changes_total", direction="lowered") == 2
    assert counted("pdd_budget_changes_total", direction="raised") == 1
    assert counted("pdd_generated_tokens_total") == 3
    assert counted("pdd_max_tokens_not_generated_total") == 47
    assert counted("pdd_decode_budget_tokens_sum") == 3
    assert counted("pdd_extensions_total") == 0


@pytest.mark.parametrize(
    ("settings", "floors"),
    [
        ({"load_floor": 8}, [64.0, 36.0, 8.0, 64.0]),
        ({}, [64.0] * 4),
        ({"budget_policy": "client", "load_floor": 8}, [64.0] * 4),
        ({"budget_policy": "fixed", "default_decode_budget": 9}, [9.0] * 4),
        ({"load_floor": 8, "max_decode_budget": 20}, [20.0, 20.0, 8.0, 20.0]),
    ],
)
async def test_the_floor_of_budgets_follows_the_pressure(counted, settings, floors):
    counted.metrics.configure(PDDConfig(**settings), [0])
    outputs = [output([7], kv=report(9, "client", pressure=one)) for one in (0.0, 0.5)]
    outputs.append(output([7], "", "stop", kv=report(9, "client", pressure=1.0)))
    seen = [counted("pdd_budget_floor_tokens", engine="0") async for _ in counted.answer(*outputs)]
    assert [*seen, counted("pdd_budget_floor_tokens", engine="0")] == floors


async def test_each_engine_has_its_own_pressure(counted):
    counted.metrics.configure(PDDConfig(load_floor=8), [2, 3])
    told = [
        [output([7], kv=report(9, "client", engine=engine, pressure=pressure)), output([8], "", "stop")]
        for engine, pressure in ((2, 1.0), (3, 0.5))
    ]

    def seen():
        values = [counted(name, engine=e) for name in ("pdd_pressure", "pdd_budget_floor_tokens") for e in "23"]
        return dict(zip(("pressure 2", "pressure 3", "floor 2", "floor 3"), values, strict=True))

    assert seen() == {"pressure 2": 0.0, "pressure 3": 0.0, "floor 2": 64.0, "floor 3": 64.0}
    first = counted.answer(*told[0])
    await anext(first)
    second = counted.answer(*told[1], opt_in={"pdd_handoff": "b" * 32})
    await anext(second)
    assert seen() == {"pressure 2": 1.0, "pressure 3": 0.5, "floor 2": 8.0, "floor 3": 36.0}
    async for _ in first:
        pass
    assert seen() == {"pressure 2": 0.0, "pressure 3": 0.5, "floor 2": 64.0, "floor 3": 36.0}
    async for _ in second:
        pass
    assert seen()["pressure 3"] == 0.0
    assert counted("pdd_pressure", engine="0") is None


async def test_an_answer_that_ends_by_itself_saves_nothing(counted):
    async for _ in counted.answer(output([7, 8], "", "stop", kv=report(9, "client")), max_tokens=50):
        assert counted("pdd_running_requests") == 1
    assert counted("pdd_requests_total", status="finished") == 1
    assert counted("pdd_max_tokens_not_generated_total") == 0
    assert counted("pdd_running_requests") == 0


async def test_a_request_that_goes_on_from_another_is_an_extension(counted):
    opt_in = {"pdd_extends": "b" * 32}
    async for _ in counted.answer(output([7], "", "stop", kv=report(9, "client")), opt_in=opt_in):
        pass
    assert counted("pdd_extensions_total") == 1


async def test_a_client_that_leaves_is_counted_too(counted):
    answering = counted.answer(output([7], kv=report(9, "client")), output([8], "", "stop"))
    await anext(answering)
    await answering.aclose()
    generator = counted.recorder.generate({}, sampling_params({"pdd_handoff": "b" * 32}), "cmpl-2-0")
    await anext(generator)
    await generator.aclose()
    assert counted("pdd_requests_total", status="aborted") >= 1


async def test_a_request_without_opt_in_is_not_counted(counted):
    counted.metrics.configure(PDDConfig(), [0])
    async for _ in counted.recorder.generate({}, sampling_params(), "cmpl-1-0"):
        pass
    samples = [sample for metric in counted.registry.collect() for sample in metric.samples]
    assert {sample.name for sample in samples if sample.value and not sample.name.endswith("_created")} == {
        "pdd_budget_floor_tokens"  # a number of the settings, until there is pressure
    }


@pytest.mark.parametrize(
    ("became", "name", "labels"),
    [
        (
            Refinement(method="lexical", ratio=0.5, kept_indices=[0], kept_token_ids=[1], protected=[], window=0,
                       layers=[]),
            "pdd_refinements_total", {"method": "lexical"},
        ),
        (NoRefinement(reason="too_long", message="m"), "pdd_refinements_refused_total", {"reason": "too_long"}),
    ],
)  # fmt: skip
async def test_a_refinement_is_counted_once_it_is_known(became, name, labels):
    class Refining:
        def with_question(self, sampling_params, token_ids):
            return sampling_params

        def begin(self, record, *, then):
            record.refining = True
            record.refined_as(became)
            then(record)

    counted = Counted(Refining())
    async for _ in counted.answer(output([7], "", "stop"), opt_in={"pdd_refine_ratio": 0.5}):
        pass
    assert counted(name, **labels) == 1
    assert counted("pdd_refinements_refused_total", reason="pending") is None


async def test_a_server_that_refines_nothing_counts_its_refusals(counted):
    async for _ in counted.answer(output([7], "", "stop"), opt_in={"pdd_refine_ratio": 0.5}):
        pass
    assert counted("pdd_refinements_refused_total", reason="not_enabled") == 1
    async for _ in counted.answer(output([7], "", "stop")):
        pass
    assert counted("pdd_refinements_refused_total", reason="not_requested") is None
