"""simonw/llm, unmodified: its command and its Python API, with the server as one of its own OpenAI models.

Answers are compared with the second to a prompt: from then on the device computes only the prompt's last token,
always in the same way. With quantised weights the first may differ where two tokens are almost equally likely.
"""

import asyncio
import gc
import json
import os
import subprocess
import sys
import warnings

import llm
import pytest
from pydantic import BaseModel

PROMPT = "Name three colours."
FEW = ("-o", "temperature", "0", "-o", "max_tokens", "12")
CHAT, TEXT = "device", "device-completions"


@pytest.fixture
def user_path(device, tmp_path, monkeypatch):
    """llm's own folder, with the server in the file in which llm looks for such models."""
    shared = {"model_name": "on-device", "api_base": device.url, "api_key_name": "device"}
    models = [
        {"model_id": CHAT, **shared, "supports_tools": True, "supports_schema": True},
        {"model_id": TEXT, **shared, "completion": True},
    ]
    # JSON is YAML
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    (tmp_path / "keys.json").write_text(json.dumps({"device": device.api_key}))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")
    return tmp_path


def run(*words):
    done = subprocess.run(
        [sys.executable, "-m", "llm", *words], capture_output=True, text=True, timeout=200, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_command_answers_streamed_and_not(user_path):
    assert CHAT in run("models")
    assert run("-m", CHAT, *FEW, PROMPT)
    streamed = run("-m", CHAT, *FEW, PROMPT)
    assert run("-m", CHAT, *FEW, "--no-stream", PROMPT) == streamed
    [logged] = json.loads(run("logs", "--json", "-n", "1"))
    assert logged["response"].strip() == streamed
    assert logged["output_tokens"] == 12


def test_the_command_goes_on_with_a_conversation(user_path):
    run("-m", CHAT, *FEW, PROMPT)
    assert run("-c", *FEW, "And one more?")


def test_the_command_completes_raw_text(user_path):
    assert "Paris" in run("-m", TEXT, *FEW, "The capital of France is")


def test_the_command_gets_a_structured_answer(user_path):
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["red", "blue"]}, "warm": {"type": "boolean"}},
        "required": ["name", "warm"],
        "additionalProperties": False,
    }
    said = run("-m", CHAT, "-o", "temperature", "0", "--schema", json.dumps(schema), PROMPT)
    assert json.loads(said).keys() == {"name", "warm"}


def test_the_command_shows_an_error_in_words(user_path):
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", CHAT, "-o", "temperature", "0", PROMPT * 800],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert "maximum context length is 1024 tokens" in done.stderr


def test_the_python_api_answers_streamed_and_not(user_path):
    model = llm.get_model(CHAT)
    asked = {"temperature": 0, "max_tokens": 12}
    assert model.prompt(PROMPT, **asked).text()
    pieces = list(model.prompt(PROMPT, **asked))
    whole = model.prompt(PROMPT, **asked, stream=False)
    assert len(pieces) > 3
    assert "".join(pieces) == whole.text()
    assert whole.usage().output == 12


def test_the_asynchronous_api_answers(user_path):
    async def ask():
        return await llm.get_async_model(CHAT).prompt(PROMPT, temperature=0, max_tokens=12).text()

    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        assert asyncio.run(ask())
        gc.collect()  # llm leaves its connection to the garbage collector


class Colour(BaseModel):
    name: str
    warm: bool


def test_the_python_api_takes_a_schema_and_tools(user_path):
    model = llm.get_model(CHAT)
    said = model.prompt("Is red warm?", schema=Colour, temperature=0, max_tokens=200).text()
    assert said.startswith("{")

    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        return a * b

    # whether it calls is this small model's own choice
    assert list(model.chain("What is 3 times 4?", tools=[multiply], options={"max_tokens": 30}))
