import logging
import os
import threading

import pytest

from pdd_core.env import ServeSettings
from pdd_core.errors import ConfigurationError
from pdd_core.key_file import one_key


@pytest.fixture
def key_file(tmp_path):
    def write(data, mode=0o600):
        file = tmp_path / "key"
        file.write_bytes(data)
        file.chmod(mode)
        return file

    return write


def test_a_key_is_given_by_itself_or_in_a_file_or_not_at_all(key_file):
    assert one_key("api_key", None, None) is None
    assert one_key("api_key", "sesame", None) == "sesame"
    for data in (b"sesame", b"sesame\n", b"sesame\r\n"):
        assert one_key("api_key", None, key_file(data)) == "sesame"


@pytest.mark.parametrize(("name", "option"), [("api_key", "api_key_file"), ("--api-key", "--api-key-file")])
def test_one_of_both_is_enough(key_file, name, option):
    with pytest.raises(ConfigurationError, match=f"^{name} and {option} are both set"):
        one_key(name, "sesame", key_file(b"sesame"))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"one\ntwo\n", "in one line"),
        (b"\xff", "cannot be read"),
        (b"k\0", "in one line"),
        (b"k" * 2**20, "in one line"),
    ],
)
def test_a_file_without_a_key_is_named_and_its_content_is_not(key_file, data, why):
    with pytest.raises(ConfigurationError, match=rf"^api_key_file: \S+/key .*{why}") as refused:
        one_key("api_key", None, key_file(data))
    assert "one\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for file in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigurationError, match=f"^api_key_file: {file} cannot be read"):
            one_key("api_key", None, file)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_that_every_user_can_read_is_warned_of(key_file, caplog, mode, warned):
    with caplog.at_level(logging.WARNING):
        one_key("api_key", None, key_file(b"sesame", mode))
    assert ("every user" in caplog.text) == warned
    assert "sesame" not in caplog.text


def test_the_settings_have_what_the_files_hold_and_read_each_once(tmp_path):
    """A key may come from a program: ``--api-key-file <(...)`` is a pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("of the cloud\n",))
    writer.start()
    own = tmp_path / "own"
    own.write_text("of the clients\n")
    own.chmod(0o600)
    settings = ServeSettings.load(None, {"api_key_file": own, "cloud_api_key_file": pipe})
    writer.join()
    assert settings.api_key.get_secret_value() == "of the clients"
    assert settings.cloud_api_key.get_secret_value() == "of the cloud"
    assert "of the" not in repr(settings)


def test_a_file_may_be_named_in_the_environment(tmp_path, monkeypatch, key_file):
    monkeypatch.setenv("PDD_API_KEY_FILE", str(key_file(b"sesame")))
    assert ServeSettings.load(None, {}).api_key.get_secret_value() == "sesame"
    monkeypatch.setenv("PDD_API_KEY", "another")
    with pytest.raises(ConfigurationError, match="api_key and api_key_file are both set"):
        ServeSettings.load(None, {})
