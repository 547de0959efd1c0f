from pdd_core.env import ServeSettings
from pdd_llamacpp_adapter.runtime.serving import _http_limits
from pdd_llamacpp_adapter.server.streams.kept_streams import StreamLimits


def test_the_streams_are_bounded_as_set():
    settings = ServeSettings(max_streams=3, stream_mib=2, stream_ttl_s=7.0)
    assert _http_limits(settings).streams == StreamLimits(count=3, size=2 * 2**20, ttl=7.0)
    assert _http_limits(ServeSettings()).streams == StreamLimits()


def test_all_streams_are_listed_to_who_has_the_key_or_is_on_this_machine():
    assert _http_limits(ServeSettings()).lists_streams
    assert _http_limits(ServeSettings(host="device.example", api_key="sesame")).lists_streams
    assert not _http_limits(ServeSettings(host="device.example")).lists_streams
