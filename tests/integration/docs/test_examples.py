"""Each example as a user runs it, against the real server and the demo model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cloud_support import KEY
from device_server import PATIENT

EXAMPLES = Path(__file__).parents[3] / "examples"


def example(name, *arguments, expect=0, **settings):
    environ = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"} | settings
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == expect, done.stderr
    return done.stdout if expect == 0 else done.stderr


def test_openai_client(cloud):
    printed = example("openai_client.py", "--base-url", cloud.base_url, "--api-key", KEY, "--model", "smollm2")
    seen = int(re.search(r"\[in mid-stream: (\d+) tokens, \w+\]", printed)[1])
    assert 3 <= seen <= 24
    assert "[ended: length, pdd_handoff]" in printed
    assert re.search(r"\[state: handed_off after 24 tokens, budget set by client, prompt of \d+ tokens\]", printed)
    assert re.search(r"\[retrieved: .{20,}\]", printed)
    assert "[deleted: True]" in printed


def test_openai_client_finds_the_model_by_itself(cloud):
    printed = example("openai_client.py", "--base-url", cloud.base_url, "--api-key", KEY, "--budget", "4")
    assert "[state: handed_off after 4 tokens" in printed


def test_a_wrong_key_is_refused(cloud):
    errors = example("openai_client.py", "--base-url", cloud.base_url, "--api-key", "wrong", expect=1)
    assert "AuthenticationError" in errors


def test_chat_on_device(cloud, prepared):
    printed = example(
        "chat_on_device.py", "--gguf", prepared.gguf, "--cloud", cloud.base_url, "--api-key", KEY,
        "--max-tokens", 40, "Name three rivers.", "Which one is the longest?",
        PDD_PLAN="handoff", PDD_DECODE_BUDGET="8", **PATIENT,  # however fast this machine is alone
    )  # fmt: skip
    first, second = re.findall(r"\[cloud: (\d+), device: (\d+), read before: (\d+)\]", printed)
    assert int(first[0]) > 0
    assert int(second[2]) > 20, "the first turn is in the device's context"


def test_resume_on_device(cloud, prepared):
    printed = example(
        "resume_on_device.py", "--gguf", prepared.gguf, "--cloud", cloud.base_url, "--api-key", KEY,
        "--prompt", "Tell me a story about a fox.", "--max-tokens", 48, "--budget", 8, "--rate", 20,
    )  # fmt: skip
    assert printed.startswith("[cloud]")
    assert printed.count("[device]") == 1
    assert re.search(r"^(stop|length) after \d+ tokens, the first after \d+\.\d\d s$", printed, re.MULTILINE)
    assert re.search(r"^the device took over after \d+\.\d\d s$", printed, re.MULTILINE)
    assert "the device was alone" not in printed


def test_resume_on_device_without_a_cloud_says_why(prepared):
    printed = example(
        "resume_on_device.py", "--gguf", prepared.gguf, "--cloud", "http://127.0.0.1:9/v1", "--max-tokens", 8
    )
    assert printed.startswith("[device]")
    assert "the device was alone: CloudUnreachable: " in printed


@pytest.fixture(scope="module")
def greedy(cloud):
    """The whole answer by the cloud alone."""
    with cloud.client() as client:
        answer = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Why is the sky blue?"}],
            max_tokens=48,
            temperature=0,
        )
    return answer.choices[0].message.content


def test_read_state_and_resume(cloud, prepared, greedy):
    printed = example(
        "read_state_and_resume.py", "--gguf", prepared.gguf, "--cloud", cloud.base_url, "--api-key", KEY
    )
    begun, _, rest = printed.partition("\n[device: ")
    made, _, whole = rest.partition(" tokens more]\n")
    assert begun.startswith("[cloud: handed_off]")
    assert 1 <= int(made) <= 36
    begun = begun.removeprefix("[cloud: handed_off]")
    assert begun.strip()
    assert greedy.startswith(begun)
    assert whole.startswith(begun)
