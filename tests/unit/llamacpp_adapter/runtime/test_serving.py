import logging
from pathlib import Path

import pytest

from pdd_core.env import ServeSettings
from pdd_core.errors import ConfigurationError
from pdd_llamacpp_adapter.runtime import serving
from pdd_llamacpp_adapter.runtime.serving import _http_limits, check_access, serve_device
from pdd_llamacpp_adapter.server.streams.kept_streams import StreamLimits


def test_the_streams_are_bounded_as_set():
    settings = ServeSettings(max_streams=3, stream_mib=2, stream_ttl_s=7.0)
    assert _http_limits(settings).streams == StreamLimits(count=3, size=2 * 2**20, ttl=7.0)
    assert _http_limits(ServeSettings()).streams == StreamLimits()


def test_all_streams_are_listed_to_who_has_the_key_or_is_on_this_machine():
    assert _http_limits(ServeSettings()).lists_streams
    assert _http_limits(ServeSettings(host="device.example", api_key="sesame")).lists_streams
    assert not _http_limits(ServeSettings(host="device.example")).lists_streams


def test_the_names_and_the_connections_are_as_set():
    limits = _http_limits(ServeSettings(host="device.example", allow_hosts=("ai.example",), max_connections=7))
    assert tuple(limits.allow_hosts) == ("ai.example", "device.example")
    assert limits.max_connections == 7


ALL = "0.0.0.0"  # noqa: S104 - nobody listens there
BEYOND = [ALL, "::", "192.168.1.5", "device.example", ""]


@pytest.mark.parametrize("host", BEYOND)
def test_beyond_this_machine_a_server_needs_a_key_or_to_be_told_that_it_needs_none(host):
    with pytest.raises(ConfigurationError, match=r"no key is set: .*allow_no_key"):
        check_access(ServeSettings(host=host))
    check_access(ServeSettings(host=host, allow_no_key=True))
    check_access(ServeSettings(host=host, api_key="sesame"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LocalHost"])
def test_on_this_machine_it_needs_none(host):
    check_access(ServeSettings(host=host))


@pytest.mark.anyio
async def test_it_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(ConfigurationError, match="no key is set"):
        await serve_device(tmp_path / "no-such.gguf", ServeSettings(host=ALL))


@pytest.mark.anyio
@pytest.mark.parametrize("host", [ALL, "127.0.0.1"])
async def test_a_server_that_lets_everyone_in_says_so(monkeypatch, caplog, host):
    async def nothing(*_, **__):
        pass

    monkeypatch.setattr(serving, "serve", nothing)
    with caplog.at_level(logging.WARNING):
        await serve_device(Path("no-such.gguf"), ServeSettings(host=host, allow_no_key=True))
    assert ("there is no key" in caplog.text) == (host == ALL)
