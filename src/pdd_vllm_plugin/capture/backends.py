"""vLLM's attention backends, overridden by subclasses that let the capture look on.

``register_backend`` is vLLM's documented way to override a backend (vllm.v1.attention.backends.registry). The
classes keep their names, so that whatever vLLM asks a backend by name stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdd_vllm_plugin.capture.window_scorer import WindowScorer

BACKENDS = {
    "CPU_ATTN": "pdd_vllm_plugin.capture.cpu_attn.CapturingBackend",
    "FLASH_ATTN": "pdd_vllm_plugin.capture.flash_attn.CapturingBackend",
    "TRITON_ATTN": "pdd_vllm_plugin.capture.triton_attn.CapturingBackend",
}
"""Class paths: vLLM imports the one it needs."""

scorer: WindowScorer | None = None
"""The rank's scorer in a step that computes a window; None in all others, which pay one comparison per layer."""


class CapturingImpl:
    """A mixin in front of a vLLM ``AttentionImpl``."""

    def forward(
        self,
        layer: Any,
        query: Any,
        key: Any,
        value: Any,
        kv_cache: Any,
        attn_metadata: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Compute as the backend does; then, with the keys in the cache, let the capture look."""
        result = super().forward(layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs)  # type: ignore[misc]
        if scorer is not None and attn_metadata is not None:
            with scorer.failsafe:
                scorer.on_layer(layer, self, query, kv_cache, attn_metadata)
        return result


def register_backends() -> None:
    """Override the backends. Before the model is loaded: each layer asks for its backend when it is made."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    for name, path in BACKENDS.items():
        register_backend(AttentionBackendEnum[name], path)
