"""What every built-in refiner keeps, and what each chooses."""

import math
from dataclasses import replace

import numpy as np
import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ConfigurationError, InvalidRefinement
from pdd_core.plugins import Policies
from pdd_core.refinement.check import check_kept, is_kept
from pdd_core.refinement.prompt import RefinePrompt
from pdd_core.refinement.refiners import REFINERS, AttentionRefiner, LexicalRefiner, TruncationRefiner, refiner
from pdd_core.refinement.refiners.attention import LEAST_FOCUS, max_pool, mean_pool, ranks
from pdd_core.refinement.refiners.base import choose, keep_count
from pdd_core.refinement.scores import PromptScores
from pdd_core.refinement.spans import lines, spans_of, words

PIECES = ["a", " word", " key", " 4", "8", "2", ".", "\n", "\n\n", " ", "<s>", "", "?"]


@st.composite
def prompts(draw, min_size=1):
    pieces = draw(st.lists(st.sampled_from(PIECES), min_size=min_size, max_size=120))
    spans = draw(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), max_size=3))
    ids = tuple(map(PIECES.index, pieces))
    return RefinePrompt(ids, tuple(pieces), frozenset({PIECES.index("<s>")}), tuple(spans))


def scores_of(values):
    return PromptScores(
        np.atleast_2d(np.asarray(values, np.float32)), tuple(range(np.ndim(values))) or (0,), 4, "max"
    )


def drawn(length, seed=0):
    return scores_of(np.random.default_rng(seed).random((3, length)))


def plain(length, protected=()):
    return RefinePrompt(tuple(range(length)), tuple(" x" for _ in range(length)), protected=protected)


ratios = st.floats(0, 1, exclude_min=True)
units = st.sampled_from(["token", "word", "line"])


@pytest.mark.parametrize("name", REFINERS)
@given(prompt=prompts(), ratio=ratios, seed=st.integers(0, 5))
def test_the_result_keeps_to_the_contract_and_its_length_is_what_was_asked_for(name, prompt, ratio, seed):
    scores = drawn(len(prompt), seed)
    kept = refiner(name).pdd_refine(scores=scores, prompt=prompt, ratio=ratio)
    check_kept(kept, len(prompt), prompt.protected)
    assert len(kept) == keep_count(len(prompt), ratio, prompt.num_protected)
    assert refiner(name).pdd_refine(scores=scores, prompt=prompt, ratio=ratio) == kept


@pytest.mark.parametrize("name", REFINERS)
@given(prompt=prompts())
def test_ratio_one_keeps_all(name, prompt):
    kept = refiner(name).pdd_refine(scores=drawn(len(prompt)), prompt=prompt, ratio=1.0)
    assert kept == list(range(len(prompt)))


@pytest.mark.parametrize("name", REFINERS)
def test_if_the_protected_spans_are_more_than_the_ratio_they_are_what_is_kept(name):
    prompt = plain(100, ((0, 30), (90, 100)))
    kept = refiner(name).pdd_refine(scores=drawn(100), prompt=prompt, ratio=0.25)
    assert kept == prompt.protected_indices()


@pytest.mark.parametrize("name", REFINERS)
@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, math.nan])
def test_a_ratio_out_of_range_is_told(name, ratio):
    with pytest.raises(ConfigurationError, match="ratio must be a number above 0 and at most 1"):
        refiner(name).pdd_refine(scores=drawn(10), prompt=plain(10), ratio=ratio)


@pytest.mark.parametrize("name", REFINERS)
def test_an_empty_prompt_has_an_empty_result_which_no_check_takes(name):
    prompt = RefinePrompt((), ())
    kept = refiner(name).pdd_refine(scores=scores_of(np.zeros((2, 0))), prompt=prompt, ratio=0.5)
    assert kept == []
    assert not is_kept(kept, prompt)


@pytest.mark.parametrize("name", REFINERS)
def test_it_is_a_plugin_that_is_asked_after_third_parties(name):
    policies = Policies({name: refiner(name)}, allow=[], strict=True)
    prompt = plain(40, ((0, 2),))
    accept = lambda kept: is_kept(kept, prompt)  # noqa: E731
    arguments = {"scores": drawn(40), "prompt": prompt, "ratio": 0.5}
    assert policies.first_result("pdd_refine", accept, **arguments)[1] == name
    assert len(policies.first_result("pdd_refine", accept, **arguments)[0]) == 20


def test_unknown_refiners_settings_and_values_are_told():
    with pytest.raises(
        ConfigurationError, match=r"no refiner 'best'; known: attention, lexical, truncation, random"
    ):
        refiner("best")
    with pytest.raises(ConfigurationError, match=r"refiner 'random': .*'pool'"):
        refiner("random", pool=3)
    for name, settings_ in (
        ("attention", {"pool": 0}),
        ("attention", {"pool": 1.5}),
        ("attention", {"pooling": "sum"}),
        ("attention", {"unit": "page"}),
        ("attention", {"fuse": -1}),
        ("random", {"unit": "page"}),
        ("truncation", {"head": 2}),
    ):
        with pytest.raises(ConfigurationError, match=next(iter(settings_))):
            refiner(name, **settings_)


@given(length=st.integers(0, 5000), ratio=ratios, protected=st.integers(0, 5000))
def test_the_count_is_the_share_rounded_up_and_no_less_than_what_is_protected(length, ratio, protected):
    count = keep_count(length, ratio, min(protected, length))
    assert min(protected, length) <= count <= length
    assert count >= ratio * length - 1e-6
    assert count <= ratio * length + 1 or count == min(protected, length)


def test_rounding_errors_keep_no_token_more():
    assert keep_count(100, 0.07) == 7
    assert keep_count(3, 0.34) == 2
    assert keep_count(10, 1e-12) == 1


# choose


@examples(200)
@given(prompt=prompts(), ratio=ratios, unit=units, data=st.data())
def test_units_are_taken_best_first_and_at_most_one_is_cut(prompt, ratio, unit, data):
    numbers = st.lists(st.integers(0, 4), min_size=len(prompt), max_size=len(prompt))
    weights = np.array(data.draw(numbers), dtype=float)
    kept = set(choose(weights, prompt, ratio, unit=unit))
    protected = set(prompt.protected_indices())
    tokens = [(index, index + 1) for index in range(len(prompt))]
    spans = {"token": tokens, "word": words(prompt.pieces), "line": lines(prompt.pieces)}[unit]
    cut, whole, left = [], [], []
    for start, end in spans:
        free = set(range(start, end)) - protected
        if free:
            best = max(weights[list(free)])
            (whole if free <= kept else cut if free & kept else left).append(best)
    assert len(cut) <= 1
    assert max([*cut, *left], default=-1) <= min(whole, default=5)
    assert max(left, default=-1) <= min(cut, default=5)


def test_ties_go_by_the_second_weights_then_by_position():
    prompt = plain(6)
    assert choose(np.ones(6), prompt, 0.5) == [0, 1, 2]
    assert choose(np.ones(6), prompt, 0.5, ties=np.arange(6.0)) == [3, 4, 5]
    assert choose(np.array([0, 2, 1, 1, 1, 0]), prompt, 0.5, ties=np.array([9, 0, 1, 2, 3, 9])) == [1, 3, 4]


def test_a_unit_that_is_cut_keeps_its_best_tokens():
    prompt = RefinePrompt(tuple(range(8)), ("a", "b", "c", "d", " e", "f", "g", "h"))
    assert choose(np.array([1.0, 9, 2, 8, 0, 0, 0, 7]), prompt, 0.25) == [1, 3]
    assert choose(np.array([1.0, 9, 2, 8, 0, 0, 0, 7]), prompt, 0.75) == [0, 1, 2, 3, 4, 7]


def test_a_unit_that_is_cut_keeps_its_peak():
    prompt = RefinePrompt(tuple(range(8)), ("a", "b", "c", "d", " e", "f", "g", "h"))
    weights, peaks = np.array([1.0, 9, 2, 8, 0, 0, 0, 7]), np.array([5.0, 0, 4, 0, 0, 9, 0, 0])
    assert choose(weights, prompt, 0.25, peaks=peaks) == [0, 1]
    assert choose(weights, prompt, 0.75, peaks=peaks) == [0, 1, 2, 3, 5, 7]


@pytest.mark.parametrize("pooling", ["mean", "max"])
@given(seed=st.integers(0, 500), size=st.integers(1, 8), pool=st.integers(1, 9))
def test_the_most_attended_token_is_not_cut_out_of_a_line(pooling, seed, size, pool):
    noise = np.random.default_rng(seed).random(40)
    noise[seed % 40] = 2
    kept = AttentionRefiner(pool=pool, pooling=pooling).pdd_refine(scores_of(noise), plain(40), size / 40)
    assert seed % 40 in kept
    assert len(kept) == size


@pytest.mark.parametrize("weights", [np.zeros(5), np.zeros((1, 6)), np.array([0, 1, 2, math.nan, 0, 0])])
def test_weights_that_do_not_fit_are_told(weights):
    with pytest.raises(InvalidRefinement, match="weight"):
        choose(weights, plain(6), 0.5)


# attention


@given(
    values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60),
    width=st.integers(1, 70),
)
def test_pooling_is_the_largest_and_the_mean_of_each_window(values, width):
    array = np.array(values, dtype=np.float32)
    before = (width - 1) // 2
    windows = [array[max(0, at - before) : at - before + width] for at in range(len(array))]
    assert max_pool(array, width).tolist() == [window.max() for window in windows]
    np.testing.assert_allclose(
        mean_pool(array, width), [window.mean(dtype=float) for window in windows], atol=1e-6
    )


def test_attention_keeps_the_surroundings_of_the_peaks():
    values = np.zeros(1000)
    values[[300, 700]] = [0.5, 0.4]
    kept = AttentionRefiner(pool=31, pooling="max", unit="word").pdd_refine(
        scores_of(values), plain(1000, ((0, 1), (999, 1000))), 0.064
    )
    assert spans_of(kept) == ((0, 1), (285, 316), (685, 716), (999, 1000))


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_where_the_last_surroundings_are_cut_the_peak_stays(pooling):
    values = np.zeros(1000)
    values[[300, 700]] = [0.5, 0.4]
    kept = AttentionRefiner(pool=31, pooling=pooling, unit="word").pdd_refine(scores_of(values), plain(1000), 0.05)
    assert len(kept) == 50
    assert {300, 700} <= set(kept)


def test_attention_keeps_whole_words_around_a_peak():
    pieces = [" a"] * 50 + [" 4", *"829163"] + [" b"] * 50
    prompt = RefinePrompt(tuple(range(len(pieces))), tuple(pieces))
    values = np.zeros(len(pieces))
    values[53] = 1.0
    for pool in (1, 3):
        whole = AttentionRefiner(pool=pool, unit="word").pdd_refine(scores_of(values), prompt, 7 / 107)
        assert whole == list(range(50, 57))
    assert AttentionRefiner(pool=3, pooling="max", unit="token").pdd_refine(
        scores_of(values), prompt, 3 / 107
    ) == [52, 53, 54]


def test_protected_tokens_lend_their_neighbours_nothing_unless_told_to():
    values = np.zeros(200)
    values[0], values[100] = 1.0, 0.1
    prompt = plain(200, ((0, 1),))
    refiners = [AttentionRefiner(pool=9, pooling="max", unit="word", lend=lend) for lend in (False, True)]
    silent, lending = (spans_of(refiner.pdd_refine(scores_of(values), prompt, 0.05)) for refiner in refiners)
    assert silent == ((0, 1), (96, 105))
    assert lending[0] == (0, 5)


def test_layers_are_averaged():
    scores = scores_of([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.8]])
    assert scores.over_layers().tolist() == pytest.approx([0, 0.5, 0, 0.4])
    assert scores.over_layers().dtype == np.float32
    assert AttentionRefiner(pool=1, unit="token").pdd_refine(scores, plain(4), 0.5) == [1, 3]


def test_without_scores_another_decides():
    assert AttentionRefiner().pdd_refine(None, plain(4), 0.5) is None
    policies = Policies({"lexical": LexicalRefiner(), "attention": AttentionRefiner()}, allow=[], strict=True)
    prompt = plain(8)
    given_ = {"scores": None, "prompt": prompt, "ratio": 0.5}
    assert policies.first_result("pdd_refine", lambda kept: is_kept(kept, prompt), **given_)[1] == "lexical"


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 9)),
        np.full((2, 10), np.nan),
        np.full((2, 10), np.inf),
        np.array([[np.inf] * 10, [-np.inf] * 10]),
        np.full((2, 10), 3e38),
    ],
)
def test_scores_that_cannot_be_right_are_told(values):
    with pytest.raises(InvalidRefinement):
        AttentionRefiner().pdd_refine(scores_of(values), plain(10), 0.5)


# attention and words together

TEXTS = [
    f"{LINES_OF} number {number}." for number, LINES_OF in enumerate(["Of rivers", "Of bread", "Of keys"] * 4)
]


def scored(question, weights):
    """A prompt of one line for each of `weights`, and scores that give each line its weight."""
    pieces = [piece for text in TEXTS for piece in [*text.replace(" ", "| ").split("|"), "\n"]]
    asked = ["\n", *question.replace(" ", "| ").split("|")]
    prompt = RefinePrompt(
        tuple(range(len(pieces) + len(asked))),
        (*pieces, *asked),
        protected=((0, 1), (len(pieces) + 1, len(pieces) + len(asked))),
    )
    spans = lines(prompt.pieces)[: len(TEXTS)]
    values = np.zeros(len(prompt))
    for (start, end), weight in zip(spans, weights, strict=True):
        values[start:end] = weight
    return scores_of(values), prompt


def kept_lines(scores, prompt, refiner_, ratio):
    kept = set(refiner_.pdd_refine(scores, prompt, ratio))
    return [number for number, (start, _) in enumerate(lines(prompt.pieces)[: len(TEXTS)]) if start + 1 in kept]


@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ranks_count_from_the_largest_and_equals_share_theirs(values):
    found = ranks(np.array(values, dtype=float))
    assert sum(found) == pytest.approx(len(values) * (len(values) + 1) / 2)
    for one, rank in zip(values, found, strict=True):
        above, equal = sum(other > one for other in values), values.count(one)
        assert rank == above + (equal + 1) / 2


def test_what_either_ranking_has_first_is_kept_before_what_none_has():
    weights = [0.001 * number for number in range(12)]
    weights[6] = 1.0  # attention's first; words say 7, and know nothing of the others
    scores, prompt = scored("Which one has number 7?", weights)
    assert {6, 7} <= set(kept_lines(scores, prompt, AttentionRefiner(), 0.3))
    assert 7 not in kept_lines(scores, prompt, AttentionRefiner(fuse=0), 0.15)


def test_where_no_line_shares_a_word_attention_alone_decides():
    scores, prompt = scored("Quo vadis?", np.random.default_rng(5).random(12))
    for ratio in (0.2, 0.4, 0.7):
        alone = kept_lines(scores, prompt, AttentionRefiner(fuse=0), ratio)
        assert kept_lines(scores, prompt, AttentionRefiner(), ratio) == alone


def test_a_prompt_has_a_focus_where_attention_and_words_agree():
    agreeing = np.linspace(0.5, 0.1, 12)
    agreeing[7] = 1.0
    question = "What of bread is number 7?"
    focus = AttentionRefiner().focus(*scored(question, agreeing))
    against = AttentionRefiner().focus(*scored(question, 1.1 - agreeing))
    assert against < LEAST_FOCUS < focus <= 1


def test_a_line_that_the_words_single_out_is_enough_where_attention_has_it_among_its_first():
    weights = np.linspace(1.0, 0.1, 12)
    weights[7] = 0.95  # second of twelve
    assert AttentionRefiner().focus(*scored("Which one has number 7?", weights)) > LEAST_FOCUS


def test_nothing_is_said_of_few_lines_or_without_a_shared_word():
    weights = np.random.default_rng(5).random(12)
    assert AttentionRefiner().focus(*scored("Quo vadis?", weights)) == 1
    assert AttentionRefiner().focus(scores_of(np.ones(4)), plain(4)) == 1
    with pytest.raises(InvalidRefinement):
        AttentionRefiner().focus(scores_of(np.ones(5)), plain(4))


@given(prompt=prompts(), seed=st.integers(0, 5))
def test_the_focus_is_a_share(prompt, seed):
    assert -0.01 <= AttentionRefiner().focus(drawn(len(prompt), seed), prompt) <= 1 + 1e-9


# the others


def test_truncation_keeps_head_and_tail():
    prompt = plain(100, ((0, 4), (90, 100)))
    assert spans_of(TruncationRefiner().pdd_refine(None, prompt, 0.3)) == ((0, 12), (82, 100))
    assert spans_of(TruncationRefiner(head=0).pdd_refine(None, prompt, 0.3)) == ((0, 4), (74, 100))
    assert spans_of(TruncationRefiner(head=1).pdd_refine(None, prompt, 0.3)) == ((0, 20), (90, 100))


def test_random_goes_by_prompt_and_seed():
    prompt = plain(200)
    other = replace(prompt, token_ids=(7, *prompt.token_ids[1:]))
    kept = refiner("random").pdd_refine(None, prompt, 0.5)
    assert refiner("random").pdd_refine(None, other, 0.5) != kept
    assert refiner("random", seed=1).pdd_refine(None, prompt, 0.5) != kept
    assert refiner("random").pdd_refine(None, prompt, 0.5) == kept


LINES = [
    "The river is long and slow.",
    "The secret key of the vault is 4829.",
    "Bread is made of flour.",
    "Keys of pianos are black and white.",
    "Nobody knows the weather.",
]


def asking(question):
    pieces = [piece for line in LINES for piece in [*line.replace(" ", "| ").split("|"), "\n"]]
    text = [*pieces, "\n", *question.replace(" ", "| ").split("|")]
    start = len(pieces) + 1
    return RefinePrompt(tuple(range(len(text))), tuple(text), protected=((0, 1), (start, len(text))))


def kept_text(prompt, kept):
    return ["".join(prompt.pieces[start:end]) for start, end in spans_of(kept)]


def test_lexical_keeps_the_line_that_shares_rare_words_with_the_question():
    prompt = asking("What is the SECRET of the vault?")
    kept = LexicalRefiner().pdd_refine(None, prompt, 17 / len(prompt))
    assert kept_text(prompt, kept)[1] == "The secret key of the vault is 4829.\n"


def test_lexical_counts_no_word_of_the_question_twice_because_it_stands_in_the_prompt():
    prompt = asking("vault vault vault bread?")
    kept = LexicalRefiner().pdd_refine(None, prompt, 12 / len(prompt))
    assert "Bread is made of flour.\n" in kept_text(prompt, kept)


@pytest.mark.parametrize("question", ["?", "Quo vadis?"])
def test_lexical_keeps_both_ends_where_no_word_is_shared(question):
    prompt = asking(question)
    kept = LexicalRefiner().pdd_refine(None, prompt, 0.5)
    text = "".join(kept_text(prompt, kept))
    assert text.startswith(LINES[0])
    assert LINES[2] not in text
