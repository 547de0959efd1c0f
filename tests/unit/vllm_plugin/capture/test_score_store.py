from pdd_vllm_plugin.capture.score_store import KEEP_S, Missed, ScoreStore


def test_each_result_is_given_out_once():
    score_store = ScoreStore(4)
    score_store.put("a", Missed("why"))
    assert score_store.take("a") == {"missed": "why"}
    assert score_store.take("a") is None


def test_it_is_bounded_in_number_and_the_oldest_goes_first():
    score_store = ScoreStore(2)
    for name in "abc":
        score_store.put(name, Missed(name))
    assert len(score_store) == 2
    assert score_store.take("a") is None
    assert score_store.take("c") == {"missed": "c"}


def test_what_nobody_fetched_in_time_after_the_requests_end_goes_with_the_next():
    now = [0.0]
    score_store = ScoreStore(9, clock=lambda: now[0])
    score_store.put("a", Missed("a"))
    score_store.ended("a")
    now[0] = KEEP_S + 1
    score_store.put("b", Missed("b"))
    assert len(score_store) == 1


def test_what_belongs_to_a_running_request_does_not_age():
    """One that is not streamed has its scores fetched when it ends."""
    now = [0.0]
    score_store = ScoreStore(9, clock=lambda: now[0])
    score_store.put("long", Missed("long"))
    now[0] = 3 * KEEP_S
    score_store.put("b", Missed("b"))
    score_store.ended("long")
    now[0] += KEEP_S
    score_store.ended("b")
    assert score_store.take("long") == {"missed": "long"}


def test_what_belongs_to_a_running_request_makes_way_last():
    score_store = ScoreStore(2)
    for name in "abc":
        score_store.put(name, Missed(name))
        if name == "b":
            score_store.ended("b")
    assert [score_store.take(name) is None for name in "abc"] == [False, True, False]


def test_the_end_of_one_that_has_nothing_here_is_no_matter():
    score_store = ScoreStore(2)
    score_store.ended("a")
    assert len(score_store) == 0


def test_the_same_id_again_replaces():
    score_store = ScoreStore(9)
    score_store.put("a", Missed("old"))
    score_store.put("a", Missed("new"))
    assert score_store.take("a") == {"missed": "new"}
