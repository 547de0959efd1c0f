"""`pdd-device generate` where it cannot answer: one line that says why, with the real engine at work."""

import sys

import pytest

from pdd_cli.main import main
from pdd_core.errors import ModelError
from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary

NO_SYSTEM = "{{ raise_exception('System role not supported') if messages[0].role == 'system' else 'Hi' }}"


def no_template(_):
    raise ModelError("the file has no chat template")


@pytest.fixture
def told(gguf, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["pdd-device", "generate", "--gguf", str(gguf), "--n-ctx", "512", *words])
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        assert (left.value.code, printed.out) == (1, "")
        [line] = printed.err.splitlines()
        return line

    return run


def test_what_does_not_fit_is_told_in_one_line(told, tmp_path):
    assert "maximum context length is 512 tokens" in told("Why?", "--max-tokens", "80000")
    (tmp_path / "long.txt").write_text("word " * 2000)
    assert "your messages resulted in 20" in told("Why?", "--file", str(tmp_path / "long.txt"))


def test_what_the_template_refuses_is_told_in_one_line(told, monkeypatch):
    template = ChatTemplate(NO_SYSTEM, bos="", eos="")
    monkeypatch.setattr(Vocabulary, "chat_template", property(lambda _: template))
    assert "System role not supported" in told("Why?", "--system", "Be brief.")
    monkeypatch.setattr(Vocabulary, "chat_template", property(no_template))
    assert "no chat template" in told("Why?")
