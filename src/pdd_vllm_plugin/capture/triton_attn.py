"""vLLM's Triton attention with the capture behind it."""

from __future__ import annotations

from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend, TritonAttentionImpl

from pdd_vllm_plugin.capture.backends import CapturingImpl


class Impl(CapturingImpl, TritonAttentionImpl):
    """The stock implementation; see `CapturingImpl`."""


class CapturingBackend(TritonAttentionBackend):
    """The stock backend with `Impl`. vLLM imports it by this name."""

    @staticmethod
    def get_impl_cls() -> type[TritonAttentionImpl]:
        """Return the implementation that the capture looks on at."""
        return Impl
