"""docs/server.md and the README about the local server, as a reader would try them, with both real engines."""

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from cloud_support import KEY, wait_until
from device_server import PATIENT
from readme import blocks

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "server.md"
README = ROOT / "README.md"
HANDED_OFF = {"PDD_PLAN": "handoff", "PDD_DECODE_BUDGET": "8", **PATIENT}
"""However slow or fast this machine, answers begin in the cloud and end on the device."""


@contextmanager
def served(line, cloud, gguf):
    """Run a page's `pdd-device serve` line with this cloud and model, on a free port; gives the base URL."""
    program, *words = shlex.split(line)
    assert program == "pdd-device"
    words = [
        cloud.base_url if re.match("http://.*:8000/v1", word) else str(gguf) if word == "model.gguf" else word
        for word in words
    ]
    words[words.index("--port") + 1] = "0"
    environ = {**os.environ, **HANDED_OFF, "PDD_CLOUD_API_KEY": KEY, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "pdd_cli.main", *words], env=environ, stdout=subprocess.PIPE, text=True
    )
    try:
        url = re.search(r"http://[\d.:]+/v1", server.stdout.readline())[0]
        wait_until(lambda: httpx2.get(f"{url}/health").status_code == 200, seconds=60)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        server.stdout.close()


def greedy(program):
    """Sampled at the model's own temperature, the answer might end before the cloud's budget."""
    changed = re.sub(r"max_tokens=\d+", r"\g<0>, temperature=0", program)
    assert changed != program
    return changed


@pytest.mark.parametrize("page", [PAGE, README], ids=lambda page: page.name)
def test_an_unchanged_client_gets_an_answer_from_both_engines(page, cloud, prepared, tmp_path):
    line = next(
        line for block in blocks(page, "bash") for line in block.splitlines() if "pdd-device serve" in line
    )
    program = next(block for block in blocks(page, "python") if "8090" in block)
    with served(line, cloud, prepared.gguf) as url:
        script = tmp_path / "client.py"
        script.write_text(greedy(program).replace("http://127.0.0.1:8090/v1", url))
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert int(re.search(r"'cloud': (\d+)", last)[1]) > 0, last
    assert int(re.search(r"'device': (\d+)", last)[1]) > 0, last


def test_the_same_in_a_program(cloud, prepared, tmp_path):
    program = next(block for block in blocks(PAGE, "python") if "PDDevice" in block)
    for old, new in {"http://127.0.0.1:8000/v1": cloud.base_url, '"model.gguf"': repr(str(prepared.gguf))}.items():
        assert old in program
        program = program.replace(old, new)
    script = tmp_path / "program.py"
    script.write_text(greedy(program))
    environ = {**os.environ, **HANDED_OFF, "PDD_CLOUD_API_KEY": KEY}
    done = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"'device': (\d+)", done.stdout)[1]) > 0
