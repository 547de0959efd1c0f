import json

from example_count import examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pdd_llamacpp_adapter.server.answers.stored import StoredAnswers


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Running:
    def __init__(self, answer_id, kept, known, text):
        self.answer_id, self.is_retrievable = answer_id, kept
        self.text = text
        self.is_known = known
        self.over = False
        self.size = len(json.dumps({"text": text, "ended": True}, separators=(",", ":")))
        self.stopped = None

    def described(self):
        return {"text": self.text, "ended": self.over}

    def stop(self, why):
        self.stopped = why


class Store(RuleBasedStateMachine):
    """Against a list of all answers with the time of their end."""

    @initialize(count=st.integers(0, 3), most=st.sampled_from([0, 60, 100, 1000]))
    def begin(self, count, most):
        self.clock = Clock()
        self.count, self.most = count, most
        self.store = StoredAnswers(count, 10.0, most, self.clock)
        self.running, self.ended, self.number = [], [], 0

    @rule(kept=st.booleans(), known=st.booleans(), length=st.sampled_from([0, 20, 60]))
    def start(self, kept, known, length):
        self.number += 1
        answer = Running(str(self.number), kept, known, "x" * length)
        self.running.append(answer)
        self.store.begun(answer)

    @rule(data=st.data())
    def end(self, data):
        if self.running:
            answer = data.draw(st.sampled_from(self.running))
            self.running.remove(answer)
            answer.over = True
            self.store.ended(answer)
            if answer.is_retrievable and answer.stopped is None and answer.is_known and answer.size <= self.most:
                self.ended.append((self.clock.now, answer))
                self.ended = self.ended[max(0, len(self.ended) - self.count) :]
                while sum(other.size for _, other in self.fresh()) > self.most:
                    self.ended.pop(0)

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(data=st.data())
    def remove(self, data):
        there = self.expected()
        if there:
            answer = data.draw(st.sampled_from(there))
            assert self.store.remove(answer.answer_id)
            assert (answer.stopped is not None) == (not answer.over)
            self.ended = [(end, other) for end, other in self.ended if other is not answer]
        assert not self.store.remove("unknown")

    def fresh(self):
        return [(end, answer) for end, answer in self.ended if end >= self.clock.now - 10.0]

    def expected(self):
        fresh = [answer for _, answer in self.fresh()]
        running = [answer for answer in self.running if answer.is_retrievable and answer.stopped is None]
        return fresh + running

    @invariant()
    def exactly_the_expected_ones_can_be_read(self):
        expected = {answer.answer_id: answer for answer in self.expected()}
        for number in range(1, self.number + 1):
            found = self.store.get(str(number))
            assert (found is not None) == (str(number) in expected)
            if found is not None:
                assert json.loads(found)["ended"] == expected[str(number)].over
        assert len(self.store) == len(expected)


TestStore = Store.TestCase
TestStore.settings = examples(40, stateful_step_count=25)


def test_an_answer_that_is_too_large_alone_costs_no_other_its_place():
    store = StoredAnswers(10, 10.0, 100)
    for number, length in enumerate((20, 1000, 20)):
        answer = Running(str(number), kept=True, known=True, text="x" * length)
        store.begun(answer)
        store.ended(answer)
    assert [store.get(str(number)) is not None for number in range(3)] == [True, False, True]
