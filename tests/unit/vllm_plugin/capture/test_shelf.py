from pdd_vllm_plugin.capture.shelf import KEEP_S, Missed, Shelf


def test_each_result_is_given_out_once():
    shelf = Shelf(4)
    shelf.put("a", Missed("why"))
    assert shelf.take("a") == {"missed": "why"}
    assert shelf.take("a") is None


def test_it_is_bounded_in_number_and_the_oldest_goes_first():
    shelf = Shelf(2)
    for name in "abc":
        shelf.put(name, Missed(name))
    assert len(shelf) == 2
    assert shelf.take("a") is None
    assert shelf.take("c") == {"missed": "c"}


def test_what_nobody_fetched_in_time_goes_with_the_next():
    now = [0.0]
    shelf = Shelf(9, clock=lambda: now[0])
    shelf.put("a", Missed("a"))
    now[0] = KEEP_S + 1
    shelf.put("b", Missed("b"))
    assert len(shelf) == 1


def test_the_same_id_again_replaces():
    shelf = Shelf(9)
    shelf.put("a", Missed("old"))
    shelf.put("a", Missed("new"))
    assert shelf.take("a") == {"missed": "new"}
