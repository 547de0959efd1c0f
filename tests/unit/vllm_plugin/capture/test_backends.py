from types import SimpleNamespace

from pdd_vllm_plugin.capture import backends
from pdd_vllm_plugin.failsafe import Failsafe


def test_a_layer_that_cannot_be_looked_at_is_computed_all_the_same(monkeypatch, caplog):
    class Impl:
        def forward(self, layer, *args):
            return layer, args

    class Capturing(backends.CapturingImpl, Impl):
        pass

    def broken(*_):
        raise ZeroDivisionError

    failing = SimpleNamespace(failsafe=Failsafe("prompts are not refined from here on"), on_layer=broken)
    monkeypatch.setattr(backends, "scorer", failing)
    for _ in range(2):
        result = Capturing().forward("layer", "q", "k", "v", "cache", "metadata", "output")
        assert result == ("layer", ("q", "k", "v", "cache", "metadata", "output"))
    [record] = caplog.records
    assert "prompts are not refined from here on: ZeroDivisionError" in record.getMessage()
