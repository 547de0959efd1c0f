from __future__ import annotations

import ctypes

from pdd_llamacpp_adapter.engine.abort_flag import AbortFlag


def asked(flag: AbortFlag) -> bool:
    """What C sees."""
    question = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(flag.question.value)
    return question(flag.data)


def test_c_sees_the_flag_as_it_is() -> None:
    flag = AbortFlag()
    seen = [asked(flag)]
    for raised in (True, True, False):
        flag.raised = raised
        assert flag.raised is raised
        seen.append(asked(flag))
    assert seen == [False, True, True, False]


def test_flags_do_not_see_each_other() -> None:
    one, other = AbortFlag(), AbortFlag()
    one.raised = True
    assert (asked(one), asked(other)) == (True, False)


def test_no_python_runs_for_the_question() -> None:
    # a callback of Python's would be made anew for each flag, and would lie elsewhere than in the C library
    assert AbortFlag().question.value == ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
