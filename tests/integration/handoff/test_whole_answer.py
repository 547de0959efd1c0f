"""What a client asks for holds for the whole answer, as if one engine had made it, whoever made which part."""

import json
import math
from contextlib import aclosing

import anyio
import jsonschema
import pytest
from cloud_support import KEY
from held_engine import Held
from near_ties import assert_same

from pdd_core.env import ServeSettings
from pdd_core.errors import DeviceEngineFailed, InvalidGrammar
from pdd_core.patience import Patience
from pdd_core.timeline import Source
from pdd_llamacpp_adapter import (
    AnswerRequest,
    AnswerSession,
    CloudClient,
    DeviceProfile,
    Grammar,
    GrammarEngine,
    GrammarKind,
    Runtime,
)
from pdd_llamacpp_adapter.engine.bad_words import bad_word_ids

pytestmark = pytest.mark.anyio

QUESTION = "Tell me about the sea in three sentences."
LENGTH = 28
WAIT = Patience(late_s=math.inf)
"""The seam then lies where the budget says."""
NEAR = 0.05
"""Nats by which one logprob may differ between the engines."""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


class Gated(Held):
    """The real engine, which begins only when told to, or fails instead."""

    def __init__(self, engine, *, fails=False):
        super().__init__(engine)
        self._fails = fails

    async def ready(self):
        await super().ready()
        if self._fails:
            raise DeviceEngineFailed("as the test wants it")


@pytest.fixture
def prompt(engine):
    return engine.vocab.render_chat([{"role": "user", "content": QUESTION}])


@pytest.fixture
def answered(cloud, engine, prompt):
    async def answer(
        *,
        budget,
        begin=None,
        fails=False,
        alone=False,
        grammars=None,
        patience=WAIT,
        made_by=CloudClient,
        **fields,
    ):
        """Return the shown tokens and the session: an answer handed over at `budget`, or the cloud's `alone`.

        The device begins when `begin` tokens are shown, by default those of the budget.
        """
        engine.reset()
        gated = Gated(engine, fails=fails)
        request = AnswerRequest(
            **{"prompt_token_ids": prompt, "max_tokens": LENGTH, "decode_budget": budget, **fields}
        )
        shown = []
        async with made_by(cloud.base_url, api_key=KEY) as client:
            async with AnswerSession(
                request,
                engine=None if alone else gated,
                vocab=engine.vocab,
                cloud=client,
                rate=math.inf,
                patience=patience,
                grammars=grammars,
            ) as session:
                async for token in session:
                    shown.append(token)
                    if len(shown) == (begin or budget):
                        gated.begin.set()
            return shown, session

    return answer


@pytest.fixture(scope="module")
def grammars(engine):
    """Made once: reading the vocabulary takes a while."""
    return GrammarEngine(engine.vocab, engine.vocab.stop_ids)


def ids(shown):
    return [token.token_id for token in shown]


def text(shown, session):
    return "".join(token.text for token in shown) + session.tail


@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": 0.8, "presence_penalty": 0.4},
        {"repetition_penalty": 1.3},
        {"logit_bias": {28: -100.0, 30: 3.0}},
        {"min_tokens": LENGTH},
        {"ignore_eos": True},
        {"bad_words": ["The", "sea", "vast", "a", "body of"]},
        {"allowed_token_ids": list(range(2, 6_000, 2))},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_a_greedy_answer_is_the_clouds_own_wherever_the_seam_lies(answered, fields):
    whole, _ = await answered(budget=None, alone=True, **fields)
    for budget in (1, 9):
        shown, session = await answered(budget=budget, **fields)
        assert ids(shown) == ids(whole)
        assert session.outcome.timeline.count(Source.CLOUD) == budget
        assert session.outcome.timeline.count(Source.DEVICE) == len(whole) - budget


async def test_logprobs_go_on_with_the_same_meaning(answered):
    whole, _ = await answered(budget=None, alone=True, logprobs=3)
    shown, _ = await answered(budget=7, logprobs=3)
    assert ids(shown) == ids(whole)
    for ours, theirs in zip(shown, whole, strict=True):
        assert ours.logprobs.chosen.token_id == ours.token_id
        assert ours.logprobs.chosen.logprob == pytest.approx(theirs.logprobs.chosen.logprob, abs=NEAR)
        assert len(ours.logprobs.top) == len(theirs.logprobs.top) == 3
        assert ours.logprobs.top[0].token_id == theirs.logprobs.top[0].token_id
    assert {token.source for token in shown} == {Source.CLOUD, Source.DEVICE}


async def test_a_stop_string_is_caught_wherever_it_lies(answered):
    whole, session = await answered(budget=None, alone=True)
    full = text(whole, session)
    middle = len("".join(token.text for token in whole[:8]))
    stop = full[middle - 3 : middle + 4]
    cut = full[: full.index(stop)]
    for budget in (2, 7, 8, 9):
        shown, session = await answered(budget=budget, stop=[stop, "no such text"])
        assert text(shown, session) == cut
        assert (session.outcome.finish_reason, session.outcome.stop_reason) == ("stop", stop)


async def test_a_json_answer_is_valid_wherever_the_seam_lies(answered, grammars):
    grammar = Grammar(GrammarKind.JSON, json.dumps(SCHEMA))
    from_device = 0
    for seed in range(6):
        budget = 2 + 3 * seed
        shown, session = await answered(
            budget=budget, grammars=grammars, grammar=grammar, max_tokens=90, temperature=0.7, seed=seed
        )
        if session.outcome.finish_reason == "stop":
            jsonschema.validate(json.loads(text(shown, session)), SCHEMA)
        from_device += session.outcome.timeline.count(Source.DEVICE)
        assert session.outcome.cloud_error is None
    assert from_device > 20


async def test_bad_words_are_those_of_vllm(engine, prepared):
    from vllm import SamplingParams
    from vllm.tokenizers.registry import get_tokenizer

    tokenizer = get_tokenizer(str(prepared.vllm_dir))
    words = ["the", " sea", "Ozean", "日本", "don't", "<|im_end|>", "a b", "  x"]
    params = SamplingParams(bad_words=words)
    params.update_from_tokenizer(tokenizer)
    assert [list(ids) for ids in bad_word_ids(words, engine.vocab)] == params.bad_words_token_ids


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(GrammarKind.CHOICE, json.dumps(["the sea is blue and deep", "the sea is grey, and full of fish"])),
        Grammar(GrammarKind.REGEX, r"[a-z]{3,9}( [a-z]{1,9}){6}\d"),
    ],
    ids=lambda grammar: grammar.kind.value,
)
async def test_a_format_is_held_across_the_seam_as_by_the_cloud_alone(answered, grammars, grammar):
    whole, _ = await answered(budget=None, alone=True, grammar=grammar)
    for budget in (1, 4):
        shown, session = await answered(budget=budget, grammars=grammars, grammar=grammar)
        assert ids(shown) == ids(whole)
        assert session.outcome.timeline.count(Source.DEVICE) == len(whole) - budget


async def test_an_object_without_properties_is_empty_behind_the_seam_too(answered, grammars):
    grammar = Grammar(GrammarKind.JSON, json.dumps({"properties": {"a": {"properties": {}}}, "required": ["a"]}))
    for budget in (1, 3):
        shown, session = await answered(budget=budget, grammars=grammars, grammar=grammar, max_tokens=60)
        said = "".join(text(shown, session).split())
        assert '{"a":{}}'.startswith(said)
        assert len(said) > len('{"a":')
        assert session.outcome.timeline.count(Source.DEVICE) > 0


async def test_the_cloud_finishes_behind_a_device_that_failed(answered):
    whole, _ = await answered(budget=None, alone=True)
    shown, session = await answered(budget=5, fails=True, patience=Patience())
    assert ids(shown) == ids(whole)
    assert session.outcome.timeline.count(Source.CLOUD) == len(whole)
    assert session.outcome.cloud_tokens_in_vain == 0


async def test_where_the_output_counts_the_cloud_makes_it_again_and_says_the_same(answered):
    fields = {"frequency_penalty": 0.8, "temperature": 0.8, "seed": 4}
    whole, _ = await answered(budget=None, alone=True, **fields)
    shown, session = await answered(budget=5, fails=True, patience=Patience(), **fields)
    assert ids(shown) == ids(whole)
    assert session.outcome.cloud_tokens_in_vain == 5


async def test_a_late_device_is_helped_out_and_takes_over_in_the_end(answered, prompt):
    whole, _ = await answered(budget=None, alone=True)

    class Waiting(CloudClient):
        """A cloud that sends no more than twelve tokens, so that the device need not be fast to catch up."""

        async def stream(self, request, opt_in, **options):
            sent = len(request.prompt_token_ids) - len(prompt)
            async with aclosing(super().stream(request, opt_in, **options)) as chunks:
                async for chunk in chunks:
                    if sent >= 12:
                        await anyio.sleep(60)  # until the device has taken over
                    sent += len(chunk.token_ids)
                    yield chunk

    patience = Patience(late_s=0.0, max_extensions=LENGTH)
    shown, session = await answered(budget=3, begin=5, patience=patience, made_by=Waiting)
    assert ids(shown) == ids(whole)
    assert session.outcome.extensions >= 1
    assert session.outcome.timeline.count(Source.CLOUD) >= 5
    assert session.outcome.timeline.count(Source.DEVICE) >= 1


async def test_a_bad_schema_is_refused_before_anything_is_sent(answered, cloud):
    steps = len(cloud.steps())
    with pytest.raises(InvalidGrammar):
        await answered(budget=3, grammar=Grammar(GrammarKind.JSON, '{"type": "nonsense"}'))
    assert len(cloud.steps()) == steps


class OtherGrammar:
    """A grammar engine that reads every grammar as another one."""

    def __init__(self, engine):
        self._grammars = GrammarEngine(engine.vocab, engine.vocab.stop_ids)

    def matcher(self, _):
        return self._grammars.matcher(Grammar(GrammarKind.REGEX, "[0-9]+"))


async def test_a_cloud_whose_grammar_the_device_reads_otherwise_finishes(answered, engine):
    fields = {"grammar": Grammar(GrammarKind.JSON, json.dumps(SCHEMA)), "max_tokens": 90}
    whole, _ = await answered(budget=None, alone=True, **fields)
    shown, session = await answered(budget=4, grammars=OtherGrammar(engine), patience=Patience(), **fields)
    assert ids(shown) == ids(whole)
    assert session.outcome.timeline.count(Source.DEVICE) == 0
    assert any("GrammarRejected" in decision.what for decision in session.outcome.decisions)


class LingeringCloud(CloudClient):
    """A cloud whose answer is not over before something else has happened, however fast the machine."""

    async def stream(self, *args, **options):
        async with aclosing(super().stream(*args, **options)) as chunks:
            async for chunk in chunks:
                with anyio.fail_after(60):
                    while chunk.end is not None and not self.until():
                        await anyio.sleep(0.01)
                yield chunk


async def test_the_next_turn_reuses_what_was_read_of_one_that_ended_in_the_cloud(cloud, engine, prompt):
    engine.reset()
    async with LingeringCloud(cloud.base_url, api_key=KEY) as client:
        client.until = lambda: engine.slots[0].memory.n_past > 0
        first = AnswerRequest(prompt_token_ids=prompt, max_tokens=12, decode_budget=12)
        slow = DeviceProfile("slow", prefill_tps=60.0, decode_tps=60.0)
        async with AnswerSession(first, engine=engine, cloud=client, rate=math.inf, profile=slow) as session:
            shown = [token async for token in session]
    held = engine.slots[0].memory.n_past
    assert held > 0
    following = [*prompt, *ids(shown), *engine.vocab.tokenize(" And the mountains? Tell me about them too.")]
    request = AnswerRequest(prompt_token_ids=following, max_tokens=8)
    answers = []
    for expected in (held, 0):
        async with AnswerSession(request, engine=engine, rate=math.inf) as session:
            answers.append([token.token_id async for token in session])
        assert min(expected, len(prompt)) <= session.outcome.reused_tokens <= expected
        engine.reset()
    await assert_same(engine, following, *answers)


async def test_what_does_not_fit_the_device_stays_in_the_cloud(cloud, prepared, prompt):
    settings = ServeSettings(cloud_url=cloud.base_url, cloud_api_key=KEY, n_ctx=64)
    request = AnswerRequest(prompt_token_ids=[*prompt, *prompt], max_tokens=8)
    assert len(request.prompt_token_ids) > 64
    async with Runtime.running(prepared.gguf, settings, model_name="m") as runtime:
        with anyio.fail_after(60):
            while runtime.cloud.info is None:
                await anyio.sleep(0.05)
        async with runtime.session(request) as session:
            shown = [token async for token in session]
    assert session.outcome.mode == "cloud_only"
    assert len(shown) == 8
    assert text(shown, session).strip()
