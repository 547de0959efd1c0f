"""The command line has an option for each of llama.cpp's settings, made of the one list of them."""

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from pdd_cli import main
from pdd_core.llama_params import LlamaParams

COMMANDS = get_command(main.app).commands


@pytest.mark.parametrize("command", ["serve", "generate"])
def test_each_setting_has_its_flag_and_its_help(command):
    options = {one.name: one for one in COMMANDS[command].params}
    for name, field in LlamaParams.model_fields.items():
        assert options[name].opts[0] == f"--{name.replace('_', '-')}"
        said = re.sub(r"\W+", " ", field.description.split(": ", 1)[1]).strip().lower()
        assert re.sub(r"\W+", " ", options[name].help).strip().lower() == said


def test_the_flags_come_to_the_settings(monkeypatch):
    seen = []
    monkeypatch.setattr("pdd_cli.serve.run.run_serve", lambda settings, _: seen.append(settings))
    flags = [
        "-ngl",
        "12",
        "-c",
        "512",
        "--no-mmap",
        "--mlock",
        "-fa",
        "on",
        "-ctv",
        "q8_0",
        "-ts",
        "3,1",
        "--port",
        "0",
    ]
    done = CliRunner().invoke(main.app, ["serve", *flags])
    assert done.exit_code == 0, done.output
    assert seen[0].port == 0
    assert seen[0].llama == LlamaParams.of(
        gpu_layers=12, n_ctx=512, mmap=False, mlock=True, flash_attn="on", cache_type_v="q8_0", tensor_split="3,1"
    )
