from pdd_vllm_plugin.capture.score_store import KEEP_S, Missed, ScoreStore


def test_each_result_is_given_out_once():
    shelf = ScoreStore(4)
    shelf.put("a", Missed("why"))
    assert shelf.take("a") == {"missed": "why"}
    assert shelf.take("a") is None


def test_it_is_bounded_in_number_and_the_oldest_goes_first():
    shelf = ScoreStore(2)
    for name in "abc":
        shelf.put(name, Missed(name))
    assert len(shelf) == 2
    assert shelf.take("a") is None
    assert shelf.take("c") == {"missed": "c"}


def test_what_nobody_fetched_in_time_after_the_requests_end_goes_with_the_next():
    now = [0.0]
    shelf = ScoreStore(9, clock=lambda: now[0])
    shelf.put("a", Missed("a"))
    shelf.ended("a")
    now[0] = KEEP_S + 1
    shelf.put("b", Missed("b"))
    assert len(shelf) == 1


def test_what_belongs_to_a_running_request_does_not_age():
    """One that is not streamed has its scores fetched when it ends."""
    now = [0.0]
    shelf = ScoreStore(9, clock=lambda: now[0])
    shelf.put("long", Missed("long"))
    now[0] = 3 * KEEP_S
    shelf.put("b", Missed("b"))
    shelf.ended("long")
    now[0] += KEEP_S
    shelf.ended("b")
    assert shelf.take("long") == {"missed": "long"}


def test_what_belongs_to_a_running_request_makes_way_last():
    shelf = ScoreStore(2)
    for name in "abc":
        shelf.put(name, Missed(name))
        if name == "b":
            shelf.ended("b")
    assert [shelf.take(name) is None for name in "abc"] == [False, True, False]


def test_the_end_of_one_that_has_nothing_here_is_no_matter():
    shelf = ScoreStore(2)
    shelf.ended("a")
    assert len(shelf) == 0


def test_the_same_id_again_replaces():
    shelf = ScoreStore(9)
    shelf.put("a", Missed("old"))
    shelf.put("a", Missed("new"))
    assert shelf.take("a") == {"missed": "new"}
