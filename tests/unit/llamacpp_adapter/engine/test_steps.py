"""Whatever is drafted, the answer is the one that is made token by token, and so is what the context holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_answer import each_step

from pdd_core.errors import DeviceEngineFailed
from pdd_llamacpp_adapter.engine.drafting import LookupDrafter, StepCosts
from pdd_llamacpp_adapter.engine.sampler import Sampler
from pdd_llamacpp_adapter.engine.steps import Choice, Steps
from pdd_llamacpp_adapter.request import AnswerRequest

N = 8
STOP = 7
PROMPT = (1, 2, 3, 1, 2)


class TextModel:
    """A context whose logits depend on the text alone, and repeat so that lookup finds something."""

    def __init__(self, ids, most_drafted=100, *, keeps=True):
        self.ids = list(ids)
        self.most_drafted = most_drafted
        self.keeps = keeps
        self.batches = []
        self._begun = 0

    def logits(self, ids):
        return np.random.default_rng(list(ids[-2:])).normal(0, 3, N).astype(np.float32)

    context = property(lambda self: self)

    def decode(self, parts):
        [part] = parts
        ids = part.ids
        assert list(part.outputs) == list(range(len(ids)))
        assert len(ids) <= 1 + self.most_drafted
        self._begun = len(self.ids)
        self.ids += ids
        self.batches.append(tuple(ids))

    def logits_at(self, index):
        return self.logits(self.ids[: self._begun + index + 1])

    def rewind(self, length):
        assert length > self._begun, "the answer's own token stays"
        if not self.keeps:
            self.ids.clear()
            return 0
        del self.ids[length:]
        return length


class RandomDrafter:
    """Drafts at will, partly right: it knows the answer."""

    def __init__(self, draw, right=()):
        self.draw, self.right, self.made_ids, self.taken = draw, right, [], []

    def draft(self, most, *, beside=0):
        draft = list(self.right[len(self.made_ids) :][: self.draw(st.integers(0, min(most, 6)))])
        wrong = self.draw(st.integers(0, 6))
        return draft[:wrong] + [self.draw(st.integers(0, N - 1)) for _ in draft[wrong:]]

    def made(self, token):
        self.made_ids.append(token)

    def took(self, seconds, *, rows, made, beside=0):
        self.taken.append((rows, made))


class Alternating:
    """A grammar: even tokens and odd ones take turns."""

    eos_ids = frozenset()

    def __init__(self):
        self.taken = []

    def mask(self, size):
        return np.arange(size) % 2 == len(self.taken) % 2

    def advance(self, ids):
        self.taken += ids


def run(context, request, drafter, *, grammar, fails_at=None):
    """Return the choices of an answer and the error that ended it, if one did."""
    bad = ((3, 4), (5,)) if request.bad_words else ()
    sampler = Sampler(
        request, stop_ids=(STOP,), output=(), matcher=Alternating() if grammar else None, bad_words=bad
    )
    made = []

    def choose(logits):
        if len(made) == fails_at:
            raise DeviceEngineFailed("the grammar leaves no token")
        token, logprobs = sampler.sample(logits)
        made.append(token)
        return Choice(token, token == STOP or len(made) == request.max_tokens, logprobs)

    choices = []
    try:
        for step in each_step(context, Steps(choose, drafter), context.logits(context.ids)):
            choices += step.choices
            assert context.ids == [*PROMPT, *(choice.token for choice in choices[:-1])]
    except DeviceEngineFailed as error:
        return choices, str(error)
    return choices, None


REQUESTS = st.builds(
    lambda **fields: AnswerRequest(prompt_token_ids=PROMPT, seed=3, **fields),
    max_tokens=st.integers(5, 30),
    temperature=st.sampled_from([0.0, 1.0]),
    top_p=st.sampled_from([1.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.8]),
    logprobs=st.sampled_from([None, 3]),
    min_tokens=st.sampled_from([0, 5]),
    bad_words=st.sampled_from([(), ("x",)]),
)


@given(
    data=st.data(), request=REQUESTS, grammar=st.booleans(), fails_at=st.none() | st.integers(1, 20),
    most=st.integers(0, 6),
)  # fmt: skip
def test_any_draft_leaves_the_answer_as_it_is(data, request, grammar, fails_at, most):
    expected = run(TextModel(PROMPT), request, None, grammar=grammar, fails_at=fails_at)
    right = [choice.token for choice in expected[0]]
    context, drafter = TextModel(PROMPT, most), RandomDrafter(data.draw, right)
    assert run(context, request, drafter, grammar=grammar, fails_at=fails_at) == expected
    assert drafter.made_ids == right
    assert sum(made for _, made in drafter.taken) == len(right) - 1
    assert [rows for rows, _ in drafter.taken] == [len(batch) for batch in context.batches][: len(drafter.taken)]


@given(request=REQUESTS, grammar=st.booleans(), prompt=st.lists(st.integers(0, N - 1), max_size=30))
def test_lookup_leaves_the_answer_as_it_is(request, grammar, prompt):
    costs = StepCosts()
    for rows, seconds in ((1, 1.0), (4, 1.0), (8, 1.0), (16, 1.0)) * 5:
        costs.measured(rows, seconds)
    drafter = LookupDrafter([*prompt, *PROMPT], left=request.max_tokens, costs=costs)
    expected = run(TextModel(PROMPT), request, None, grammar=grammar)
    assert run(TextModel(PROMPT), request, drafter, grammar=grammar) == expected


def choosing(answer):
    left = iter(answer)
    return lambda _: Choice(token := next(left), token == STOP)


class Scripted:
    """Drafts what it is told to, in turn."""

    def __init__(self, *drafts):
        self.drafts = list(drafts)

    def draft(self, most, *, beside=0):
        return self.drafts.pop(0)[:most]

    def made(self, token):
        pass

    def took(self, seconds, *, rows, made, beside=0):
        pass


def test_a_step_ends_at_the_first_token_that_differs_and_the_rest_is_dropped():
    context = TextModel(PROMPT)
    made = Steps(choosing([5, 4, 3, 6, 1, STOP]), Scripted([4, 3, 2, 2], [1, STOP, 0]))
    steps = each_step(context, made, np.zeros(N))
    assert [choice.token for choice in next(steps).choices] == [5]
    assert [choice.token for choice in next(steps).choices] == [4, 3, 6]
    assert context.ids == [*PROMPT, 5, 4, 3]
    step = next(steps)
    assert ([choice.token for choice in step.choices], step.rows) == ([1, STOP], 4)
    assert context.ids == [*PROMPT, 5, 4, 3, 6, 1], "the last token is not processed, drafted or not"


def test_a_draft_that_is_right_to_its_end_gives_one_token_more():
    context = TextModel(PROMPT)
    steps = each_step(context, Steps(choosing([5, 4, 3, 6]), Scripted([4, 3], [])), np.zeros(N))
    next(steps)
    assert len(next(steps).choices) == 3
    assert context.ids == [*PROMPT, 5, 4, 3]


def test_a_model_that_drops_nothing_gets_no_draft():
    context = TextModel(PROMPT, 0)
    steps = each_step(context, Steps(choosing([5, 4]), Scripted()), np.zeros(N))
    next(steps)
    assert next(steps).rows == 1
    assert context.batches == [(5,)]


def test_tokens_that_cannot_be_dropped_are_an_error():
    context = TextModel(PROMPT, keeps=False)
    steps = each_step(context, Steps(choosing([5, 4]), Scripted([3])), np.zeros(N))
    next(steps)
    with pytest.raises(DeviceEngineFailed, match="drop"):
        next(steps)


def test_answers_that_share_a_batch_have_their_parts_in_it():
    models = [TextModel(PROMPT), TextModel(PROMPT[:3])]
    answers = [Steps(choosing([5, 4, 3]), Scripted([4, 2])), Steps(choosing([6, 1]), Scripted([0]))]
    for steps in answers:
        steps.first(np.zeros(N))
    parts = [steps.next_ids(8, beside=beside) for steps, beside in zip(answers, (1, 3), strict=True)]
    assert parts == [(5, 4, 2), (6, 0)]
    logits = [model.logits([*model.ids, *part]) for model, part in zip(models, parts, strict=True)]
    made = [steps.check(lambda _, one=one: one) for steps, one in zip(answers, logits, strict=True)]
    assert [[choice.token for choice in choices] for choices in made] == [[4, 3], [1]]
    for steps, choices in zip(answers, made, strict=True):
        steps.took(0.1, made=len(choices), beside=2)
