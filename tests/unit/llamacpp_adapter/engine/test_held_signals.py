"""Signals that arrive in a callback of a C function."""

import ctypes
import signal
import threading

import pytest

from pdd_llamacpp_adapter.engine.held_signals import held_signals


def called_back_by_c(number):
    """Sort two numbers with libc, whose comparison, in Python, gets the signal."""
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    array = (ctypes.c_int * 2)(2, 1)

    def interrupted(*_):
        signal.raise_signal(number)
        return 0

    ctypes.CDLL(None).qsort(array, 2, ctypes.sizeof(ctypes.c_int), compare(interrupted))


@pytest.fixture
def terminated():
    def leave(number, _):
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_in_a_callback_is_raised_behind_the_call(number, error, terminated):
    ended = []

    def sort():
        with held_signals():
            called_back_by_c(number)
            ended.append(True)

    with pytest.raises(error):
        sort()
    assert ended, "the C function was left to end"
    with pytest.raises(error):
        signal.raise_signal(number)  # and the handlers are those of before


def test_an_error_of_the_block_goes_on():
    with pytest.raises(ValueError, match="no such file"), held_signals():
        raise ValueError("no such file")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_does_nothing_still_does_nothing():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with held_signals():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_have_no_handlers_to_hold():
    entered = []

    def work():
        with held_signals():
            entered.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [signal.default_int_handler]
