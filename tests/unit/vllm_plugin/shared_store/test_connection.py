"""The setting `store` is checked before anything is loaded, and never shown."""

import subprocess
import sys

import pytest

from pdd_core.errors import ConfigurationError
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.shared_store import connection


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/2",
        "redis://user:secret@h",
        "rediss://h:6380?ssl_ca_certs=/ca.pem",
        "unix:///run/s?db=1",
    ],
)
def test_a_url_of_redis_is_taken(url):
    assert PDDConfig(store=url).store == url


@pytest.mark.parametrize(
    "url",
    [
        "", 6379, True, "redis://", "valkey://:hunter2@h", "http://:hunter2@h", "h:6379", "redis://:hunter2@h:port",
"redis://:hunter2@h?ssl_unknown=1", "redis://:hunter2@[h", "redis://:hunter2@h:70000",
    ],
)  # fmt: skip
def test_another_one_is_refused_and_not_shown(url):
    with pytest.raises(
        ConfigurationError, match=r"additional_config\.pdd\.store must be a URL that begins"
    ) as caught:
        PDDConfig(store=url)
    assert "hunter2" not in "".join(map(str, (caught.value, caught.value.__cause__)))


def test_no_setting_shows_the_url():
    assert "hunter2" not in repr(PDDConfig(store="redis://:hunter2@h"))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(connection, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r'pip install "\.\[fleet\]"'):
        PDDConfig(store="redis://h")


@pytest.mark.parametrize("bound", [0, -1, 0.5, True])
def test_the_bound_is_a_number_of_bytes(bound):
    with pytest.raises(ConfigurationError, match="store_max_bytes"):
        PDDConfig(store_max_bytes=bound)


def test_without_the_setting_nothing_of_it_is_imported():
    program = (
        "import sys; sys.modules['redis'] = None\n"
        "from pdd_vllm_plugin.config import PDDConfig\n"
        "from pdd_vllm_plugin.endpoint import PDDEndpoints\n"
        "PDDConfig()\n"
        "assert not [name for name in sys.modules if 'shared_store' in name]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
