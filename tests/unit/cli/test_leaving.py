import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import atexit, logging, threading, sys
from pdd_cli.leaving import leave
logging.basicConfig(stream=sys.stderr)
atexit.register(print, "a regular end")
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


def test_a_thread_that_does_not_end_is_left_behind():
    ended = run("""
        threading.Thread(target=threading.Event().wait).start()
        print("the last words")
        logging.warning("and these")
        leave(0.1)
        print("never said")
    """)
    assert ended == (0, ["the last words"], "WARNING:root:and these\n")


@pytest.mark.parametrize(
    "threads",
    [
        "",
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "threading.Thread(target=threading.Event().wait, args=(0.05,)).start()",
    ],
    ids=["none", "a daemon", "one that ends"],
)
def test_else_the_end_is_a_regular_one(threads):
    assert run(f"{threads}\nleave(30)\nprint('said')") == (0, ["said", "a regular end"], "")
