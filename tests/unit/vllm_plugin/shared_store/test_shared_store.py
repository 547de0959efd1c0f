"""Replicas that share a real Valkey or Redis: each answers for the states of all."""

import asyncio
import json
import logging
import time
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fleet_replicas import CHAT_ID, ID, PROMPT, eventually
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from store_server import StoreServer
from vllm_fakes import FakeEngine, output, parallel, sampling_params

from pdd_core.handoff import HandoffState, KVCells, NoRefinement, Refinement, StructuredOutputs
from pdd_core.optin import STOP_REASON
from pdd_vllm_plugin.endpoint import PDDEndpoints
from pdd_vllm_plugin.handoff_record import PENDING
from pdd_vllm_plugin.metrics import CloudMetrics
from pdd_vllm_plugin.shared_store import names, shared_store

pytestmark = pytest.mark.anyio
HANDOFF, COMPLETION = f"/pdd/handoffs/{ID}", f"/chat/completions/{CHAT_ID}"


def without_time(answer):
    body = answer.json()
    state = body.get("pdd", body)
    assert state.pop("expires") == pytest.approx(time.time() + 600, abs=30)
    return answer.status_code, body


@pytest.mark.parametrize(
    ("path", "query"), [(HANDOFF, {}), (HANDOFF, {"after": 2}), (COMPLETION, {}), (f"/chat/completions/{ID}", {})]
)
async def test_an_ended_state_is_read_elsewhere_as_where_it_was_made(pair, path, query):
    await pair[0].finish()
    here, there = [await one.call("GET", path, **query) for one in pair]
    assert without_time(there) == without_time(here)
    assert there.status_code == 200


async def test_it_is_read_when_its_owner_is_gone(pair):
    owner, other = pair
    await owner.finish()
    owner.shared.stop()
    state = (await other.call("GET", HANDOFF)).json()
    assert (state["status"], tuple(state["prompt_token_ids"]), state["output_token_ids"]) == (
        "finished",
        PROMPT,
        [7, 8, 9],
    )


async def test_logprobs_and_large_prompts_pass(pair):
    owner, other = pair
    entry = type("Logprob", (), {"logprob": -0.25})()
    owner.engine.outputs = [output([7], "a", "stop", logprobs=[{7: entry}])]
    await owner.finish(prompt=range(100_000))
    state = (await other.call("GET", HANDOFF)).json()
    assert state["output_logprobs"] == [{"7": -0.25}]
    assert state["prompt_token_ids"] == list(range(100_000))


async def test_an_unknown_id_is_unknown_at_once(pair):
    for method, path in [("GET", HANDOFF), ("DELETE", HANDOFF), ("GET", COMPLETION), ("DELETE", COMPLETION)]:
        async with asyncio.timeout(5):  # a question that nobody answers would wait for longer than this
            pair[1].service.config = type(pair[1].service.config)(store=pair[1].service.config.store)
            answer = await pair[1].call(method, path)
        assert answer.status_code == 404
        assert "shared store" not in answer.text


async def test_a_running_state_is_read_from_its_owner(pair):
    owner, other = pair
    stream = owner.begin()
    await anext(stream)
    for path in (HANDOFF, COMPLETION):
        here, there = [await one.call("GET", path) for one in pair]
        assert without_time(there) == without_time(here)
    waiting = asyncio.create_task(other.call("GET", HANDOFF, wait=30))
    await eventually(lambda: owner.service.store.get(ID).changed.statistics().tasks_waiting)
    async for _ in stream:
        pass
    assert (await waiting).json()["status"] == "finished"


@pytest.mark.parametrize("path", [HANDOFF, COMPLETION])
async def test_a_cancel_elsewhere_has_the_word_of_the_owners_engine(pair, path):
    owner, other = pair
    await anext(owner.begin())
    for _ in range(2):  # repeated within a minute, it is answered again
        calls = owner.engine.paused_calls
        answer = await other.call("DELETE", path, **({"used": 1} if path == HANDOFF else {}))
        assert (answer.status_code, answer.json()["confirmed"]) == (200, True)
        assert owner.engine.paused_calls == calls + 1
    assert len(owner.engine.aborted) == 1
    assert other.engine.paused_calls == 0
    for one in pair:
        assert (await one.call("GET", HANDOFF)).status_code == 404


async def test_without_the_engines_word_nothing_is_confirmed(pair):
    owner, other = pair
    owner.engine.answers_after = 30.0
    await anext(owner.begin())
    answer = await other.call("DELETE", HANDOFF)
    assert (answer.status_code, answer.json()["confirmed"]) == (202, False)


async def test_an_owner_that_hangs_confirms_nothing(pair, monkeypatch):
    owner, other = pair
    await anext(owner.begin())

    async def hang(request):
        await asyncio.Event().wait()

    monkeypatch.setattr(owner.service.answers, "answer_here", hang)
    assert (await other.call("DELETE", HANDOFF)).status_code == 404


@pytest.mark.parametrize(("stop_reason", "status"), [(STOP_REASON, 200), (None, 202)])
async def test_a_delete_without_the_owner_confirms_only_what_the_engine_had_ended(pair, stop_reason, status):
    owner, other = pair
    ending = "length" if stop_reason else "abort"
    owner.engine.outputs = [output([7], "a", ending, stop_reason)]
    await owner.finish()
    owner.shared.stop()
    for _ in range(2):
        assert (await other.call("DELETE", HANDOFF)).status_code == status
    assert (await other.call("DELETE", COMPLETION)).status_code == status
    assert (await other.call("GET", HANDOFF)).status_code == 404
    assert (await other.call("GET", COMPLETION)).status_code == 404


async def test_what_its_owner_deletes_is_deleted_in_the_store(pair, client):
    owner, other = pair
    await owner.finish()
    assert (await owner.call("DELETE", HANDOFF)).status_code == 200
    async with asyncio.timeout(30):
        while await client.exists(names.state_key(ID)):
            await asyncio.sleep(0.005)
    assert await client.hgetall(names.SIZES) == {b"total": b"0"}
    assert (await other.call("GET", HANDOFF)).status_code == 404


@pytest.mark.parametrize("path", [HANDOFF, COMPLETION])
async def test_what_is_deleted_elsewhere_is_gone_with_the_answer(pair, client, path):
    owner, other = pair
    await owner.finish()
    owner.shared._writer.remove = lambda removal: None  # later than anybody asks
    assert (await other.call("DELETE", path)).status_code == 200
    assert not await client.exists(names.state_key(ID))
    for one in pair:
        assert (await one.call("GET", path)).status_code == 404


REFINED = Refinement(
    method="lexical", ratio=0.5, kept_indices=[0], kept_token_ids=[31001], protected=[], window=0, layers=[]
)
FAILED = NoRefinement(reason="not_captured", message="gone")


@pytest.mark.parametrize("refinement", [REFINED, FAILED])
async def test_what_becomes_of_a_refinement_after_the_end_is_written_again(pair, refinement):
    owner, other = pair
    stream = owner.begin()
    record = owner.service.store.get(ID)
    record.refinement = PENDING
    async for _ in stream:
        pass
    await owner.has_stored(1)
    assert (await other.call("GET", HANDOFF)).json()["refinement"]["reason"] == "pending"
    record.refined_as(refinement)
    owner.service.store.note(record)
    await owner.has_stored(2)
    owner.service.store.note(record)  # nothing has changed: it is not written a third time
    await owner.finish("b" * 32, "chatcmpl-" + "d" * 20)
    await owner.has_stored(3)
    owner.shared.stop()
    state = HandoffState.model_validate_json((await other.call("GET", HANDOFF)).content)
    assert state.refinement == refinement


async def test_cells_are_told_by_the_server_that_computed_them_only(pair):
    owner, other = pair
    stream = owner.begin()
    owner.service.store.get(ID).kv = KVCells(tokens=2)
    async for _ in stream:
        pass
    await owner.has_stored(1)
    here, there = [(await one.call("GET", HANDOFF)).json()["kv"] for one in pair]
    assert here == {"kind": "cells", "tokens": 2}
    assert (there["kind"], there["reason"]) == ("none", "gone")
    assert (await other.call("GET", f"{HANDOFF}/kv")).status_code == 404


async def test_a_new_request_of_the_same_id_takes_the_old_state_out(pair):
    owner, other = pair
    await owner.finish()
    await anext(owner.begin(request_id="chatcmpl-" + "d" * 20))
    await owner.has_removed()
    assert (await other.call("GET", HANDOFF)).json()["status"] == "running"


async def test_a_completion_id_of_several_requests_names_none_of_them(pair):
    owner, other = pair
    await owner.finish()
    await owner.finish(handoff_id="b" * 32)
    owner.shared.stop()
    assert (await other.call("GET", COMPLETION)).status_code == 409
    assert (await other.call("DELETE", COMPLETION)).status_code == 409
    assert (await other.call("GET", HANDOFF)).status_code == 200


async def test_a_completion_id_that_can_be_guessed_names_nothing(pair, client):
    owner, other = pair
    await owner.finish(request_id="chatcmpl-1")
    assert not await client.keys("*completion*")
    assert (await other.call("GET", "/chat/completions/chatcmpl-1")).status_code == 404


async def test_the_store_shows_neither_ids_nor_prompts(pair, client):
    owner, other = pair
    async with client.monitor() as monitor:
        await owner.finish()
        running = owner.begin("b" * 32, "chatcmpl-" + "d" * 20)
        await anext(running)
        for name in (ID, "b" * 32):
            assert (await other.call("GET", f"/pdd/handoffs/{name}")).status_code == 200
            assert (await other.call("DELETE", f"/pdd/handoffs/{name}")).status_code == 200
        await owner.finish(handoff_id="e" * 32)
        commands = []
        await client.echo("the end")
        while "the end" not in "".join(commands):
            commands.append((await monitor.next_command())["command"])
    seen = "\n".join(commands)
    assert "pdd:1:state:" in seen  # this is where they would be
    dump = [await client.dump(key) for key in await client.keys("*")]
    for hidden in (ID, "b" * 32, "e" * 32, CHAT_ID, "d" * 20, "31001"):
        assert hidden not in seen
        assert not any(hidden.encode() in value for value in dump)


async def test_everything_in_the_store_expires_with_the_state(replica, client):
    owner = await replica(ttl_s=20.0)
    await owner.finish()
    await owner.finish("b" * 32, "chatcmpl-" + "d" * 20)
    await owner.call("DELETE", HANDOFF)
    await owner.has_removed()
    found = {key: await client.pttl(key) for key in await client.keys("*")}
    assert len(found) == 6  # a state, its completion, index, sizes, two tombstones
    assert all(0 < ttl <= 20_000 for ttl in found.values()), found


async def test_what_has_expired_is_not_there_any_more(replica, client):
    owner, other = await replica(ttl_s=0.3), await replica()
    await owner.finish()
    async with asyncio.timeout(10):
        while await client.keys("*"):
            await asyncio.sleep(0.02)
    assert (await other.call("GET", HANDOFF)).status_code == 404


async def test_the_oldest_states_go_when_all_take_more_than_allowed(replica, client):
    owner = await replica(store_max_bytes=8_000, ttl_s=300.0)
    for number in range(12):
        await owner.finish(f"{number:032}", f"chatcmpl-{number:020}")
        sizes = await client.hgetall(names.SIZES)
        total = int(sizes.pop(b"total"))
        assert total == sum(map(int, sizes.values())) <= 8_000
        assert len(sizes) == await client.zcard(names.INDEX) == len(await client.keys(f"{names.STATES}*"))
    kept = [number for number in range(12) if await client.exists(names.state_key(f"{number:032}"))]
    assert 2 <= len(kept) < 12
    assert kept == list(range(12))[-len(kept) :]


async def test_expired_states_are_taken_out_of_the_sum(replica, client):
    short, long = await replica(ttl_s=0.2), await replica()
    await long.finish("b" * 32, "chatcmpl-" + "d" * 20)
    await short.finish()
    async with asyncio.timeout(10):
        while await client.exists(names.state_key(ID)):
            await asyncio.sleep(0.02)
    await long.finish("e" * 32, "chatcmpl-" + "f" * 20)
    sizes = await client.hgetall(names.SIZES)
    assert len(sizes) == 3
    assert int(sizes.pop(b"total")) == sum(map(int, sizes.values()))


async def test_requests_go_on_without_the_store_and_it_comes_back(replica, monkeypatch, caplog):
    monkeypatch.setattr(shared_store, "LOOK_S", 0.02)
    caplog.set_level(logging.INFO, "vllm.pdd")
    server = StoreServer()
    try:
        owner, other = await replica(server.url), await replica(server.url)
        await owner.finish()
        server.kill()
        await eventually(lambda: owner.count("pdd_store_up") == other.count("pdd_store_up") == 0)
        async for _ in owner.begin("b" * 32, "chatcmpl-" + "d" * 20):
            pass
        await eventually(lambda: owner.count("pdd_store_states_total", outcome="dropped") == 1)
        assert (await owner.call("GET", f"/pdd/handoffs/{'b' * 32}")).status_code == 200
        lost = await other.call("GET", HANDOFF)
        assert lost.status_code == 404
        assert "the shared store does not answer" in lost.json()["error"]["message"]
        assert (await other.call("DELETE", HANDOFF)).status_code == 404
        assert owner.count("pdd_store_errors_total") >= 1
        server.start()
        await owner.up()
        await other.up()
        await owner.finish("e" * 32, "chatcmpl-" + "f" * 20)
        assert (await other.call("GET", f"/pdd/handoffs/{'e' * 32}")).status_code == 200
        said = [record.message for record in caplog.records if "does not answer" in record.message]
        assert len(said) == 2  # one of each replica
    finally:
        server.remove()


async def test_who_waits_for_another_replica_hears_at_once_that_the_store_is_gone(replica):
    server = StoreServer()
    try:
        owner, other = await replica(server.url), await replica(server.url)
        await anext(owner.begin())
        waiting = asyncio.create_task(other.call("GET", HANDOFF, wait=60))
        await eventually(lambda: owner.service.store.get(ID).changed.statistics().tasks_waiting)
    finally:
        server.remove()
    async with asyncio.timeout(30):
        answer = await waiting
    assert answer.status_code == 404
    assert "the shared store does not answer" in answer.json()["error"]["message"]


async def test_what_is_deleted_while_the_store_is_away_is_removed_when_it_is_back(replica, shared_server, client):
    owner = await replica()
    await owner.finish()
    away = shared_server.socket.rename(shared_server.socket.with_name("away"))
    try:
        for kind in ("pubsub", "normal"):
            await client.client_kill_filter(_type=kind, skipme=True)
        await eventually(lambda: not owner.count("pdd_store_up"))
        assert (await owner.call("DELETE", HANDOFF)).status_code == 200
        assert await client.exists(names.state_key(ID))
    finally:
        away.rename(shared_server.socket)
    await owner.up()
    await owner.has_removed()
    assert not await client.exists(names.state_key(ID))


async def test_a_store_that_is_not_there_at_the_start_is_waited_for(replica, tmp_path, caplog):
    owner = await replica(f"unix://{tmp_path}/none", wait=False)
    async for _ in owner.begin():
        pass
    assert (await owner.call("GET", HANDOFF)).status_code == 200
    await eventually(lambda: "does not answer" in caplog.text)
    assert owner.count("pdd_store_up") == 0


async def test_the_password_comes_from_the_environment_and_is_never_shown(replica, monkeypatch, caplog):
    server = StoreServer("--requirepass", "opensesame")
    try:
        monkeypatch.setenv("PDD_STORE_PASSWORD", "opensesame")
        owner = await replica(server.url)
        await owner.finish()
        assert owner.shared._password == SecretStr("opensesame")
        monkeypatch.setenv("PDD_STORE_PASSWORD", "wrong-password")
        refused = await replica(server.url, wait=False)
        await eventually(lambda: "does not answer" in caplog.text)
        assert refused.count("pdd_store_up") == 0
        assert "wrong-password" not in caplog.text
    finally:
        server.remove()


async def test_what_is_not_ours_in_the_store_is_no_state(pair, client):
    owner, other = pair
    await client.set(names.state_key(ID), b"x" * 100)
    await client.publish(names.ASK, json.dumps({"number": "1"}))
    assert (await other.call("GET", HANDOFF)).status_code == 404
    assert other.count("pdd_store_errors_total") == 1
    await owner.finish()
    assert (await other.call("GET", HANDOFF)).status_code == 200


async def test_a_store_that_refuses_to_write_drops_states(replica, client, caplog):
    owner = await replica()
    memory = (await client.config_get("maxmemory"))["maxmemory"]
    await client.config_set("maxmemory", "1")
    try:
        for name in (ID, "b" * 32):
            async for _ in owner.begin(name, f"chatcmpl-{name}"):
                pass
        await eventually(lambda: owner.count("pdd_store_states_total", outcome="dropped") == 2)
    finally:
        await client.config_set("maxmemory", memory)
    assert caplog.text.count("refuses a command") == 1
    assert owner.count("pdd_store_up") == 1


class Tokenizer:
    all_special_ids = ()
    eos_token_id = 0

    def get_vocab(self):
        return {"a": 0}

    def get_added_vocab(self):
        return {}


async def test_vllms_server_begins_it_where_the_setting_is(shared_server, client, monkeypatch):
    registry = CollectorRegistry()
    monkeypatch.setattr("pdd_vllm_plugin.endpoint.CloudMetrics", lambda: CloudMetrics(registry))
    monkeypatch.setattr("pdd_vllm_plugin.handoff_service.version", lambda _: "0.1.0")
    engine = FakeEngine([output([7], "a", "stop")])
    engine.get_tokenizer = Tokenizer
    engine.vllm_config = SimpleNamespace(
        additional_config={"pdd": {"store": shared_server.url}},
        model_config=SimpleNamespace(
            model="m", max_model_len=64, try_get_generation_config=dict, get_diff_sampling_param=dict
        ),
        parallel_config=parallel(),
        scheduler_config=SimpleNamespace(
            get_scheduler_cls=lambda: SimpleNamespace(pdd_grants_budgets=True, __name__="S")
        ),
        structured_outputs_config=StructuredOutputs(),
    )
    endpoints, state = PDDEndpoints(), SimpleNamespace()
    endpoints.attach_router(FastAPI())
    await endpoints.init_state(engine, state, SimpleNamespace())
    try:
        params = sampling_params({"pdd_handoff": ID})
        async for _ in engine.generate({"prompt_token_ids": [1]}, params, CHAT_ID):
            pass
        await eventually(lambda: registry.get_sample_value("pdd_store_up"))
        async for _ in engine.generate({"prompt_token_ids": [1]}, params, CHAT_ID):
            pass
        async with asyncio.timeout(30):
            while not await client.exists(names.state_key(ID)):
                await asyncio.sleep(0.005)
    finally:
        state.pdd.elsewhere[-1].stop()
