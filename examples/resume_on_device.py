"""One answer that the cloud begins and this machine finishes."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter import AnswerRequest, DeviceEngine, generate

if TYPE_CHECKING:
    from pdd_core import ShownToken, Source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True, help="a GGUF of the model that the cloud serves")
    parser.add_argument("--cloud", default="http://127.0.0.1:8000/v1", help="base URL; empty for the device alone")
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY"))
    parser.add_argument("--prompt", default="Why is the sky blue?")
    parser.add_argument("--budget", type=int, default=24, help="tokens the cloud may decode")
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--rate", type=float, default=12.0, help="tokens per second")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    with DeviceEngine.open(options.gguf, n_ctx=4096, threads=options.threads) as engine:
        prompt = engine.vocab.render_chat([{"role": "user", "content": options.prompt}])
        outcome = generate(
            AnswerRequest(prompt_token_ids=prompt, max_tokens=options.max_tokens, decode_budget=options.budget),
            engine=engine,
            cloud_url=options.cloud or None,
            api_key=options.api_key,
            on_token=Printer(),
            rate=options.rate,
        )
    timeline = outcome.timeline
    print(f"\n{outcome.finish_reason} after {len(timeline.tokens)} tokens, the first after {timeline.ttft:.2f} s")
    if outcome.took_over_at is not None:
        print(f"the device took over after {outcome.took_over_at:.2f} s")
    if outcome.cloud_error is not None:
        print(f"the device was alone: {outcome.cloud_error}")


class Printer:
    """Prints each token, and who made it where that changes."""

    def __init__(self) -> None:
        self._source: Source | None = None

    def __call__(self, token: ShownToken) -> None:
        """Print one token."""
        if token.source is not self._source:
            self._source = token.source
            print(f"[{token.source}]", end="")
        print(token.text, end="", flush=True)


if __name__ == "__main__":
    main()
