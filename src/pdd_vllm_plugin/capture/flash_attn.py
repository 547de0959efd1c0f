"""vLLM's FlashAttention attention with the capture behind it."""

from __future__ import annotations

from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend, FlashAttentionImpl

from pdd_vllm_plugin.capture.backends import CapturingImpl


class Impl(CapturingImpl, FlashAttentionImpl):
    """The stock implementation; see `CapturingImpl`."""


class CapturingBackend(FlashAttentionBackend):
    """The stock backend with `Impl`. vLLM imports it by this name."""

    @staticmethod
    def get_impl_cls() -> type[FlashAttentionImpl]:
        """Return the implementation that the capture looks on at."""
        return Impl
