import numpy as np
import pytest
from example_count import examples
from hypothesis import example, given
from hypothesis import strategies as st
from naive_vllm import serve

from pdd_core.errors import ConfigurationError
from pdd_core.planner.profiles import MeasuredCloud
from pdd_lab.simulator.instance import simulate
from pdd_lab.simulator.offered_load import Load


def cloud(**changes):
    values = {
        "name": "test", "model": "test", "base_s": 0.0103, "per_prefill_token_s": 23e-6, "per_sequence_s": 37e-6,
        "per_context_token_s": 26e-9, "per_request_s": 1.1e-4, "kv_tokens": 100_000, "max_num_seqs": 64,
        "max_num_batched_tokens": 2048, "rtt_s": 0.03, "jitter_s": 0.0,
    }  # fmt: skip
    return MeasuredCloud(**values | changes)


def exact(seconds):
    """Return a multiple of 2**-30 s: sums of these have no rounding error, in whatever order they are made.

    With other times, an arrival at the very end of a step is seen by the simulator and not by its reference, or
    the other way round, as the last bit of the sum falls; all that follows is then a step later.
    """
    return round(seconds * 2**30) / 2**30


@st.composite
def loads(draw, *, most=14, hashed=True):
    count = draw(st.integers(1, most))
    gaps = st.sampled_from([exact(gap) for gap in (0.0, 0.0011, 0.013, 0.17, 1.9)])
    prompts = draw(st.lists(st.integers(1, 70), min_size=count, max_size=count))
    hashes = [
        tuple(draw(st.sampled_from([(), (1,), (1, 2), (1, 3, 4), (5,), (6, 7, 8, 9)])))[: 1 + (p - 1) // 8]
        if hashed
        else ()
        for p in prompts
    ]
    return Load(
        np.cumsum(draw(st.lists(gaps, min_size=count, max_size=count))),
        np.array(prompts),
        np.array(draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))),
        np.cumsum([0, *map(len, hashes)]),
        np.array([one for chain in hashes for one in chain], dtype=np.int64),
        8,
    )


def exact_cloud(**changes):
    values = cloud(**changes)
    times = [name for name in MeasuredCloud.model_fields if name.startswith(("base_s", "per_"))]
    return values.model_copy(update={name: exact(getattr(values, name)) for name in times})


@st.composite
def clouds(draw):
    seats = draw(st.integers(1, 6))
    return exact_cloud(
        kv_tokens=4 * draw(st.integers(33, 80)),
        block_size=4,
        max_num_seqs=seats,
        max_num_batched_tokens=draw(st.integers(seats, 50)),
        per_context_token_s=draw(st.sampled_from([0.0, 26e-9, 1e-5])),
        per_request_s=draw(st.sampled_from([0.0, 1.1e-4])),
        per_attended_token_s=draw(st.sampled_from([0.0, 1.3e-6])),
    )


def arrives_as_a_step_ends():
    """Two requests, the second as the first has its third token."""
    profile = exact_cloud(kv_tokens=320, block_size=4, max_num_seqs=4, max_num_batched_tokens=40)
    third = serve(Load(np.zeros(1), np.array([39]), np.array([3])), profile)[1][0]
    return {"load": Load(np.array([0.0, third]), np.array([39, 30]), np.array([60, 60])), "profile": profile}


def fits_once_its_prefix_is_forgotten():
    """The fifth finds blocks 1 and 2, but has to compute a token that lies in 2; holding both leaves too few."""
    load = Load(
        np.zeros(14), np.array([1, 16, 68, 53, 9, *[1] * 9]), np.array([1, 1, 6, 3, *[1] * 10]),
        np.array([0, 0, 2, 2, 3, *[5] * 10]), np.array([1, 2, 1, 1, 2]), 8,
    )  # fmt: skip
    profile = exact_cloud(
        kv_tokens=136, block_size=4, max_num_seqs=3, max_num_batched_tokens=14, per_context_token_s=0.0
    )
    return {"load": load, "profile": profile}


@example(**arrives_as_a_step_ends())
@example(**fits_once_its_prefix_is_forgotten())
@given(load=loads(), profile=clouds())
def test_it_does_what_the_naive_scheduler_does(load, profile):
    served = simulate(load, profile)
    first, finish, preemptions = serve(load, profile)
    assert served.first_token_s.tolist() == first
    assert served.finish_s.tolist() == finish
    assert served.preemptions == preemptions


@examples(80)
@given(loads(), clouds())
def test_every_request_ends_with_all_its_tokens_within_all_limits(load, profile):
    served = simulate(load, profile)
    assert served.refused == 0
    assert np.isfinite(served.finish_s).all()
    assert (served.first_token_s > load.arrival_s).all()
    assert (served.finish_s >= served.first_token_s).all()
    assert served.decode_tokens == load.output_tokens.sum()
    if not served.preemptions:
        assert served.prefill_tokens + served.cached_tokens.sum() == load.prompt_tokens.sum()
    assert served.most_running <= profile.max_num_seqs
    assert served.most_batched_tokens <= profile.max_num_batched_tokens
    assert served.most_blocks <= profile.kv_tokens // profile.block_size
    assert served.busy_s <= served.end_s * (1 + 1e-12)


@examples(40)
@given(loads(hashed=False), clouds(), st.integers(1, 20))
def test_more_tokens_take_no_less_time(load, profile, more):
    profile = profile.model_copy(update={"kv_tokens": 4 * 4000})  # without preemptions, whose timing is chance
    load = Load(np.zeros(len(load)), load.prompt_tokens, np.full(len(load), 20))
    longer = Load(load.arrival_s, load.prompt_tokens, load.output_tokens + more)
    assert simulate(longer, profile).end_s >= simulate(load, profile).end_s


def test_a_higher_rate_of_arrivals_makes_first_tokens_later():
    draw = np.random.default_rng(0)
    gaps, prompts = draw.exponential(1.0, 400), draw.integers(10, 2000, 400)
    outputs = draw.integers(1, 300, 400)
    waits = []
    for rate in (1.0, 10.0, 20.0, 40.0):
        load = Load(np.cumsum(gaps) / rate, prompts, outputs)
        waits.append(np.mean(simulate(load, cloud()).first_token_s - load.arrival_s))
    assert waits == sorted(waits)


def test_a_shared_prefix_is_computed_once():
    served = simulate(Load.at_once(50, 1024, 3, shared=912), cloud())
    assert served.prefill_tokens == 1024 + 49 * (1024 - 912)
    assert served.cached_tokens.tolist() == [0] + [912] * 49


def test_the_last_token_of_a_cached_prompt_is_computed_all_the_same():
    served = simulate(Load.at_once(2, 64, 1, shared=64), cloud())
    assert served.cached_tokens.tolist() == [0, 48]


def test_a_request_that_can_never_fit_is_refused_and_the_others_are_served():
    load = Load(np.zeros(3), np.array([10, 5000, 10]), np.array([5, 5, 5]))
    served = simulate(load, cloud(kv_tokens=1600))
    assert served.refused == 1
    assert np.isnan(served.finish_s).tolist() == [False, True, False]


def test_an_arrival_during_a_step_waits_for_its_end():
    load = Load(np.array([0.0, 1e-4]), np.array([100, 100]), np.array([1, 1]))
    served = simulate(load, cloud())
    step = 0.0103 + 100 * 23e-6 + 1.1e-4
    assert served.finish_s.tolist() == pytest.approx([step, 2 * step])


def test_however_far_the_next_arrival_is_no_steps_are_counted_up_to_it(monkeypatch):
    monkeypatch.setattr("pdd_lab.simulator.step_clock.steps_until", lambda *_: pytest.fail("counted"))
    load = Load(np.array([0.0, 1e25]), np.full(2, 100), np.full(2, 50))
    assert np.isfinite(simulate(load, cloud()).finish_s).all()


def test_nothing_to_do_takes_no_time():
    served = simulate(Load(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)), cloud())
    assert (served.end_s, served.steps) == (0.0, 0)


def test_fewer_batched_tokens_than_sequences_are_a_wrong_setting():
    with pytest.raises(ConfigurationError, match="max_num_batched_tokens"):
        simulate(Load.at_once(1, 1, 1), cloud(max_num_seqs=64, max_num_batched_tokens=32))
