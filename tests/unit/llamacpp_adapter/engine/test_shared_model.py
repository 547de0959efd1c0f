import threading

import pytest

from pdd_core.errors import DeviceError
from pdd_llamacpp_adapter.engine.shared_model import SharedModel

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def freed():
    return []


@pytest.fixture
def model(freed):
    return SharedModel(42, freed.append)


def test_a_model_that_nobody_uses_is_freed_at_once_and_once(model, freed):
    with model as handle:
        assert handle == 42
    assert freed == []
    model.close()
    model.close()
    assert freed == [42]


def test_a_closed_model_refuses_new_calls_in_a_running_one_too(model, freed):
    with model:
        model.close()
        assert model.closed
        with pytest.raises(DeviceError, match="closed"), model:
            pass
        assert freed == []
    assert freed == [42]


def test_the_last_of_several_threads_frees_it(model, freed):
    inside, go_on = threading.Barrier(4), [threading.Event() for _ in range(3)]

    def call(may_end):
        with model:
            inside.wait()
            may_end.wait()

    threads = [threading.Thread(target=call, args=(may_end,)) for may_end in go_on]
    for thread in threads:
        thread.start()
    inside.wait()
    model.close()
    for number, thread in enumerate(threads):
        assert freed == []
        go_on[number].set()
        thread.join()
    assert freed == [42]


def test_a_call_that_fails_has_ended(model, freed):
    with pytest.raises(ValueError, match="why"), model:
        raise ValueError("why")
    model.close()
    assert freed == [42]
