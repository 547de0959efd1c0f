"""Sessions whose device takes the cloud's cells in the place of prefill."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from types import SimpleNamespace

import anyio
import pytest
from cells_by_hand import BY_HEAD, FAULTS, WHOLE, CellsCloud, CellsEngine, geometry
from example_count import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from still_time import StillTimeLoop

from pdd_core.errors import CloudLost, CloudRefused, DeviceEngineFailed
from pdd_core.handoff import NoKV, NoRefinement
from pdd_core.patience import Patience
from pdd_core.refinement.guard import Guard
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.answer_session import AnswerSession
from pdd_llamacpp_adapter.session.cells_check import LEAST_SIMILARITY, CellsChecks
from pdd_llamacpp_adapter.session.cells_fetch import RESUMES

PROMPT = list(range(1, 601))
ANSWER = list(range(601, 661))


@pytest.fixture
def cells_engine(fake_engine):
    @dataclass
    class Engine(CellsEngine, fake_engine):
        n_ctx: int = 1024

    return Engine


@pytest.fixture
def cells_cloud(fake_cloud):
    @dataclass
    class Cloud(CellsCloud, fake_cloud):
        pass

    return Cloud


@pytest.fixture
def session(policies):
    def make(*, patience=None, fields=None, **options):
        given_fields = {"prompt_token_ids": PROMPT, "max_tokens": 60, "decode_budget": 64, "kv": True}
        waits = Patience(**{"retry_delay_s": 0.01, "late_s": math.inf, **(patience or {})})
        return AnswerSession(
            AnswerRequest(**given_fields | (fields or {})),
            **{"policies": policies, "rate": math.inf, "guard": Guard(1.0, 4, 32), "patience": waits, **options},
        )

    return make


def steady(first=601, *, pause=0.2):
    """A cloud that goes on making tokens until it is cancelled."""
    return [step for token in range(first, first + 300) for step in ([token], pause)]


def alike(cloud):
    """Cloud and device have been compared before."""
    checks = CellsChecks()
    checks.compared(cloud.url, cloud.agreed, 1.0)
    return checks


async def collect(session):
    with anyio.fail_after(5000):
        async with session as answer:
            tokens = [token async for token in answer]
    return [token.token_id for token in tokens], answer.outcome


def decided(outcome, words):
    return [one.what for one in outcome.decisions if words in one.what]


@pytest.mark.anyio
async def test_front_and_back_meet_and_the_device_goes_on(session, cells_engine, cells_cloud):
    engine, cloud = cells_engine(seconds=0.1), cells_cloud(steady())
    ids, outcome = await collect(session(engine=engine, cloud=cloud))
    assert ids == ANSWER
    report = outcome.kv
    assert engine.held == [*PROMPT, *ANSWER[:-1]]
    assert report.cells + report.prefilled == len(PROMPT) - 1
    assert report.cells > 300
    assert report.prefilled >= 64
    assert report.bytes >= report.cells * cloud.agreed.cell_bytes
    assert report.seconds > 0
    assert (report.reason, report.guard) == (None, "agreed")
    assert report.guard_excess == pytest.approx(0.0, abs=0.05)
    assert decided(
        outcome, f"the device took {report.cells} cells of the cloud's, and prefilled {report.prefilled}"
    )
    assert cloud.opt_in.kv
    assert cloud.asked[0].logprobs == 0
    assert cloud.open_streams == 0
    assert outcome.refinement is None
    assert outcome.summary()["kv"]["cells"] == report.cells


@pytest.mark.anyio
async def test_the_first_cells_are_compared_once_for_each_cloud(session, cells_engine, cells_cloud):
    checks = CellsChecks()
    for expected in ([64], []):
        engine, cloud = cells_engine(seconds=0.1), cells_cloud(steady())
        _, outcome = await collect(session(engine=engine, cloud=cloud, cells_checks=checks))
        assert engine.compared == expected
        assert (cloud.streams[0] == (0, 64)) == bool(expected)
        assert outcome.kv.cells > 0


@pytest.mark.anyio
async def test_a_cloud_whose_cells_are_others_is_asked_for_none_again(session, cells_engine, cells_cloud, caplog):
    checks = CellsChecks()
    engine, cloud = cells_engine(seconds=0.1, similarity=LEAST_SIMILARITY - 0.01), cells_cloud(steady())
    with caplog.at_level(logging.WARNING):
        ids, outcome = await collect(session(engine=engine, cloud=cloud, cells_checks=checks))
    assert ids == ANSWER
    assert (outcome.kv.cells, outcome.kv.reason, engine.joined) == (0, "differs", 0)
    assert engine.held == [*PROMPT, *ANSWER[:-1]]
    assert len([record for record in caplog.records if "this device's model" in record.message]) == 1
    later = cells_cloud(steady())
    ids, outcome = await collect(session(engine=cells_engine(), cloud=later, cells_checks=checks))
    assert ids == ANSWER
    assert (outcome.kv.reason, later.streams, later.opt_in.kv) == ("differs", [], False)


@pytest.mark.anyio
async def test_a_fast_link_leaves_nothing_to_prefill_but_what_was_begun(session, cells_engine, cells_cloud):
    """The first batch had begun before the first token of the cloud's."""
    engine, cloud = cells_engine(seconds=0.1), cells_cloud(steady(), pause=0.0)
    ids, outcome = await collect(session(engine=engine, cloud=cloud, cells_checks=alike(cloud)))
    assert ids == ANSWER
    begun = len(engine.calls[0])
    assert outcome.kv.prefilled == begun
    assert cloud.streams == [(begun, len(PROMPT) - 1)]


@pytest.mark.anyio
async def test_only_what_the_device_does_not_hold_is_asked_for(session, cells_engine, cells_cloud):
    engine, cloud = cells_engine(seconds=0.2, held=PROMPT[:300]), cells_cloud(steady())
    ids, outcome = await collect(session(engine=engine, cloud=cloud, cells_checks=alike(cloud)))
    assert ids == ANSWER
    assert outcome.reused_tokens == 300
    assert all(start >= 300 for start, _ in cloud.streams)
    assert outcome.kv.cells + outcome.kv.prefilled == 299
    assert outcome.kv.cells > 0


@pytest.mark.anyio
async def test_what_is_held_serves_to_compare(session, cells_engine, cells_cloud):
    engine, cloud = cells_engine(seconds=0.2, held=PROMPT[:300]), cells_cloud(steady())
    _, outcome = await collect(session(engine=engine, cloud=cloud))
    assert engine.compared == [64]
    assert outcome.kv.cells > 0


@pytest.mark.anyio
async def test_a_prompt_that_is_too_short_to_compare_is_prefilled(session, cells_engine, cells_cloud):
    engine, cloud = cells_engine(seconds=0.1), cells_cloud(steady(66))
    ids, outcome = await collect(session(engine=engine, cloud=cloud, fields={"prompt_token_ids": PROMPT[:65]}))
    assert ids == list(range(66, 126))
    assert (outcome.kv.reason, cloud.streams, cloud.opt_in.kv) == ("too_short", [], False)


@pytest.mark.anyio
async def test_a_guard_that_disagrees_has_the_device_read_the_prompt_itself(session, cells_engine, cells_cloud):
    engine, cloud = cells_engine(seconds=0.1, likelihoods=[-9.0]), cells_cloud(steady())
    ids, outcome = await collect(session(engine=engine, cloud=cloud, fields={"max_tokens": 200}))
    assert ids == list(range(601, 801))
    assert engine.held == [*PROMPT, *ids[:-1]]
    assert engine.joined > 0
    report = outcome.kv
    assert (report.cells, report.reason, report.guard) == (0, "guard", "disagreed")
    assert report.guard_excess > 1.0
    assert decided(outcome, "the guard disagreed: ")
    assert outcome.refinement is None
    assert outcome.timeline.count(Source.DEVICE) > 0
    read = [token for call in engine.calls for token in call]
    assert read.count(1) == 1, "the front that it had read itself stays"
    assert set(PROMPT) <= set(read)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("at", [0, 1, 4])
async def test_a_stream_that_breaks_is_resumed_where_it_was(session, cells_engine, cells_cloud, kind, at):
    engine = cells_engine(seconds=2.0)
    cloud = cells_cloud(steady(pause=20.0), faults=((kind, at), (kind, at)))
    ids, outcome = await collect(
        session(engine=engine, cloud=cloud, cells_checks=alike(cloud), patience={"cells_silence_s": 0.2}, rate=0.5)
    )
    assert ids == ANSWER
    assert outcome.kv.cells > 0, outcome.decisions
    assert len(cloud.streams) == 3
    assert len(decided(outcome, "asked for again")) == 2
    whole = 0 if kind == "refused" else (at - (kind == "reordered" and at > 0)) // 2
    ends = [599, 512, 384, 256, 128]
    if kind != "reordered":
        assert [end for _, end in cloud.streams] == [ends[0], ends[whole], ends[2 * whole]]
    assert cloud.open_streams == 0


@pytest.mark.anyio
async def test_a_stream_that_never_holds_is_given_up(session, cells_engine, cells_cloud):
    engine = cells_engine(seconds=5.0)
    cloud = cells_cloud(steady(pause=20.0), faults=(("cut", 2), *[("cut", 1)] * 9))
    ids, outcome = await collect(session(engine=engine, cloud=cloud, cells_checks=alike(cloud), rate=0.5))
    assert ids == ANSWER
    assert len(cloud.streams) == RESUMES + 1
    assert decided(outcome, "takes no further cells of the cloud's KV cache: CloudLost: ")
    assert outcome.kv.cells == 87, "the piece that had come is used"
    assert engine.held == [*PROMPT, *ANSWER[:-1]]


@pytest.mark.anyio
async def test_cells_that_are_gone_are_not_asked_for_again(session, cells_engine, cells_cloud):
    cloud, asked = cells_cloud(steady()), []

    async def gone(*where, **_):
        asked.append(where)
        raise CloudRefused("no such handoff", status=404)
        yield

    cloud.cells = gone
    ids, outcome = await collect(session(engine=cells_engine(seconds=0.3), cloud=cloud))
    assert ids == ANSWER
    assert (outcome.kv.cells, outcome.kv.reason, len(asked)) == (0, "unavailable", 1)
    assert decided(outcome, "takes no cells of the cloud's KV cache: CloudRefused: no such handoff")


@pytest.mark.anyio
async def test_the_state_says_why_there_are_no_cells(session, cells_engine, cells_cloud):
    cloud = cells_cloud(steady())

    async def none(*_, **__):
        raise CloudRefused("no room", status=409)
        yield

    async def state(_):
        return SimpleNamespace(kv=NoKV(reason="no_room", message="no room"))

    cloud.cells, cloud.handoff = none, state
    ids, outcome = await collect(session(engine=cells_engine(seconds=0.3), cloud=cloud))
    assert (ids, outcome.kv.reason) == (ANSWER, "no_room")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("agreed", "reason"),
    [(None, "not_enabled"), (NoKV(reason="unsupported", message="MLA"), "unsupported")],
)
async def test_a_cloud_without_cells_is_not_asked(session, cells_engine, cells_cloud, agreed, reason):
    cloud = cells_cloud(steady(), agreed=agreed)
    ids, outcome = await collect(session(engine=cells_engine(seconds=0.1), cloud=cloud))
    assert ids == ANSWER
    assert (outcome.kv.reason, outcome.kv.cells, cloud.streams) == (reason, 0, [])
    assert not cloud.opt_in.kv
    assert cloud.asked[0].logprobs is None
    assert outcome.refinement is None


@pytest.mark.anyio
async def test_a_cloud_of_another_model_is_not_asked(session, cells_engine, cells_cloud):
    cloud = cells_cloud(steady())
    kv = SimpleNamespace(shape="another", differs_from=lambda _: "number of layers: 2 here, 3 there")
    ids, outcome = await collect(session(engine=cells_engine(kv=kv), cloud=cloud))
    assert (ids, outcome.kv.reason, cloud.opt_in.kv) == (ANSWER, "differs", False)
    assert decided(outcome, "takes no cells of the cloud's KV cache: number of layers")


@pytest.mark.anyio
async def test_a_refined_prompt_and_cells_exclude_each_other(session, cells_engine, cells_cloud):
    none = NoRefinement(reason="failed", message="no")
    engine, cloud = cells_engine(seconds=0.1), cells_cloud(steady(), refinement=none)
    ids, outcome = await collect(session(engine=engine, cloud=cloud, fields={"refine_ratio": 0.5}))
    assert (ids, outcome.kv.reason) == (ANSWER, "refined")
    assert (cloud.opt_in.kv, cloud.opt_in.refine_ratio) == (False, 0.5)


@pytest.mark.anyio
async def test_without_a_wish_nothing_is_asked(session, cells_engine, cells_cloud):
    cloud = cells_cloud(steady())
    ids, outcome = await collect(session(engine=cells_engine(), cloud=cloud, fields={"kv": False}))
    assert (ids, outcome.kv, cloud.opt_in.kv, cloud.streams) == (ANSWER, None, False, [])
    assert outcome.summary()["kv"] is None


@pytest.mark.anyio
async def test_the_device_never_waits_for_a_link_that_stands_still(session, cells_engine, cells_cloud):
    engine, cloud = cells_engine(seconds=0.05), cells_cloud(steady(), faults=(("stall", 6),))
    ids, outcome = await collect(
        session(engine=engine, cloud=cloud, cells_checks=alike(cloud), patience={"cells_silence_s": 3000.0})
    )
    assert ids == ANSWER
    assert outcome.caught_up_at < 10
    assert engine.held == [*PROMPT, *ANSWER[:-1]]
    assert cloud.open_streams == 0


@pytest.mark.anyio
async def test_near_the_meeting_the_device_leaves_what_is_about_to_come(session, cells_engine, cells_cloud):
    """1,280 cells and 100 tokens per second: both have met after half a second."""
    speed = DeviceSpeed()
    speed.prefill_tps = 100.0
    engine, cloud = cells_engine(), cells_cloud(steady(), pause=0.05)

    async def extend(ids, *, want_logits=False, plain=engine.extend):
        await anyio.sleep(len(ids) / 100.0)
        return await plain(ids, want_logits=want_logits)

    engine.extend = extend
    ids, outcome = await collect(
        session(engine=engine, cloud=cloud, speed=speed, cells_checks=alike(cloud), rate=5.0)
    )
    assert ids == ANSWER
    assert outcome.kv.prefilled <= 80
    assert outcome.caught_up_at < 1.0


@pytest.mark.anyio
async def test_a_consumer_that_leaves_closes_the_stream(session, cells_engine, cells_cloud):
    engine, cloud = cells_engine(seconds=1.0), cells_cloud(steady(), pause=0.5)
    async with session(engine=engine, cloud=cloud, cells_checks=alike(cloud)) as answer:
        async for _ in answer:
            break
        while not cloud.open_streams:
            await anyio.sleep(0.01)
    assert cloud.open_streams == 0
    assert answer.outcome.finish_reason == "cancelled"


@pytest.mark.anyio
async def test_an_answer_that_the_cloud_ends_first_needs_no_cells(session, cells_engine, cells_cloud):
    engine, cloud = cells_engine(seconds=5.0), cells_cloud([ANSWER[:3], 1.0, ([], CloudEnd.STOP)], pause=0.5)
    ids, outcome = await collect(session(engine=engine, cloud=cloud, cells_checks=alike(cloud)))
    assert ids == ANSWER[:3]
    assert cloud.open_streams == 0
    assert outcome.kv.cells == 0


@pytest.mark.anyio
async def test_a_cloud_that_is_lost_may_still_have_cells(session, cells_engine, cells_cloud):
    engine, cloud = cells_engine(seconds=0.2), cells_cloud([ANSWER[:3], 0.2, CloudLost("reset")])
    ids, outcome = await collect(
        session(engine=engine, cloud=cloud, cells_checks=alike(cloud), patience={"cloud_retries": 0})
    )
    assert ids == ANSWER
    assert outcome.kv.cells > 0
    assert engine.held == [*PROMPT, *ANSWER[:-1]]


@pytest.mark.anyio
async def test_cells_that_the_engine_does_not_take_are_prefilled(session, cells_engine, cells_cloud):
    engine, cloud = cells_engine(seconds=0.1), cells_cloud(steady())

    async def join(_):
        engine.added = None
        raise DeviceEngineFailed("llama.cpp does not take the cells")

    engine.join_cells = join
    ids, outcome = await collect(session(engine=engine, cloud=cloud))
    assert ids == ANSWER
    assert cloud.open_streams == 0
    assert (outcome.kv.cells, outcome.kv.reason) == (0, "invalid")
    assert engine.held == [*PROMPT, *ANSWER[:-1]]


@pytest.mark.anyio
async def test_few_pieces_wait_for_a_device_that_is_busy(session, cells_engine, cells_cloud, monkeypatch):
    monkeypatch.setattr("pdd_llamacpp_adapter.session.cells_fetch._MOST_WAITING_BYTES", 0)
    cloud, engine, added = cells_cloud(steady(pause=60.0), pause=0.001), cells_engine(seconds=30.0), []
    plain = engine.add_cells

    async def add(start, keys, values):
        added.append((anyio.current_time(), start))
        await plain(start, keys, values)

    engine.add_cells = add
    waits = {"device_step_s": 6000.0, "first_token_s": 6000.0, "cells_silence_s": 6000.0}
    ids, _ = await collect(
        session(engine=engine, cloud=cloud, cells_checks=alike(cloud), patience=waits, rate=0.2)
    )
    assert ids == ANSWER
    assert len([at for at, _ in added if at == added[0][0]]) <= 3
    assert engine.held == [*PROMPT, *ANSWER[:-1]]


@given(
    length=st.integers(2, 500),
    held=st.integers(0, 400),
    compared=st.booleans(),
    parts=st.sampled_from([WHOLE, BY_HEAD]),
    broken=st.lists(st.none() | st.tuples(st.sampled_from(FAULTS), st.integers(0, 12)), max_size=8),
    batch=st.floats(0.001, 2.0),
    pause=st.sampled_from([0.0, 0.001, 0.02, 0.3]),
    tps=st.none() | st.floats(10, 5000),
    tokens=st.sampled_from([0.001, 0.01, 0.2]),
    disagrees=st.booleans(),
    alike_ends=st.booleans(),
    fails_at=st.none() | st.integers(0, 20),
)
@examples(100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_position_is_read_or_taken_once_whatever_happens(
    session,
    cells_engine,
    cells_cloud,
    monkeypatch,
    length,
    held,
    compared,
    parts,
    broken,
    batch,
    pause,
    tps,
    tokens,
    disagrees,
    alike_ends,
    fails_at,
):
    clock = SimpleNamespace(monotonic=anyio.current_time)
    monkeypatch.setattr("pdd_llamacpp_adapter.session.live_answer.time", clock)
    prompt = PROMPT[:length]
    cloud = cells_cloud(
        steady(length + 1, pause=tokens),
        later=[["goes on"]] * 3,
        faults=tuple(broken),
        pause=pause,
        agreed=geometry(parts),
    )
    engine = cells_engine(
        seconds=batch,
        held=prompt[: min(held, length - 1)],
        likelihoods=[-9.0 if disagrees else -0.1],
        similarity=1.0 if alike_ends else 0.1,
        fails_at=fails_at,
    )
    reused, speed = len(engine.held), DeviceSpeed()
    speed.prefill_tps = tps

    async def answered():
        return await collect(
            session(
                engine=engine,
                cloud=cloud,
                speed=speed,
                cells_checks=alike(cloud) if compared else CellsChecks(),
                fields={"prompt_token_ids": prompt},
                patience={"cells_silence_s": 1.0},
                rate=4.0,
            )
        )

    ids, outcome = anyio.run(answered, backend_options={"loop_factory": StillTimeLoop})
    assert ids == list(range(length + 1, length + 61))
    assert cloud.open_streams == 0
    assert len(cloud.streams) <= RESUMES + 2
    lost = decided(outcome, "the device was lost") != []
    assert fails_at is not None or not lost
    if outcome.took_over_at is None or lost:
        return
    assert engine.held == [*prompt, *ids[:-1]]
    report = outcome.kv
    assert not report.cells or report.prefilled + report.cells == length - 1 - reused
    if report.guard != "disagreed":
        assert reused + report.cells + sum(map(len, engine.calls)) == length + len(ids) - 1
