"""vLLM's CPU attention with the capture behind it."""

from __future__ import annotations

from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl

from pdd_vllm_plugin.capture.backends import CapturingImpl


class Impl(CapturingImpl, CPUAttentionBackendImpl):
    """The stock implementation; see `CapturingImpl`."""


class CapturingBackend(CPUAttentionBackend):
    """The stock backend with `Impl`. vLLM imports it by this name."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """Return the implementation that the capture looks on at."""
        return Impl
