"""The README's programs, as a reader would run them, against the real server and the demo model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cloud_support import KEY
from readme import blocks

README = Path(__file__).parents[3] / "README.md"


@pytest.fixture
def run_block(cloud, prepared, tmp_path):
    def run(number, **replaced):
        """Run the block in a process of its own; returns what it printed."""
        text = blocks(README, "python")[number]
        here = {
            "http://127.0.0.1:8000/v1": cloud.base_url,
            '"model.gguf"': repr(str(prepared.gguf)),
            "threads=4": "threads=1",
            **replaced,
        }
        for old, new in here.items():
            text = text.replace(old, new)
        program = tmp_path / f"block_{number}.py"
        program.write_text(text)
        environ = {**os.environ, "VLLM_API_KEY": KEY}
        done = subprocess.run([sys.executable, program], env=environ, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_any_openai_client_can_cap_a_request_and_read_what_became_of_it(run_block):
    # greedy: sampled at the model's own temperature, the answer might end before the budget
    printed = run_block(0, **{"stream=True,": "stream=True, temperature=0,"})
    answer, reasons, state, partial = _parts(printed)
    assert reasons == "chunk.choices[0].finish_reason='length' chunk.choices[0].stop_reason='pdd_handoff'"
    status, prompt_tokens, ids = state.split(" ", 2)
    assert status == "handed_off"
    assert int(prompt_tokens) > 5
    assert len(ids.strip("[]").split(",")) == 24
    assert partial.strip() == answer.strip() != ""


def _parts(printed):
    """Split the output at the line of the reasons; an answer may have line feeds of its own."""
    answer, _, rest = printed.partition("\nchunk.choices[0].finish_reason=")
    reasons, state, partial = rest.split("\n", 2)
    return answer, f"chunk.choices[0].finish_reason={reasons}", state, partial
