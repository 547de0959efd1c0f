"""Any process answers for all, over real sockets; each process here has stores and engines of its own."""

import asyncio
import json

import pytest
from api_processes import ApiProcess
from starlette.responses import JSONResponse

from pdd_core.handoff import Status
from pdd_core.state_request import StateRequest, Verb
from pdd_vllm_plugin.handoff_store import NOT_STARTED_TTL_S
from pdd_vllm_plugin.processes import other_processes
from pdd_vllm_plugin.processes.other_processes import ENDED, SILENT
from pdd_vllm_plugin.tombstones import TOMBSTONE_TTL_S

pytestmark = pytest.mark.anyio
ID = "a" * 32
CHAT = "chatcmpl-" + "c" * 20


class Clock:
    now = 0.0  # before any that the machine's own clock shows, however lately it was started

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def processes(base, clock):
    made = [ApiProcess(base, rank, 3, clock=clock, max_handoffs=3, cancel_timeout_s=1.0) for rank in range(3)]
    for one in made:
        await one.serve()
    yield made
    for one in made:
        if not one._task.done():
            await one.stop()
    assert not list(base.iterdir())


async def said(process, verb, name=ID, **more):
    answer = await process.ask(StateRequest(verb, name, **more))
    return answer.status_code, json.loads(answer.body)


async def test_a_state_can_be_read_from_every_process(processes):
    stream = processes[1].begin(ID, CHAT)
    await anext(stream)
    for one in processes:
        status, state = await said(one, Verb.READ)
        assert (status, state["status"], state["output_token_ids"]) == (200, "running", [7])
        for name in (ID, CHAT):
            status, chat = await said(one, Verb.RETRIEVE, name)
            assert (status, chat["id"], chat["choices"][0]["token_ids"]) == (200, CHAT, [7])
    async for _ in stream:
        pass
    for one in processes:
        status, state = await said(one, Verb.READ, after=1)
        assert (status, state["status"], state["output_token_ids"]) == (200, "finished", [8, 9])


async def test_one_can_wait_for_a_change_in_another_process(processes):
    stream = processes[1].begin(ID)
    await anext(stream)
    waiting = asyncio.create_task(said(processes[0], Verb.READ, wait=30.0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    async for _ in stream:
        pass
    assert (await waiting)[1]["status"] == "finished"


@pytest.mark.parametrize("verb", [Verb.CANCEL, Verb.DELETE])
async def test_a_delete_reaches_the_process_whose_engine_client_has_the_request(processes, verb):
    await anext(processes[1].begin(ID))
    [record] = processes[1].store._records.values()
    status, body = await said(processes[2], verb)
    assert (status, body["deleted"], body["confirmed"]) == (200, True, True)
    assert [one.engine.aborted for one in processes] == [[], [record.engine_request_id], []]
    assert record.status is Status.ABORTED
    # and a second one, from wherever, asks that engine client again
    status, body = await said(processes[0], verb)
    assert (status, body["confirmed"]) == (200, True)
    assert [one.engine.paused_calls for one in processes] == [0, 2, 0]


async def test_how_much_was_used_is_counted_where_the_request_ran(processes):
    await anext(processes[1].begin(ID))
    await said(processes[2], Verb.CANCEL, used=0)
    totals = [
        sum(
            s.value for m in one.service.metrics._in_vain.collect() for s in m.samples if s.name.endswith("_total")
        )
        for one in processes
    ]
    assert totals == [0, 1, 0]


async def test_nothing_is_confirmed_that_no_engine_has_confirmed(processes):
    processes[1].engine.answers_after = 30.0
    await anext(processes[1].begin(ID))
    for one in processes:
        status, body = await said(one, Verb.CANCEL)
        assert (status, body["confirmed"]) == (202, False)


async def test_an_id_is_accepted_once(processes):
    await anext(processes[1].begin(ID))
    for one in processes:
        with pytest.raises(ValueError, match="in use"):
            one.begin(ID)
    async for _ in processes[1].streams[0]:
        pass
    stream = processes[2].begin(ID, CHAT)  # it has ended: its id may be used again
    await anext(stream)
    for one in processes:
        assert (await said(one, Verb.READ))[1]["request_id"] == CHAT


async def test_a_delete_that_overtakes_its_post_refuses_it_in_every_process(processes, clock):
    for one in processes:
        status, body = await said(one, Verb.CANCEL)
        assert status == 404
        assert "within a minute is refused" in body["error"]["message"]
        clock.now += TOMBSTONE_TTL_S - 1  # each of them moves the minute on
    for one in processes:
        with pytest.raises(ValueError, match="deleted"):
            one.begin(ID)
    clock.now += TOMBSTONE_TTL_S + 1
    processes[0].store.purge()
    await anext(processes[2].begin(ID))


async def test_a_post_that_comes_while_its_delete_looks_around_is_stopped(processes, monkeypatch):
    real = processes[0].service.answers.answer_here

    async def answer_here(request):
        if not processes[2].streams:
            await anext(processes[2].begin(ID))  # after the look at whose the id is
        return await real(request)

    monkeypatch.setattr(processes[0].service.answers, "answer_here", answer_here)
    assert (await said(processes[0], Verb.CANCEL))[1]["confirmed"] is True
    assert len(processes[2].engine.aborted) == 1


async def test_an_unknown_id_is_unknown_to_all(processes):
    for verb in (Verb.READ, Verb.CANCEL, Verb.RETRIEVE, Verb.DELETE):
        for one in processes:
            assert (await said(one, verb, f"unknown-unknown-{verb}"))[0] == 404
    assert (await said(processes[0], Verb.CANCEL, "short"))[0] == 404


async def test_completions_of_one_name_in_several_processes_need_the_handoff_id(processes):
    for rank, name in enumerate((ID, "b" * 32)):
        await anext(processes[rank].begin(name, CHAT))
    for one in processes:
        for verb in (Verb.RETRIEVE, Verb.DELETE):
            assert (await said(one, verb, CHAT))[0] == 409
        assert (await said(one, Verb.RETRIEVE, ID))[0] == 200
    assert not any(one.engine.aborted for one in processes)
    await said(processes[2], Verb.CANCEL, "b" * 32)
    assert (await said(processes[2], Verb.RETRIEVE, CHAT))[1]["pdd"]["handoff_id"] == ID


async def test_a_short_completion_id_names_nothing_in_any_process(processes):
    await anext(processes[1].begin(ID, "chatcmpl-job-1"))
    for one in processes:
        assert (await said(one, Verb.RETRIEVE, "chatcmpl-job-1"))[0] == 404


async def test_the_states_of_a_process_that_has_ended_are_gone_and_it_is_said(processes):
    await anext(processes[1].begin(ID))
    await processes[1].stop()
    for verb in (Verb.READ, Verb.CANCEL, Verb.RETRIEVE, Verb.DELETE):
        status, body = await said(processes[0], verb)
        assert (status, body["error"]["message"]) == (404, ENDED)
    await anext(processes[2].begin(ID))  # its id is free
    assert (await said(processes[0], Verb.READ))[0] == 200


async def test_what_is_kept_elsewhere_is_asked_before_a_state_is_said_to_be_gone(processes):
    await anext(processes[1].begin(ID))
    await processes[1].stop()

    class Kept:
        async def answer(self, request):
            return JSONResponse({"kept": request.id})

    processes[0].service.elsewhere.append(Kept())
    assert await said(processes[0], Verb.READ) == (200, {"kept": ID})


async def test_a_process_that_ends_in_mid_answer_hangs_nobody(processes, monkeypatch):
    await anext(processes[1].begin(ID))

    async def dies(_):
        raise ConnectionResetError

    monkeypatch.setattr(processes[1].service.answers, "answer_for_other", dies)
    status, body = await said(processes[0], Verb.READ)
    assert (status, body["error"]["message"]) == (404, ENDED)


async def test_an_error_in_another_process_is_logged_there_and_hangs_nobody(processes, monkeypatch, caplog):
    await anext(processes[1].begin(ID))

    async def fails(_):
        raise RuntimeError("of the engine")

    monkeypatch.setattr(processes[1].service.answers, "answer_for_other", fails)
    status, body = await said(processes[0], Verb.READ)
    assert (status, body["error"]["message"]) == (503, SILENT)
    assert "of the engine" in caplog.text


async def test_a_stopped_process_is_waited_for_no_longer_than_asked(processes, monkeypatch):
    await anext(processes[1].begin(ID))
    monkeypatch.setattr(other_processes, "MARGIN_S", 0.05)
    processes[0].service.config = type(processes[0].service.config)(cancel_timeout_s=0.05)
    stuck = asyncio.Event()

    async def hangs(_):
        await stuck.wait()

    monkeypatch.setattr(processes[1].service.answers, "answer_for_other", hangs)
    status, body = await said(processes[0], Verb.READ)
    assert (status, body["error"]["message"]) == (503, SILENT)
    stuck.set()


async def test_the_number_of_states_is_bounded_over_all(processes):
    for rank, name in enumerate("abc"):
        async for _ in processes[rank].begin(name * 32):
            pass
    assert sum(len(one.store) for one in processes) == 3
    running = processes[0].begin("d" * 32)
    await anext(running)
    assert [len(one.store) for one in processes] == [1, 1, 1]  # its own ended one made way
    for name in "ef":
        await anext(processes[0].begin(name * 32))
        await settled(lambda: sum(len(one.store) for one in processes) == 3)  # another process's did
    assert processes[0].store.full_of_running()
    assert all(one.store.full_of_running() for one in processes)


async def settled(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_ids_that_have_expired_are_free_for_others_while_their_process_idles(base, clock, monkeypatch):
    monkeypatch.setattr(other_processes, "PURGE_EVERY_S", 0.01)
    idle, other = (ApiProcess(base, rank, 2, clock=clock) for rank in range(2))
    for one in (idle, other):
        await one.serve()
    await said(idle, Verb.CANCEL)
    assert other.others.names.is_taken(ID)
    clock.now += TOMBSTONE_TTL_S + 1
    await settled(lambda: not other.others.names.is_taken(ID))
    for one in (idle, other):
        await one.stop()


async def test_requests_that_end_after_their_process_has_left_harm_nobody(processes, caplog):
    stream = processes[1].begin(ID)
    await anext(stream)
    await processes[1].stop()
    async for _ in stream:
        pass
    processes[1].store.delete(ID)
    assert caplog.text == ""


async def test_an_id_of_a_request_that_never_began_becomes_free_for_all(processes, clock):
    processes[1].begin(ID)  # and nobody reads it
    processes[1].store.get(ID).touched = clock.now
    assert processes[0].others.names.is_taken(ID)
    clock.now += NOT_STARTED_TTL_S + 1
    processes[1].store.purge()
    assert not processes[0].others.names.is_taken(ID)


async def test_the_socket_lies_where_only_this_user_can_go(processes):
    folder = processes[0].others._folder.path
    assert {path.name for path in folder.glob("*.sock")} == {"0.sock", "1.sock", "2.sock"}
    assert folder.stat().st_mode & 0o077 == 0
