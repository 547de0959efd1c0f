"""Whatever happens in whichever of three processes: an id is accepted once, and all say the same of it.

The processes share a real folder. Questions go from one to another without sockets, which have tests of their own.
"""

import asyncio
import json
import tempfile
from itertools import count
from pathlib import Path

from api_processes import ApiProcess
from example_count import examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pdd_core.state_request import StateRequest, Verb
from pdd_vllm_plugin.processes.other_processes import ENDED

MOST, MOST_HELD = 3, 12


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class ProcessesMachine(RuleBasedStateMachine):
    ranks = st.integers(0, 2)
    ids = st.sampled_from([letter * 16 for letter in "abcdef"])

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory(dir="/tmp")
        self.clock, self.numbers = Clock(), count()
        limits = {"max_handoffs": MOST, "max_state_tokens": MOST_HELD, "ttl_s": 60.0}
        self.processes = [
            ApiProcess(Path(self.folder.name), rank, 3, clock=self.clock, **limits) for rank in range(3)
        ]
        for one in self.processes:
            one.others._service = one.service
            one.others._exchange = self.exchange
            one.others.names.room_wanted = lambda rank: self.processes[rank].store.make_room()
        self.dead = set()
        self.running = {}
        """Rank, stream, record and completion of each."""
        self.had_state = {}
        """Completion that had an id last."""

    async def exchange(self, rank, question):
        if rank in self.dead:
            raise ConnectionRefusedError
        found = await self.processes[rank].service.answers.answer_for_other(
            StateRequest(**{**(asked := json.loads(question)), "verb": Verb(asked["verb"])})
        )
        return b"\n" if found is None else b"%d\n" % found.status_code + found.body

    def at(self, rank):
        """The process with this number, or the next one that lives."""
        return next(self.processes[(rank + more) % 3] for more in range(3) if (rank + more) % 3 not in self.dead)

    def ask(self, rank, verb, name):
        answer = self.loop.run_until_complete(self.at(rank).ask(StateRequest(verb, name)))
        return answer.status_code, json.loads(answer.body)

    def teardown(self):
        for _, stream, _, _ in self.running.values():
            self.loop.run_until_complete(stream.aclose())
        for one in self.processes:
            if one.rank not in self.dead:
                one.others.leave()
        assert not list(Path(self.folder.name).iterdir())
        self.folder.cleanup()
        self.loop.close()

    @rule(rank=ranks, handoff_id=ids)
    def begin(self, rank, handoff_id):
        process, completion = self.at(rank), f"cmpl-{'x' * 20}{next(self.numbers)}"
        try:
            stream = process.begin(handoff_id, completion)
        except ValueError:
            refused = any(one.store.is_refused(handoff_id) for one in self.processes if one.rank not in self.dead)
            assert handoff_id in self.running or refused
            return
        assert handoff_id not in self.running
        self.loop.run_until_complete(anext(stream))
        self.running[handoff_id] = process.rank, stream, process.store.get(handoff_id), completion

    @rule(handoff_id=ids)
    def finish(self, handoff_id):
        if handoff_id in self.running:
            _, stream, record, completion = self.running.pop(handoff_id)
            self.loop.run_until_complete(_read(stream))
            assert record.status == "finished"
            self.had_state[handoff_id] = completion

    @rule(rank=ranks, handoff_id=ids)
    def answer(self, rank, handoff_id):
        if handoff_id not in self.running:
            self.begin(rank, handoff_id)
            self.finish(handoff_id)

    @rule(rank=ranks, handoff_id=ids)
    def cancel(self, rank, handoff_id):
        status, body = self.ask(rank, Verb.CANCEL, handoff_id)
        if handoff_id in self.running:
            owner, stream, record, completion = self.running.pop(handoff_id)
            assert (status, body["confirmed"]) == (200, True)
            assert record.engine_request_id in self.processes[owner].engine.aborted
            self.loop.run_until_complete(stream.aclose())
            self.had_state[handoff_id] = completion
        elif status == 200:
            assert handoff_id in self.had_state
        else:
            assert status == 404
        if body.get("error", {}).get("message") != ENDED:
            assert any(one.store.is_refused(handoff_id) for one in self.processes if one.rank not in self.dead)

    @rule(rank=ranks, handoff_id=ids)
    def read(self, rank, handoff_id):
        if handoff_id not in self.running:
            answers = [self.ask(rank + more, Verb.READ, handoff_id) for more in range(3)]
            for _, body in answers:
                body.pop("expires", None)  # Unix time, which goes on
            assert answers[1:] == answers[:1] * 2
            status, state = answers[0]
            if status != 404:
                assert (status, state["status"]) == (200, "finished")
                assert state["request_id"] == self.had_state[handoff_id]

    @rule(seconds=st.sampled_from([1.0, 31.0, 61.0]))
    def wait(self, seconds):
        self.clock.now += seconds
        for one in self.processes:
            if one.rank not in self.dead:
                one.store.purge()

    @precondition(lambda self: len(self.dead) < 2)
    @rule(rank=ranks)
    def end_process(self, rank):
        gone = self.at(rank)
        self.dead.add(gone.rank)
        gone.others.leave()
        for handoff_id in [name for name, (owner, *_) in self.running.items() if owner == gone.rank]:
            assert self.ask(0, Verb.READ, handoff_id) == self.ask(1, Verb.CANCEL, handoff_id)
            status, body = self.ask(rank, Verb.READ, handoff_id)
            assert (status, body["error"]["message"]) == (404, ENDED)
            self.loop.run_until_complete(self.running.pop(handoff_id)[1].aclose())

    @invariant()
    def every_running_request_is_found_from_every_process(self):
        for handoff_id, (_, _, _, completion) in self.running.items():
            for rank in range(3):
                status, state = self.ask(rank, Verb.READ, handoff_id)
                assert (status, state["status"], state["request_id"]) == (200, "running", completion)
                assert self.ask(rank, Verb.RETRIEVE, completion)[1]["pdd"]["handoff_id"] == handoff_id

    @invariant()
    def the_bounds_hold_over_all_processes(self):
        stores = [one.store for one in self.processes if one.rank not in self.dead]
        records = [record for store in stores for record in store._records.values()]
        held = sum(store._held for store in stores)
        assert (len(records) <= MOST and held <= MOST_HELD) or all(one.status == "running" for one in records)


async def _read(stream):
    async for _ in stream:
        pass


ProcessesMachine.TestCase.settings = examples(40, stateful_step_count=25, deadline=None)
TestProcessesMachine = ProcessesMachine.TestCase
