from __future__ import annotations

import json

import pytest
from template_families import STRINGS, WITH_TOOLS

from pdd_cli import cloud_command as module
from pdd_cli.cloud_command import cloud_command
from pdd_cli.tool_parser import tool_parser_of

QWEN3 = WITH_TOOLS["qwen3"][0]
FLAGS = ["--enable-auto-tool-choice", "--tool-call-parser"]


@pytest.fixture(autouse=True)
def vllm_there(monkeypatch):
    monkeypatch.setattr(module, "require", lambda *_, **__: None)


def served(folder, *theirs):
    made = cloud_command(str(folder), bind=("127.0.0.1", 8000), environ={}, extra_args=theirs)
    return [word for word in made.argv if "tool" in word or word == "hermes"]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_the_template_tells_the_parser(tmp_path, name):
    source, parser = WITH_TOOLS[name]
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    assert tool_parser_of(tmp_path) == parser


@pytest.mark.parametrize(
    "config",
    [
        {"chat_template": QWEN3, "bos_token": None, "eos_token": {"content": "</s>"}},
        {"chat_template": [{"name": "default", "template": STRINGS}, {"name": "tool_use", "template": QWEN3}]},
        {"chat_template": [{"name": "default", "template": QWEN3}]},
    ],
)
def test_it_may_be_in_the_tokenizers_settings(tmp_path, config):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tool_parser_of(tmp_path) == "hermes"


@pytest.mark.parametrize(
    "config",
    ["", "[]", "{", "{}", '{"chat_template": 3}', '{"chat_template": "{% if %}"}', '{"chat_template": [1]}'],
)
def test_where_it_does_not_tell_there_is_none(tmp_path, config):
    (tmp_path / "tokenizer_config.json").write_text(config)
    assert tool_parser_of(tmp_path) is None
    assert served(tmp_path) == []


def test_a_direct_client_of_the_cloud_gets_tool_calls(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(QWEN3)
    assert served(tmp_path) == [*FLAGS, "hermes"]


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (["--tool-call-parser", "xlam"], FLAGS),
        (["--no-enable-auto-tool-choice"], ["--tool-call-parser", "hermes", "--no-enable-auto-tool-choice"]),
        (["--chat-template", "other"], []),
        (["--tokenizer_mode=mistral"], []),
    ],
)
def test_the_users_own_flags_win(tmp_path, theirs, words):
    (tmp_path / "chat_template.jinja").write_text(QWEN3)
    assert served(tmp_path, *theirs) == words


def test_a_name_on_the_hub_does_not_tell():
    assert served("org/model") == []
