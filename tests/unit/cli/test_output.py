"""Output that nobody takes any more, in processes of their own."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PRELUDE = """
import logging, os, sys
from pdd_cli.options import new_console
from pdd_cli.output import outlast_output
outlast_output()
logging.basicConfig(stream=sys.stderr)
console = new_console()
"""
TALK = """
for number in range(3):
    console.print("a line")
    print("another", flush=True)
    logging.warning("and a third")
print("and one that is written at the very end")
open(sys.argv[1], "w").write("came to its end")
"""
ENDS = {
    "closed": ">&-",
    "full": "> /dev/full",
    "a pipe without a reader": "| head -c 1 > /dev/null",
    "both closed": ">&- 2>&-",
    "both full": "> /dev/full 2>&1",
    "all three closed": "<&- >&- 2>&-",
}
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")


def run(code, folder, redirected):
    script, said = folder / "script.py", folder / "said.txt"
    script.write_text(PRELUDE + textwrap.dedent(code))
    line = f'"{sys.executable}" "{script}" "{said}" {redirected}'
    # the exit code is that of Python, in a pipe as well
    shell = ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, timeout=60)
    return done.returncode, done.stderr, said.read_text() if said.exists() else ""


@pytest.mark.parametrize("end", ENDS)
def test_a_program_goes_on_without_anybody_who_takes_what_it_says(tmp_path, end):
    code, complaints, said = run(TALK * 20, tmp_path, ENDS[end])
    assert (code, said) == (0, "came to its end")
    assert [line for line in complaints.splitlines() if line != "WARNING:root:and a third"] == []


def test_what_can_be_written_is_written(tmp_path):
    out = tmp_path / "out.txt"
    code, complaints, _ = run(TALK, tmp_path, f"> {out}")
    assert code == 0
    assert out.read_text().count("a line\nanother\n") == 3
    assert out.read_text().endswith("and one that is written at the very end\n")
    assert complaints.count("and a third") == 3


def test_nothing_else_gets_the_number_of_a_closed_output(tmp_path):
    """What llama.cpp prints would go to a client else."""
    code, _, said = run(
        """
        import socket
        taken = socket.socket().fileno()
        open(sys.argv[1], "w").write(str(taken > 2))
        """,
        tmp_path,
        "<&- >&- 2>&-",
    )
    assert (code, said) == (0, "True")


def test_a_program_can_leave_its_threads_behind_with_closed_outputs(tmp_path):
    code, _, said = run(
        """
        import threading
        from pdd_cli.leaving import leave
        threading.Thread(target=threading.Event().wait).start()
        open(sys.argv[1], "w").write("leaves")
        leave(0.1)
        """,
        tmp_path,
        ">&- 2>&-",
    )
    assert (code, said) == (0, "leaves")
