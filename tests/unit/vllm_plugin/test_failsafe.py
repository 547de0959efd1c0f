import pytest

from pdd_vllm_plugin.failsafe import Failsafe


def test_the_first_exception_is_logged_in_one_line_and_nothing_of_its_message(caplog):
    done = []
    failsafe = Failsafe("nothing is refined", then=lambda: done.append(1))
    for _ in range(3):
        with failsafe:
            raise TypeError("a secret prompt")
    assert failsafe.failed
    assert done == [1]
    [record] = caplog.records
    assert record.levelname == "ERROR"
    message = record.getMessage()
    assert message.startswith("pdd: nothing is refined: TypeError in ")
    assert "test_failsafe.py, line " in message
    assert "secret" not in caplog.text
    assert "\n" not in message


def test_without_an_exception_nothing_happens(caplog):
    failsafe = Failsafe("nothing is refined", then=lambda: pytest.fail("called"))
    with failsafe:
        pass
    assert (failsafe.failed, caplog.records) == (False, [])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_passes(kind):
    failsafe = Failsafe("nothing is refined")
    with pytest.raises(kind), failsafe:
        raise kind
    assert not failsafe.failed


def test_a_failure_of_what_comes_then_is_taken_too():
    failsafe = Failsafe("nothing is refined", then=lambda: 1 / 0)
    with failsafe:
        raise ValueError
    assert failsafe.failed
