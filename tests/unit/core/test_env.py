from pathlib import Path

import pytest

from pdd_core.env import Env, ServeSettings
from pdd_core.errors import ConfigurationError


def test_defaults_need_no_environment(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    env = Env()
    assert env.cache_dir == Path("/home/someone/.cache/pdd-device")
    assert env.allowed_policies() is None


def test_variables_are_read(monkeypatch):
    monkeypatch.setenv("PDD_CACHE_DIR", "/data/models")
    monkeypatch.setenv("PDD_POLICIES", " mine, yours ,")
    monkeypatch.setenv("PDD_CLOUD_API_KEY", "sekret")
    env = Env()
    assert env.cache_dir == Path("/data/models")
    assert env.allowed_policies() == ["mine", "yours"]
    assert "sekret" not in repr(env)


def test_an_empty_list_loads_no_policy(monkeypatch):
    monkeypatch.setenv("PDD_POLICIES", "")
    assert Env().allowed_policies() == []


@pytest.mark.parametrize(
    ("text", "kind"), [("auto", "auto"), ("0.25", "ratio"), ("512 tokens", "tokens"), ("2 s", "seconds")]
)
def test_how_much_to_read_is_told_in_words_or_numbers(monkeypatch, text, kind):
    assert ServeSettings().refine_target.kind == "off"
    monkeypatch.setenv("PDD_REFINE", text)
    assert ServeSettings().refine_target.kind == kind


@pytest.mark.parametrize("refine", ["", "half", "2", 1.5, "0 tokens", True, False, None])
def test_a_share_that_cannot_be_is_refused(refine):
    with pytest.raises(ConfigurationError, match=r"^refine must be off, auto, context"):
        ServeSettings.load(None, {"refine": refine})


def test_a_share_in_a_file_is_a_number(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("refine = 0.25\n")
    assert ServeSettings.load(file, {}).refine_target.value == 0.25


def test_true_in_a_file_is_no_share(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("refine = true\n")
    with pytest.raises(ConfigurationError, match=r"^refine must be off, auto, context.*, not True"):
        ServeSettings.load(file, {})


@pytest.mark.parametrize(
    "content",
    [b"\xff = 1", b"a = " + b"[" * 100_000, b"n_ctx = " + b"9" * 5000, b"\0", b"n_ctx = ", b"n_ctx = 1e400"],
)
def test_a_file_of_settings_that_cannot_be_read_is_one_message(tmp_path, content):
    file = tmp_path / "pdd.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError):
        ServeSettings.load(file, {})
